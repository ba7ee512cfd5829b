//! Who we are to a registry.
//!
//! Several sources can answer; the first that knows something wins ([`Chain`]). A source that fails
//! (unreadable file, no connection) knows nothing and says so in the log: a pull must not end
//! because *one* source of credentials is broken. Secrets cannot be printed.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::reference::ImageRef;

/// The key under which `docker login` keeps Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// `auth` values come with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for the wire only.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// What proves who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A name and its password.
    Password {
        /// Name; never empty.
        user: String,
        /// Password or token that stands for one.
        password: Secret,
    },
    /// An OAuth2 refresh token.
    Identity(Secret),
}

impl Credential {
    /// A password, or an identity token if the name is empty (the convention of docker's configuration).
    pub fn new(user: &str, secret: &str) -> Credential {
        if user.is_empty() {
            Credential::Identity(Secret::new(secret))
        } else {
            Credential::Password {
                user: user.to_owned(),
                password: Secret::new(secret),
            }
        }
    }

    /// Identifies the credential without giving it away; equal credentials are equal here.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let (user, secret) = match self {
            Credential::Password { user, password } => (user.as_str(), password),
            Credential::Identity(token) => ("", token),
        };
        hash.update((user.len() as u64).to_le_bytes());
        hash.update(user);
        hash.update(secret.reveal());
        hash.finalize().into()
    }
}

/// A source of credentials.
#[async_trait]
pub trait Credentials: fmt::Debug + Send + Sync {
    /// The credential for `host` (with port; where requests go, so a mirror's own name for a mirror) when it is asked
    /// about `image`; `None` if this source has none. Asked at every challenge, so that a new password is found.
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential>;
}

/// Knows nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn get(&self, _host: &str, _image: &ImageRef) -> Option<Credential> {
        None
    }
}

/// One credential for one host.
#[derive(Clone, Debug)]
pub struct ForHost {
    /// Host with port, as requests are sent to.
    pub host: String,
    /// What to present there.
    pub credential: Credential,
}

#[async_trait]
impl Credentials for ForHost {
    async fn get(&self, host: &str, _image: &ImageRef) -> Option<Credential> {
        (host == self.host).then(|| self.credential.clone())
    }
}

/// Sources in order; the first that has a credential wins.
#[derive(Clone, Debug, Default)]
pub struct Chain(pub Vec<Arc<dyn Credentials>>);

#[async_trait]
impl Credentials for Chain {
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential> {
        for source in &self.0 {
            if let Some(credential) = source.get(host, image).await {
                return Some(credential);
            }
        }
        None
    }
}

/// The `auths` of docker's configuration file. Read again at every question, so that a `docker login` is noticed.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: Option<PathBuf>,
    /// The document itself, from the environment; asked before the file.
    document: Option<Secret>,
}

impl DockerConfig {
    /// As docker finds it: the document in `DOCKER_AUTH_CONFIG`, then `$DOCKER_CONFIG/config.json`, else
    /// `$HOME/.docker/config.json`.
    pub fn from_env() -> DockerConfig {
        let folder = match std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
            Some(folder) => Some(PathBuf::from(folder)),
            None => std::env::home_dir().map(|home| home.join(".docker")),
        };
        DockerConfig {
            path: folder.map(|folder| folder.join("config.json")),
            document: std::env::var("DOCKER_AUTH_CONFIG").ok().map(Secret::new),
        }
    }

    /// This file.
    pub fn at(path: &Path) -> DockerConfig {
        DockerConfig {
            path: Some(path.to_owned()),
            document: None,
        }
    }
}

#[async_trait]
impl Credentials for DockerConfig {
    async fn get(&self, host: &str, _image: &ImageRef) -> Option<Credential> {
        let document = self.document.as_ref().map(Secret::reveal);
        if let Some(found) = document.and_then(|text| look_up(text.as_bytes(), host, "environment"))
        {
            return Some(found);
        }
        let path = self.path.as_ref()?;
        match tokio::fs::read(path).await {
            Ok(bytes) => look_up(&bytes, host, &path.display().to_string()),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no docker configuration");
                None
            }
        }
    }
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

fn look_up(document: &[u8], host: &str, origin: &str) -> Option<Credential> {
    let file: ConfigFile = match serde_json::from_slice(document) {
        Ok(file) => file,
        Err(error) => {
            // Position and kind only: serde_json's text may quote what it read.
            let (line, column, kind) = (error.line(), error.column(), error.classify());
            tracing::debug!(
                origin,
                line,
                column,
                ?kind,
                "docker configuration cannot be read"
            );
            return None;
        }
    };
    let key = match host {
        "docker.io" | "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB_KEY,
        host => host,
    };
    // The exact key first, then any that names the same host in another way.
    let entry = file.auths.get(key).or_else(|| {
        let same_host = |(name, _): &(&String, &AuthEntry)| host_of(name) == host_of(key);
        file.auths
            .iter()
            .filter(same_host)
            .min_by_key(|(name, _)| *name)
            .map(|(_, entry)| entry)
    })?;
    entry.credential()
}

/// Keys of the file may be addresses: `https://r.example/v1/` means `r.example`.
fn host_of(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

impl AuthEntry {
    fn credential(&self) -> Option<Credential> {
        if !self.identitytoken.is_empty() {
            return Some(Credential::Identity(Secret::new(&*self.identitytoken)));
        }
        if !self.auth.is_empty() {
            let decoded = String::from_utf8(BASE64.decode(&self.auth).ok()?).ok()?;
            let (user, password) = decoded.split_once(':')?;
            let password = password.trim_end_matches('\0');
            return (!user.is_empty()).then(|| Credential::new(user, password));
        }
        (!self.username.is_empty()).then(|| Credential::new(&self.username, &self.password))
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
                "empty.example":{{}}
            }},"credsStore":"ignored","HttpHeaders":{{}}}}"#
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
    async fn the_first_source_that_knows_wins() {
        let at = |host: &str, user: &str| -> Arc<dyn Credentials> {
            let credential = Credential::new(user, "p");
            Arc::new(ForHost {
                host: host.to_owned(),
                credential,
            })
        };
        let chain = Chain(vec![
            Arc::new(Anonymous),
            at("a", "one"),
            at("a", "two"),
            at("b", "three"),
        ]);
        let image = ImageRef::parse("x").expect("a name");
        assert_eq!(
            chain.get("a", &image).await,
            Some(Credential::new("one", "p"))
        );
        assert_eq!(
            chain.get("b", &image).await,
            Some(Credential::new("three", "p"))
        );
        assert_eq!(chain.get("c", &image).await, None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!(
            "{:?} {:?} {:?}",
            Credential::new("me", "hunter2"),
            Credential::new("", "hunter2"),
            DockerConfig {
                path: None,
                document: Some(Secret::new("hunter2"))
            }
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn fingerprints_tell_credentials_apart() {
        let of = |user, secret| Credential::new(user, secret).fingerprint();
        assert_eq!(of("a", "b"), of("a", "b"));
        assert_ne!(of("a", "bc"), of("ab", "c"));
        assert_ne!(of("", "a"), of("a", ""));
    }
}
