//! Credentials that came with pulls of images, kept in memory only.
//!
//! A pull's credential serves its repository, so that what one tag brought also helps the mounted
//! layers of another. The newest wins. A pull that fails gives back what it replaced. The oldest
//! are dropped when there are too many, and those of an image when the image is removed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Credential, Credentials, Secret};
use soci_oci::reference::ImageRef;

/// Limit for remembered pulls. More than the images of a node.
const MANY: usize = 1024;
/// Size limit in bytes for each part of a login.
const MAX_PART: usize = 16 << 10;

/// The login of a pull request: CRI's `AuthConfig`. Not printable.
#[derive(Clone, Default)]
pub struct PullLogin {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// User name and password as Docker's configuration has them.
    pub auth: String,
    /// The only registry that may get the login; empty means that of the image.
    pub server_address: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// A token that the registry accepts directly.
    pub registry_token: String,
}

impl std::fmt::Debug for PullLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PullLogin(redacted)")
    }
}

impl PullLogin {
    /// The credential in the order of containerd, or `None` if there is none that can be used.
    fn credential(&self) -> Option<Credential> {
        let parts = [
            &self.username,
            &self.password,
            &self.auth,
            &self.server_address,
            &self.identity_token,
            &self.registry_token,
        ];
        if parts.iter().any(|part| part.len() > MAX_PART) {
            return None;
        }
        if !self.username.is_empty() {
            return Some(Credential::new(&self.username, &self.password));
        }
        if !self.identity_token.is_empty() {
            return Some(Credential::Identity(Secret::new(&*self.identity_token)));
        }
        if !self.auth.is_empty() {
            let decoded = String::from_utf8(STANDARD.decode(&self.auth).ok()?).ok()?;
            let (user, password) = decoded.split_once(':')?;
            return Some(Credential::new(user, password.trim_end_matches('\0')));
        }
        let token = &*self.registry_token;
        (!token.is_empty()).then(|| Credential::Bearer(Secret::new(token)))
    }
}

/// The pulls.
#[derive(Clone, Debug, Default)]
pub struct PullKeychain {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next pull.
    next: u64,
    /// In ascending order of their numbers.
    pulls: Vec<Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    number: u64,
    image: ImageRef,
    /// What the runtime calls the image, once it is pulled.
    id: String,
    /// The only host that may get the credential.
    host: String,
    credential: Credential,
}

/// A pull that has begun. It has failed if it is dropped before [`Pull::succeed`].
#[derive(Debug)]
pub struct Pull {
    keychain: PullKeychain,
    image: ImageRef,
    /// The number of the remembered pull, if it has a login.
    number: Option<u64>,
    replaced: Option<Kept>,
}

impl PullKeychain {
    /// A pull of an image begins. Its login is used from now on.
    pub fn begin(&self, image: &ImageRef, login: &PullLogin) -> Pull {
        let image = normal(image);
        let mut pull = Pull {
            keychain: self.clone(),
            image: image.clone(),
            number: None,
            replaced: None,
        };
        let Some(credential) = login.credential() else {
            return pull;
        };
        let host = match host_of(&login.server_address) {
            "" => canonical(image.host()).to_owned(),
            host => canonical(host).to_owned(),
        };
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let before = state.pulls.iter().position(|kept| kept.image == image);
        pull.replaced = before.map(|at| state.pulls.remove(at));
        pull.number = Some(number);
        if state.pulls.len() >= MANY {
            state.pulls.remove(0);
        }
        state.pulls.push(Kept {
            number,
            image,
            id: String::new(),
            host,
            credential,
        });
        pull
    }

