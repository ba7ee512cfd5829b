//! Credentials that came with pulls of images, kept in memory only.
//!
//! A pull's credential serves its repository, so that what one tag brought also helps the mounted
//! layers of another. The newest wins. The login of a pull that fails is dropped. The oldest are
//! dropped when there are too many, and those of an image when the image is removed.

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
    /// Pulls without an outcome, in ascending order of their numbers. Kept apart, so that one that
    /// fails leaves no trace.
    running: Vec<Kept>,
    /// Pulls that succeeded, one of each image, in ascending order of their numbers.
    pulls: Vec<Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    number: u64,
    image: ImageRef,
    /// What the runtime calls the image; empty until it is pulled.
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
}

impl PullKeychain {
    /// A pull of an image begins. Its login is used from now on.
    pub fn begin(&self, image: &ImageRef, login: &PullLogin) -> Pull {
        let image = normal(image);
        let mut pull = Pull {
            keychain: self.clone(),
            image: image.clone(),
            number: None,
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
        pull.number = Some(number);
        if state.running.len() >= MANY {
            state.running.remove(0);
        }
        state.running.push(Kept {
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

impl State {
    /// Takes the login of a running pull.
    fn take(&mut self, number: u64) -> Option<Kept> {
        let at = (self.running.iter()).position(|kept| kept.number == number)?;
        Some(self.running.remove(at))
    }

    /// Remembers a pull that succeeded, unless a later one of the same image has.
    fn keep(&mut self, pull: Kept) {
        let is_later = |kept: &Kept| kept.image == pull.image && kept.number > pull.number;
        if self.pulls.iter().any(is_later) {
            return;
        }
        self.pulls.retain(|kept| kept.image != pull.image);
        if self.pulls.len() >= MANY {
            self.pulls.remove(0);
        }
        let place = (self.pulls).partition_point(|kept| kept.number < pull.number);
        self.pulls.insert(place, pull);
    }
}

impl Pull {
    /// The image is pulled and has this ID.
    pub fn succeed(self, id: &str) {
        let mut state = self.keychain.state();
        match self.number {
            Some(number) => {
                if let Some(mut pull) = state.take(number) {
                    if id.len() <= MAX_PART {
                        id.clone_into(&mut pull.id);
                    }
                    state.keep(pull);
                }
            }
            // It needs no login, and an old one could be refused.
            None => state.pulls.retain(|kept| kept.image != self.image),
        }
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            // It is still there only if the pull has failed.
            self.keychain.state().take(number);
        }
    }
}

#[async_trait]
impl Credentials for PullKeychain {
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential> {
        let host = canonical(host);
        let exact = normal(image);
        let is_for = |kept: &&Kept| {
            kept.host == host
                && canonical(kept.image.host()) == canonical(image.host())
                && kept.image.repository() == image.repository()
        };
        let state = self.state();
        let running = || state.running.iter().rev().filter(is_for);
        let found = running()
            .find(|kept| kept.image == exact)
            .or_else(|| running().next())
            .or_else(|| state.pulls.iter().rev().find(is_for));
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
mod tests;
