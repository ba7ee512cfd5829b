//! Credentials from Docker's configuration file, as `docker login` writes it.
//!
//! For each host, the host's own credential helper (`credHelpers`) or else the default one
//! (`credsStore`) is asked first, then the entries of the file (`auths`). For a file that cannot be
//! used, a warning names the file without quoting its content.

use std::{
    collections::{BTreeSet, HashMap},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;

use super::{Credential, Credentials, Secret, helper};
use soci_oci::reference::ImageRef;

/// The key under which `docker login` stores Docker Hub credentials.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// `auth` values occur with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Docker's configuration file and the credential helpers that it names. The file is read again for
/// every request, so that a new `docker login` takes effect.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: Option<PathBuf>,
    /// The document from the environment, which takes precedence over the file.
    document: Option<Secret>,
    /// Problems already logged. Without this, every token request would log them again.
    told: Arc<Mutex<BTreeSet<String>>>,
}

impl DockerConfig {
    /// Locates the configuration like Docker: the document in `DOCKER_AUTH_CONFIG`, then
    /// `$DOCKER_CONFIG/config.json`, or else `$HOME/.docker/config.json`.
    pub fn from_env() -> DockerConfig {
        let folder = match std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
            Some(folder) => Some(PathBuf::from(folder)),
            None => std::env::home_dir().map(|home| home.join(".docker")),
        };
        DockerConfig {
            path: folder.map(|folder| folder.join("config.json")),
            document: std::env::var("DOCKER_AUTH_CONFIG").ok().map(Secret::new),
            told: Arc::default(),
        }
    }

    /// Uses this file.
    pub fn at(path: &Path) -> DockerConfig {
        DockerConfig {
            path: Some(path.to_owned()),
            document: None,
            told: Arc::default(),
        }
    }

    fn parse(&self, document: &[u8], origin: &str) -> Option<ConfigFile> {
        match serde_json::from_slice(document) {
            Ok(file) => Some(file),
            Err(error) => {
                // Logs only position and kind, because serde_json's message may quote secrets.
                let (line, column, kind) = (error.line(), error.column(), error.classify());
                self.warn(format!(
                    "{origin}: {kind:?} error in line {line}, column {column}"
                ));
                None
            }
        }
    }

    /// Looks up a host in the document.
    async fn look_up(&self, document: &[u8], origin: &str, host: &str) -> Option<Credential> {
        let file = self.parse(document, origin)?;
        match file.look_up(host).await {
            Some(Ok(found)) => Some(found),
            Some(Err(BadAuth)) => {
                self.warn(format!(
                    "{origin}: the auth of {host} is not base64 of name:password"
                ));
                None
            }
            None => None,
        }
    }

    fn warn(&self, problem: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(problem.clone()) {
            tracing::warn!(
                "{problem}; no credentials are taken from there; `docker login` writes it anew"
            );
        }
    }
}

#[async_trait]
impl Credentials for DockerConfig {
    async fn get(&self, host: &str, _image: &ImageRef) -> Option<Credential> {
        let document = self.document.as_ref().map(Secret::reveal);
        if let Some(text) = document
            && let Some(found) = self
                .look_up(text.as_bytes(), "DOCKER_AUTH_CONFIG", host)
                .await
        {
            return Some(found);
        }
        let path = self.path.as_ref()?;
        let shown = path.display();
        match tokio::fs::read(path).await {
            Ok(bytes) => return self.look_up(&bytes, &shown.to_string(), host).await,
            Err(error) if is_absent(error.kind()) => {
                tracing::debug!(path = %shown, "no docker configuration");
            }
            Err(error) => self.warn(format!("{shown}: {error}")),
        }
        None
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigFile {
    auths: HashMap<String, AuthEntry>,
    #[serde(rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// An `auth` value that cannot be decoded.
struct BadAuth;

fn is_absent(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory)
}

impl ConfigFile {
    async fn look_up(&self, host: &str) -> Option<Result<Credential, BadAuth>> {
        let key = match host {
            "docker.io" | "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB_KEY,
            host => host,
        };
        let own = entry_of(&self.helpers, key).filter(|name| !name.is_empty());
        let general = Some(&self.store).filter(|name| !name.is_empty());
        if let Some(name) = own.or(general) {
            match helper::ask(name, key).await {
                Ok(Some(found)) => return Some(Ok(found)),
                Ok(None) => {}
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    let cause = cause.unwrap_or_default();
                    tracing::warn!(host, %error, cause, "credential helper left out");
                }
            }
        }
        entry_of(&self.auths, key)?.credential().transpose()
    }
}

/// Prefers the exact key, then any other spelling of the same host.
fn entry_of<'a, T>(entries: &'a HashMap<String, T>, key: &str) -> Option<&'a T> {
    entries.get(key).or_else(|| {
        let same_host = |(name, _): &(&String, &T)| host_of(name) == host_of(key);
        let found = entries.iter().filter(same_host);
        found.min_by_key(|(name, _)| *name).map(|(_, entry)| entry)
    })
}

