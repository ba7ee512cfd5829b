//! Uploads that were begun and have not become blobs, so that they can be taken back.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::{Method, Url};

use super::super::{Registry, auth::Scope, endpoint::Call};
use crate::reference::ImageRef;

/// How long all the farewells together may take: somebody waits for the program to end.
const PATIENCE: Duration = Duration::from_secs(3);
/// More than this many are left to the registry, which sweeps them in its time.
const MANY: usize = 64;

/// The uploads of a client. In order of their beginning.
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

    /// Notes an upload; the number is for [`Sessions::ended`].
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

    /// It has become a blob.
    pub(super) fn ended(&self, number: u64) {
        self.open().uploads.remove(&number);
    }
}

impl Registry {
    /// Takes back the uploads that were begun and did not end. A registry that does not answer sweeps them itself.
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

    /// Takes one upload back. Whether that works changes nothing for who does not need it.
    pub(super) async fn take_back(&self, image: &ImageRef, url: Url) {
        let Ok(endpoint) = self.origin(image) else {
            return;
        };
        let scope = Scope::push(image.repository(), None);
        let answer = endpoint.send(&Call::new(Method::DELETE, url), &scope).await;
        tracing::debug!(%image, ok = answer.is_ok(), "upload taken back");
    }
}
