//! Credentials from Docker's configuration file, as `docker login` writes it.
//!
//! For each host, the host's own credential helper (`credHelpers`) or else the default one
//! (`credsStore`) is asked first, then the entries of the file (`auths`). For a file that cannot be
//! used, a warning names the file without quoting its content.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use serde_json::Value;

use super::{Credential, Credentials, Secret};
use soci_oci::reference::ImageRef;

mod file;

use file::BadAuth;

pub(super) use file::ConfigFile;

/// Docker's configuration file and the credential helpers that it names. The file is read again for
/// every request, so that a new `docker login` takes effect.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: Option<PathBuf>,
    /// The document from the environment, which takes precedence over the file.
    document: Option<Secret>,
    /// Problems already logged. Without this, every token request would log them again.
    reported: Arc<Mutex<BTreeSet<String>>>,
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
            reported: Arc::default(),
        }
    }

    /// Uses this file.
    pub fn at(path: &Path) -> DockerConfig {
        DockerConfig {
            path: Some(path.to_owned()),
            document: None,
            reported: Arc::default(),
        }
    }

    fn parse(&self, document: &[u8], origin: &str) -> Option<ConfigFile> {
        match serde_json::from_slice(document) {
            Ok(Value::Object(object)) => {
                let (file, problems) = ConfigFile::of(&object);
                for problem in problems {
                    self.warn(format!("{origin}: {problem}"));
                }
                Some(file)
            }
            Ok(_) => {
                self.warn(format!("{origin}: not a JSON object"));
                None
            }
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

    /// Looks up the credential for a repository of a host in the document.
    async fn look_up(
        &self,
        document: &[u8],
        origin: &str,
        (host, repository): (&str, &str),
    ) -> Option<Credential> {
        let file = self.parse(document, origin)?;
        match file.look_up(host, repository).await {
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
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.insert(problem.clone()) {
            tracing::warn!(
                "{problem}; no credentials are taken from there; `docker login` writes it anew"
            );
        }
    }
}

#[async_trait]
impl Credentials for DockerConfig {
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential> {
        let wanted = (host, image.repository());
        let document = self.document.as_ref().map(Secret::reveal);
        if let Some(text) = document
            && let Some(found) = self
                .look_up(text.as_bytes(), "DOCKER_AUTH_CONFIG", wanted)
                .await
        {
            return Some(found);
        }
        let path = self.path.as_ref()?;
        let shown = path.display();
        match tokio::fs::read(path).await {
            Ok(bytes) => return self.look_up(&bytes, &shown.to_string(), wanted).await,
            Err(error) if is_absent(error.kind()) => {
                tracing::debug!(path = %shown, "no docker configuration");
            }
            Err(error) => self.warn(format!("{shown}: {error}")),
        }
        None
    }
}

fn is_absent(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

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
    async fn null_is_absent_and_an_invalid_entry_affects_only_itself() {
        let good = r#""good":{"username":"u","password":"p"}"#;
        for text in [
            format!(r#"{{"auths":{{"h":null,{good}}},"credsStore":null,"credHelpers":null}}"#),
            format!(r#"{{"auths":{{{good}}},"credHelpers":{{"good":null,"h":7}}}}"#),
            format!(r#"{{"auths":{{"h":{{"auth":null,"password":1}},{good}}}}}"#),
            format!(r#"{{"auths":{{"h":"text",{good}}},"credsStore":["x"]}}"#),
            r#"{"auths":{"good":{"identitytoken":null,"auth":null,"username":"u","password":"p"}}}"#
                .to_owned(),
        ] {
            let (_folder, config) = config(&text);
            let found = ask(&config, "good").await;
            assert_eq!(found, Some(Credential::new("u", "p")), "{text}");
            assert_eq!(ask(&config, "h").await, None, "{text}");
        }
    }

    #[tokio::test]
    async fn the_case_of_names_does_not_matter() {
        let auth = STANDARD.encode("me:pw");
        let (_folder, config) = config(&format!(
            r#"{{"Auths":{{"a":{{"Auth":"{auth}"}},"b":{{"Username":"u","PASSWORD":"p"}}}}}}"#
        ));
        assert_eq!(ask(&config, "a").await, Some(Credential::new("me", "pw")));
        assert_eq!(ask(&config, "b").await, Some(Credential::new("u", "p")));
    }

    #[tokio::test]
    async fn the_entry_with_the_longest_path_wins() {
        let entry = |name: &str| format!(r#"{{"username":"{name}","password":"p"}}"#);
        let (_folder, config) = config(&format!(
            r#"{{"auths":{{"h":{},"h/a":{},"https://h/a/y/":{},"other/a":{}}}}}"#,
            entry("whole"),
            entry("a"),
            entry("y"),
            entry("other"),
        ));
        for (host, repository, user) in [
            ("h", "b", Some("whole")),
            ("h", "a", Some("a")),
            ("h", "a/x", Some("a")),
            ("h", "ab", Some("whole")),
            ("h", "a/y", Some("y")),
            ("h", "a/y/z", Some("y")),
            ("other", "a", Some("other")),
            ("other", "b", None),
        ] {
            let image = ImageRef::parse(&format!("r.example/{repository}")).expect("a name");
            let found = config.get(host, &image).await;
            let expected = user.map(|user| Credential::new(user, "p"));
            assert_eq!(found, expected, "{host}/{repository}");
        }
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
            reported: Arc::default(),
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
