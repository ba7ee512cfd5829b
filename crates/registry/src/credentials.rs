//! Registry credentials and where they come from.
//!
//! Credentials come from several sources; the first source that has one for the host wins
//! ([`Chain`]). A source that fails (unreadable file, no connection) logs the failure and returns
//! no credential, so that one broken source does not fail a pull. Secrets cannot be printed.

use std::{collections::BTreeSet, fmt, sync::Arc};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

mod docker;
mod helper;
mod kubelet;
mod kubernetes;
mod program;
mod pulls;

pub use docker::DockerConfig;
pub use kubelet::{KubeletPlugins, PluginOptions};
pub use kubernetes::ClusterSecrets;
pub use pulls::{Pull, PullKeychain, PullLogin};

use soci_oci::reference::ImageRef;

/// A string that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a string.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The string, for use in requests only.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// A credential for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A user name and password.
    Password {
        /// User name; never empty.
        user: String,
        /// Password, or a token used as one.
        password: Secret,
    },
    /// An OAuth2 refresh token.
    Identity(Secret),
    /// A token that the registry accepts directly.
    Bearer(Secret),
}

impl Credential {
    /// A password, or an identity token if the name is empty (the convention of Docker's
    /// configuration).
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

    /// Identifies the credential without revealing it. Equal credentials have equal fingerprints.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        // No user name starts with a space, so the kinds cannot collide.
        let (user, secret) = match self {
            Credential::Password { user, password } => (user.as_str(), password),
            Credential::Identity(token) => ("", token),
            Credential::Bearer(token) => (" bearer", token),
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
    /// Returns the credential for `host` (with port) to access `image`, or `None` if this source
    /// has none. For a mirror, `host` is the mirror's own name. Called for every challenge, so that
    /// a changed password takes effect.
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential>;

    /// Says that the registry refuses access with what [`Credentials::get`] returned last, or
    /// without a credential if it returned none. A source that answers from memory asks anew for
    /// the next request.
    fn refused(&self, _host: &str, _image: &ImageRef) {}
}

/// Has no credentials.
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
    /// Host with port, as in request URLs.
    pub host: String,
    /// The credential.
    pub credential: Credential,
}

#[async_trait]
impl Credentials for ForHost {
    async fn get(&self, host: &str, _image: &ImageRef) -> Option<Credential> {
        (host == self.host).then(|| self.credential.clone())
    }
}

/// One credential for one registry. Only the hosts that serve this registry receive it.
#[derive(Clone, Debug)]
pub struct ForRegistry {
    /// The registry as references name it, for example `docker.io`.
    pub registry: String,
    /// The hosts (with port) that may receive the credential.
    pub hosts: BTreeSet<String>,
    /// The credential.
    pub credential: Credential,
}

#[async_trait]
impl Credentials for ForRegistry {
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential> {
        let known = image.host() == self.registry && self.hosts.contains(host);
        known.then(|| self.credential.clone())
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

    fn refused(&self, host: &str, image: &ImageRef) {
        for source in &self.0 {
            source.refused(host, image);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Credential::Bearer(Secret::new("hunter2"))
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
