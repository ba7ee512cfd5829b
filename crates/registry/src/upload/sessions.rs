//! Tracks unfinished uploads, so that they can be canceled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::{Method, Url};

use super::super::{Registry, auth::Scope, endpoint::Call};
use soci_oci::reference::ImageRef;

/// Timeout for canceling all uploads together. A user may be waiting for the program to exit.
const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum number of tracked uploads. The registry cleans up older ones itself.
const MANY: usize = 64;

/// The uploads of a client, in order of their start.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    uploads: BTreeMap<u64, (ImageRef, Url)>,
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an upload. Pass the returned number to [`Sessions::ended`].
    pub(super) fn began(&self, image: &ImageRef, url: &Url) -> u64 {
        let mut open = self.open();
        open.next += 1;
        let number = open.next;
        open.uploads.insert(number, (image.clone(), url.clone()));
        if open.uploads.len() > MANY {
            open.uploads.pop_first();
        }
        number
    }

    /// Removes an upload that has become a blob.
    pub(super) fn ended(&self, number: u64) {
        self.open().uploads.remove(&number);
    }
}

impl Registry {
    /// Returns the same client, except that it cancels only uploads of its own. Use it for one of
    /// several jobs that share connections and tokens.
    #[must_use]
    pub fn with_own_uploads(&self) -> Registry {
        Registry {
            sessions: Arc::default(),
            ..self.clone()
        }
    }

    /// Cancels all unfinished uploads. If the registry does not respond, it cleans them up itself
    /// later.
    pub async fn cancel_uploads(&self) {
        let left = std::mem::take(&mut self.sessions.open().uploads);
        let farewells = left.into_values();
        let farewells =
            farewells.map(|(image, url)| async move { self.take_back(&image, url).await });
        let all = futures_util::future::join_all(farewells);
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::debug!("uploads are left to the registry");
        }
    }

    /// Cancels one upload. Failures are only logged, because nothing depends on the result.
    pub(super) async fn take_back(&self, image: &ImageRef, url: Url) {
        let Ok(endpoint) = self.origin(image) else {
            return;
        };
        let scope = Scope::push(image.repository(), None);
        let answer = endpoint.send(&Call::new(Method::DELETE, url), &scope).await;
        tracing::debug!(%image, ok = answer.is_ok(), "upload taken back");
    }
}
