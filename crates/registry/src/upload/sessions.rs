//! Tracks unfinished uploads, so that they can be canceled.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::{Method, Url};
use tokio::task::JoinSet;

use super::super::{Registry, RegistryError, auth::Scope, endpoint::Call};
use soci_oci::reference::ImageRef;

/// Timeout for canceling all uploads together. A user may be waiting for the program to exit.
const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum number of tracked uploads. The registry cleans up older ones itself.
const MANY: usize = 64;

/// The uploads of a client, in order of their start.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: Mutex<Open>,
    /// Takes back uploads that began too late. Dropping this value stops that.
    late: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// Number of times that the uploads were canceled.
    round: u64,
    uploads: BTreeMap<u64, (ImageRef, Url)>,
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state before an upload, for [`Registry::began`].
    pub(super) fn round(&self) -> u64 {
        self.open().round
    }

    /// Records an upload. Returns `None` if the uploads of this round were canceled.
    fn began(&self, round: u64, image: &ImageRef, url: &Url) -> Option<u64> {
        let mut open = self.open();
        if open.round != round {
            return None;
        }
        open.next += 1;
        let number = open.next;
        open.uploads.insert(number, (image.clone(), url.clone()));
        if open.uploads.len() > MANY {
            open.uploads.pop_first();
        }
        Some(number)
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

    /// Cancels all unfinished uploads, including those whose first request is not answered yet.
    /// Later uploads are not affected. If the registry does not respond, it cleans them up itself
    /// later.
    pub async fn cancel_uploads(&self) {
        let left = {
            let mut open = self.sessions.open();
            open.round += 1;
            std::mem::take(&mut open.uploads)
        };
        let farewells = left.into_values();
        let farewells =
            farewells.map(|(image, url)| async move { self.take_back(&image, url).await });
        let all = async {
            futures_util::future::join_all(farewells).await;
            let next = || poll_fn(|context| self.sessions.late().poll_join_next(context));
            while next().await.is_some() {}
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::debug!("uploads are left to the registry");
        }
    }

    /// Records an upload. Pass the returned number to [`Sessions::ended`]. If the uploads were
    /// canceled since `round`, cancels it in the background, because the caller may be dropped.
    pub(super) fn began(
        &self,
        round: u64,
        image: &ImageRef,
        url: &Url,
    ) -> Result<u64, RegistryError> {
        self.sessions.began(round, image, url).ok_or_else(|| {
            // The client of the task must not own the task.
            let client = self.with_own_uploads();
            let (owned, url) = (image.clone(), url.clone());
            let mut late = self.sessions.late();
            while late.try_join_next().is_some() {}
            late.spawn(async move { client.take_back(&owned, url).await });
            RegistryError::Canceled {
                image: image.to_string(),
            }
        })
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