    /// An image was removed, named by a reference or by its ID.
    pub fn forget(&self, name: &str) {
        let image = ImageRef::parse(name).ok().map(|image| normal(&image));
        let is_it = |kept: &Kept| {
            Some(&kept.image) == image.as_ref() || (kept.id == name && !name.is_empty())
        };
        self.state().pulls.retain(|kept| !is_it(kept));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pull {
    /// The image is pulled and has this ID.
    pub fn succeed(mut self, id: &str) {
        self.replaced = None;
        let mut state = self.keychain.state();
        match self.number {
            Some(number) => {
                if let Some(kept) = state.pulls.iter_mut().find(|kept| kept.number == number)
                    && id.len() <= MAX_PART
                {
                    id.clone_into(&mut kept.id);
                }
            }
            // It needs no login, and an old one could be refused.
            None => state.pulls.retain(|kept| kept.image != self.image),
        }
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        let Some(replaced) = self.replaced.take() else {
            return;
        };
        let mut state = self.keychain.state();
        let at = (state.pulls.iter()).position(|kept| Some(kept.number) == self.number);
        // If it is gone, a later pull has replaced it.
        if let Some(at) = at {
            state.pulls.remove(at);
            let place = state
                .pulls
                .partition_point(|kept| kept.number < replaced.number);
            state.pulls.insert(place, replaced);
        }
    }
}

#[async_trait]
impl Credentials for PullKeychain {
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential> {
        let host = canonical(host);
        let state = self.state();
        let mut newest = state.pulls.iter().rev();
        let found = newest.find(|kept| {
            kept.host == host
                && canonical(kept.image.host()) == canonical(image.host())
                && kept.image.repository() == image.repository()
        });
        found.map(|kept| kept.credential.clone())
    }
}

/// The image without its tag if it has a digest, as containerd names it.
fn normal(image: &ImageRef) -> ImageRef {
    match image.digest() {
        Some(digest) => image.with_digest(*digest),
        None => image.clone(),
    }
}

/// The host with port of an address, which may be a URL.
fn host_of(address: &str) -> &str {
    let bare = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"))
        .unwrap_or(address);
    bare.split('/').next().unwrap_or(bare)
}

/// One name for the names of Docker Hub.
fn canonical(host: &str) -> &str {
    match host {
        "registry-1.docker.io" | "index.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> ImageRef {
        ImageRef::parse(name).expect("a name")
    }

    fn login(user: &str) -> PullLogin {
        PullLogin {
            username: user.to_owned(),
            password: "p".to_owned(),
            ..PullLogin::default()
        }
    }

    async fn user(keychain: &PullKeychain, host: &str, name: &str) -> Option<String> {
        match keychain.get(host, &image(name)).await? {
            Credential::Password { user, .. } => Some(user),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_newest_pull_of_a_repository_wins() {
        let keychain = PullKeychain::default();
        for (name, name_of_user) in [("r.io/a:1", "one"), ("r.io/a:2", "two"), ("r.io/b:1", "b")] {
            keychain
                .begin(&image(name), &login(name_of_user))
                .succeed("id");
        }
        for (host, name, expected) in [
            ("r.io", "r.io/a:1", Some("two")),
            ("r.io", "r.io/b:9", Some("b")),
            ("r.io", "r.io/c:1", None),
            ("mirror.io", "r.io/a:1", None),
            ("mirror.io", "mirror.io/a:1", None),
        ] {
            let found = user(&keychain, host, name).await;
            assert_eq!(found.as_deref(), expected, "{host} {name}");
        }
        keychain
            .begin(&image("r.io/a:1"), &login("three"))
            .succeed("id");
        let found = user(&keychain, "r.io", "r.io/a:2").await;
        assert_eq!(found.as_deref(), Some("three"));
    }

    #[tokio::test]
    async fn a_failed_pull_gives_back_what_it_replaced() {
        let keychain = PullKeychain::default();
        keychain
            .begin(&image("r.io/a:1"), &login("good"))
            .succeed("");
        let running = keychain.begin(&image("r.io/a:1"), &login("bad"));
        let found = user(&keychain, "r.io", "r.io/a:1").await;
        assert_eq!(found.as_deref(), Some("bad"), "it runs");
        drop(running);
        let found = user(&keychain, "r.io", "r.io/a:1").await;
        assert_eq!(found.as_deref(), Some("good"));
        let first = keychain.begin(&image("r.io/a:1"), &login("first"));
        keychain
            .begin(&image("r.io/a:1"), &login("second"))
            .succeed("");
        drop(first);
        let found = user(&keychain, "r.io", "r.io/a:1").await;
        assert_eq!(found.as_deref(), Some("second"), "a later pull stays");
    }

    #[tokio::test]
    async fn a_login_is_forgotten_with_its_image_or_when_it_is_not_needed() {
        let keychain = PullKeychain::default();
        for (name, id) in [
            ("a:1", "sha256:a"),
            ("b:1", "sha256:b"),
            ("c:1", "sha256:c"),
        ] {
            keychain.begin(&image(name), &login("me")).succeed(id);
        }
        keychain.forget("docker.io/library/a:1");
        keychain.forget("sha256:b");
        keychain
            .begin(&image("c:1"), &PullLogin::default())
            .succeed("sha256:c");
        keychain.forget("");
        for name in ["a:1", "b:1", "c:1"] {
            let found = user(&keychain, "registry-1.docker.io", name).await;
            assert_eq!(found, None, "{name}");
        }
    }

    #[tokio::test]
    async fn the_server_address_says_who_may_get_the_login() {
        for (address, host, expected) in [
            ("", "r.io:5000", true),
            ("https://r.io:5000/v2/", "r.io:5000", true),
            ("r.io:5000", "r.io:5000", true),
            ("https://r.io", "r.io:5000", false),
            ("https://mirror.io", "mirror.io", true),
            ("https://mirror.io", "r.io:5000", false),
            ("", "mirror.io", false),
        ] {
            let keychain = PullKeychain::default();
            let login = PullLogin {
                server_address: address.to_owned(),
                ..login("me")
            };
            keychain.begin(&image("r.io:5000/a:1"), &login).succeed("");
            let found = user(&keychain, host, "r.io:5000/a:1").await;
            assert_eq!(found.is_some(), expected, "{address:?} {host}");
        }
        let keychain = PullKeychain::default();
        let hub = PullLogin {
            server_address: "https://index.docker.io/v1/".to_owned(),
            ..login("me")
        };
        keychain.begin(&image("a"), &hub).succeed("");
        assert!(user(&keychain, "registry-1.docker.io", "a").await.is_some());
    }

    #[test]
    fn the_parts_of_a_login_have_the_order_of_containerd() {
        let of = |login: PullLogin| login.credential();
        let auth = STANDARD.encode("me:secret\0\0");
        let mut login = PullLogin {
            username: "u".to_owned(),
            password: "p".to_owned(),
            auth,
            identity_token: "i".to_owned(),
            registry_token: "r".to_owned(),
            ..PullLogin::default()
        };
        assert_eq!(of(login.clone()), Some(Credential::new("u", "p")));
        login.username.clear();
        assert_eq!(of(login.clone()), Some(Credential::new("", "i")));
        login.identity_token.clear();
        assert_eq!(of(login.clone()), Some(Credential::new("me", "secret")));
        "hunter2".clone_into(&mut login.auth);
        assert_eq!(of(login.clone()), None);
        login.auth.clear();
        let token = Credential::Bearer(Secret::new("r"));
        assert_eq!(of(login.clone()), Some(token));
        login.registry_token = "x".repeat(MAX_PART + 1);
        assert_eq!(of(login.clone()), None);
        assert!(!format!("{login:?}").contains('x'));
    }

    #[tokio::test]
    async fn the_oldest_pulls_make_room() {
        let keychain = PullKeychain::default();
        for n in 0..=MANY {
            let name = format!("r.io/{n}:1");
            keychain.begin(&image(&name), &login("me")).succeed("");
        }
        assert_eq!(user(&keychain, "r.io", "r.io/0:1").await, None);
        assert!(user(&keychain, "r.io", "r.io/1:1").await.is_some());
        assert_eq!(keychain.state().pulls.len(), MANY);
    }
}