/// Keys may be URLs: `https://r.example/v1/` means `r.example`.
fn host_of(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

impl AuthEntry {
    fn credential(&self) -> Result<Option<Credential>, BadAuth> {
        if !self.identitytoken.is_empty() {
            let token = Secret::new(&*self.identitytoken);
            return Ok(Some(Credential::Identity(token)));
        }
        if !self.registrytoken.is_empty() {
            let token = Secret::new(&*self.registrytoken);
            return Ok(Some(Credential::Bearer(token)));
        }
        if !self.auth.is_empty() {
            let decoded = BASE64.decode(&self.auth).map_err(|_| BadAuth)?;
            let decoded = String::from_utf8(decoded).map_err(|_| BadAuth)?;
            let (user, password) = decoded.split_once(':').ok_or(BadAuth)?;
            let password = password.trim_end_matches('\0');
            return Ok((!user.is_empty()).then(|| Credential::new(user, password)));
        }
        let named = !self.username.is_empty();
        Ok(named.then(|| Credential::new(&self.username, &self.password)))
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, DockerConfig) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).expect("write the configuration");
        let config = DockerConfig::at(&path);
        (folder, config)
    }

    async fn ask(config: &DockerConfig, host: &str) -> Option<Credential> {
        config
            .get(host, &ImageRef::parse("x").expect("a name"))
            .await
    }

    #[tokio::test]
    async fn auths_are_found_by_any_name_of_their_host() {
        let auth = STANDARD.encode("me:se:cret");
        let (_folder, config) = config(&format!(
            r#"{{"auths":{{
                "https://index.docker.io/v1/":{{"auth":"{auth}"}},
                "https://old.example/v1/":{{"username":"u","password":"p"}},
                "r.example:5000":{{"identitytoken":"refresh","auth":"{auth}"}},
                "t.example":{{"registrytoken":"as it is","auth":"{auth}"}},
                "empty.example":{{}}
            }},"HttpHeaders":{{}}}}"#
        ));
        let me = Some(Credential::new("me", "se:cret"));
        assert_eq!(ask(&config, "docker.io").await, me);
        assert_eq!(ask(&config, "registry-1.docker.io").await, me);
        assert_eq!(
            ask(&config, "old.example").await,
            Some(Credential::new("u", "p"))
        );
        assert_eq!(
            ask(&config, "r.example:5000").await,
            Some(Credential::new("", "refresh"))
        );
        assert_eq!(
            ask(&config, "t.example").await,
            Some(Credential::Bearer(Secret::new("as it is")))
        );
        assert_eq!(ask(&config, "r.example").await, None);
        assert_eq!(ask(&config, "empty.example").await, None);
    }

    #[tokio::test]
    async fn a_broken_configuration_is_no_configuration() {
        for text in [
            "",
            "{",
            "[]",
            r#"{"auths":{"h":{"auth":"!!"}}}"#,
            r#"{"auths":{"h":{"auth":"YQ=="}}}"#,
        ] {
            let (_folder, config) = config(text);
            assert_eq!(ask(&config, "h").await, None, "{text}");
        }
        assert_eq!(
            ask(&DockerConfig::at(Path::new("/no/such/file")), "h").await,
            None
        );
    }

    #[tokio::test]
    async fn a_login_is_noticed_and_padding_does_not_matter() {
        let (folder, config) = config("{}");
        assert_eq!(ask(&config, "h").await, None);
        let auth = STANDARD.encode("me:pw\0\0").replace('=', "");
        let text = format!(r#"{{"auths":{{"h":{{"auth":"{auth}"}}}}}}"#);
        std::fs::write(folder.path().join("config.json"), text).expect("log in");
        assert_eq!(ask(&config, "h").await, Some(Credential::new("me", "pw")));
    }

    #[tokio::test]
    async fn a_helper_that_fails_leaves_what_the_file_holds() {
        let auth = STANDARD.encode("me:pw");
        let (_folder, config) = config(&format!(
            r#"{{"auths":{{"h":{{"auth":"{auth}"}}}},"credsStore":"soci-test-no-such-helper"}}"#
        ));
        assert_eq!(ask(&config, "h").await, Some(Credential::new("me", "pw")));
        assert_eq!(ask(&config, "other").await, None);
    }

    #[test]
    fn secrets_of_the_environment_are_not_shown() {
        let config = DockerConfig {
            path: None,
            document: Some(Secret::new("hunter2")),
            told: Arc::default(),
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
