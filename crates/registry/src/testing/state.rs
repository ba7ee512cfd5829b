//! The content and the recorded requests of the test registry, shared by its connections.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    ops::Range,
    path::PathBuf,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use super::{access::Token, fault::Script, setup::Setup};
use soci_oci::digest::Digest;

/// A recorded request. Requests are in order of arrival.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET`, `HEAD`, `POST`, ...
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// The raw query.
    pub query: String,
    /// The requested `Range` with exclusive end.
    pub range: Option<Range<u64>>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Host` header.
    pub host: String,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// The `Content-Type` header.
    pub content_type: String,
    /// Number of received bytes of the request body.
    pub received: u64,
    /// Status of the response. 0 if there was none.
    pub status: u16,
}

/// Content of a blob.
#[derive(Clone)]
pub(super) enum Content {
    Memory(Bytes),
    File(PathBuf, u64),
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(_, size) => *size,
        }
    }
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) blobs: HashMap<Digest, Content>,
    /// The blobs of each repository.
    pub(super) links: BTreeSet<(String, Digest)>,
    pub(super) manifests: BTreeMap<(String, Digest), (String, Bytes)>,
    pub(super) tags: BTreeMap<(String, String), Digest>,
    pub(super) uploads: HashMap<String, Vec<u8>>,
    pub(super) uploads_begun: u64,
    pub(super) tokens: Vec<Token>,
    pub(super) tokens_issued: u64,
    /// Whether the token endpoint has moved.
    pub(super) tokens_moved: bool,
    /// Replaces the password of the setup.
    pub(super) password: Option<String>,
    /// Signed addresses: signature → remaining uses.
    pub(super) signatures: HashMap<String, u32>,
    pub(super) script: Script,
    pub(super) seen: Vec<Seen>,
    pub(super) sent: HashMap<Digest, u64>,
    pub(super) in_flight: usize,
    pub(super) most_in_flight: usize,
    pub(super) connections: u64,
}

pub(super) struct Shared {
    pub(super) setup: Setup,
    pub(super) address: SocketAddr,
    inner: Mutex<Inner>,
    /// Whether connections are currently accepted. `set_online` waits for changes.
    accepting: (Mutex<bool>, Condvar),
}

impl Shared {
    pub(super) fn new(setup: Setup, address: SocketAddr) -> Shared {
        Shared {
            setup,
            address,
            inner: Mutex::default(),
            accepting: (Mutex::new(false), Condvar::new()),
        }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn base_url(&self) -> String {
        let scheme = if self.setup.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub(super) fn set_accepting(&self, accepting: bool) {
        let (flag, changed) = &self.accepting;
        *flag.lock().unwrap_or_else(PoisonError::into_inner) = accepting;
        changed.notify_all();
    }

    pub(super) fn wait_accepting(&self, wanted: bool) {
        let (flag, changed) = &self.accepting;
        let flag = flag.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = changed.wait_timeout_while(flag, Duration::from_secs(10), |accepting| {
            *accepting != wanted
        });
        let (flag, _) = wait.unwrap_or_else(PoisonError::into_inner);
        assert!(*flag == wanted, "the test registry did not switch in time");
    }
}

impl Inner {
    pub(super) fn manifest(&self, repository: &str, object: &str) -> Option<(String, Bytes)> {
        let digest = match object.parse::<Digest>() {
            Ok(digest) => digest,
            Err(_) => *self.tags.get(&(repository.to_owned(), object.to_owned()))?,
        };
        self.manifests
            .get(&(repository.to_owned(), digest))
            .cloned()
    }

    pub(super) fn tags(&self, repository: &str) -> Vec<String> {
        let of_name = self.tags.keys().filter(|(name, _)| name == repository);
        of_name.map(|(_, tag)| tag.clone()).collect()
    }
}

/// Orders for the registry's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Serve,
    Refuse,
    Stop,
}
