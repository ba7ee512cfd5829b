//! Reads documents and zTOCs of images from the local folder, containerd, or the registry, in this
//! order.
//!
//! containerd usually has the manifest and configuration when it requests a layer, and often the
//! index and zTOCs. Requests to containerd have a short timeout, and its errors are not fatal. Only
//! `soci` adds content to the local folder. The layer store has everything that a mounted layer
//! needs.

#![allow(unsafe_code, reason = "zTOCs are mapped: `map`")]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::{Digest, Verifier};
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::reference::ImageRef;
use soci_registry::fetch::{FetchError, Fetcher};
use soci_registry::{Registry, RegistryError};
use soci_store::containerd::Containerd;
use soci_store::layout::Layout;
use soci_store::{ContentStore, StoreError};
use tokio::io::AsyncWriteExt;
use tracing::{debug, warn};

use crate::sync::Mutex;

/// A write that takes longer lets bytes collect in the socket. They arrive at once after that.
const SLOW_WRITE: Duration = Duration::from_millis(10);
const BUFFERED: Duration = Duration::from_millis(250);
/// Timeout of a connection to containerd.
const CONTAINERD_PATIENCE: Duration = Duration::from_secs(2);
/// How long to skip containerd after a failed connection or a timeout.
const CONTAINERD_PAUSE: Duration = Duration::from_secs(30);
/// Timeout for copying a blob from containerd over its local socket. After it, the registry is
/// asked.
const COPY_PATIENCE: Duration = Duration::from_secs(10);

/// Why a document or zTOC could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    /// The registry did not return it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The download failed.
    #[error("fetching {digest}")]
    Fetch {
        /// The blob.
        digest: Digest,
        /// The cause.
        #[source]
        source: FetchError,
    },
    /// Larger than the limit.
    #[error("{digest} is {size} bytes, more than {limit}")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// The size in its descriptor.
        size: u64,
        /// The maximum size.
        limit: u64,
    },
    /// The local folder failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A temporary file failed.
    #[error("writing {digest}")]
    Io {
        /// The blob.
        digest: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl ContentError {
    /// Whether the content does not exist or is invalid, so that a retry soon is useless.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Registry(error) => matches!(
                error,
                RegistryError::NotFound { .. }
                    | RegistryError::TooLarge { .. }
                    | RegistryError::WrongBytes { .. }
                    | RegistryError::BadDocument { .. }
                    | RegistryError::BrokenList { .. }
                    | RegistryError::Host(_)
            ),
            Self::TooLarge { .. } => true,
            Self::Fetch { .. } | Self::Store(_) | Self::Io { .. } => false,
        }
    }
}

/// An image, and its namespace in containerd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) image: &'a ImageRef,
}

/// The kinds of documents. Registries serve them at different URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// Image manifest or SOCI index.
    Manifest,
    /// Image configuration or prefetch artifact.
    Blob,
}

/// Maps a file that is no longer modified: it is unnamed, or named by its digest.
fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // JUSTIFICATION: zTOCs are large and read in part.
    // SAFETY: the file is not modified while it is mapped. Either it is private to this process, or
    // it is a blob of a content store, which replaces blobs as a whole and never writes to them.
    let mapped = unsafe { memmap2::Mmap::map(file) }?;
    Ok(Bytes::from_owner(mapped))
}

/// The sources of documents and zTOCs.
#[derive(Debug)]
pub struct Content {
    own: Layout,
    registry: Registry,
    containerd: PathBuf,
    connections: Mutex<Connections>,
    keeps: bool,
}

#[derive(Debug, Default)]
struct Connections {
    by_namespace: HashMap<String, Containerd>,
    failed: Option<Instant>,
}

impl Content {
    /// Creates content from the folder `own`, containerd at its socket, and registries.
    pub fn new(own: Layout, registry: Registry, containerd: PathBuf) -> Self {
        Self {
            own,
            registry,
            containerd,
            connections: Mutex::default(),
            keeps: false,
        }
    }

    /// Keeps the layers that are downloaded whole in containerd's content store.
    #[must_use]
    pub fn keeping_layers(self) -> Self {
        Self {
            keeps: true,
            ..self
        }
    }

    /// Where to keep the layers of an image, if they are kept and containerd is reachable.
    pub(crate) async fn keeper(&self, place: Place<'_>) -> Option<Containerd> {
        if self.keeps {
            self.containerd(place.namespace).await
        } else {
            None
        }
    }

    /// Reads a document. The size in the descriptor may be 0 (unknown).
    pub(crate) async fn document(
        &self,
        place: Place<'_>,
        what: Document,
        wanted: &Descriptor,
    ) -> Result<Bytes, ContentError> {
        let digest = &wanted.digest;
        match self.own.read(digest, MAX_DOCUMENT_BYTES).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) if error.is_not_found() => {}
            Err(error) => debug!(digest = %digest, error = %error, "own copy cannot be used"),
        }
        if let Some(containerd) = self.containerd(place.namespace).await {
            let read = containerd.read(digest, MAX_DOCUMENT_BYTES);
            match self.soon(CONTAINERD_PATIENCE, read).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => debug!(digest = %digest, error = %error, "not taken from containerd"),
            }
        }
        let bytes = match what {
            Document::Manifest => self.registry.manifest(place.image, digest).await?.bytes,
            Document::Blob => {
                self.registry
                    .blob_bytes(place.image, wanted, MAX_DOCUMENT_BYTES)
                    .await?
            }
        };
        Ok(bytes)
    }

    /// The manifests in the registry that refer to a manifest and have this artifact type.
    pub(crate) async fn referrers(
        &self,
        place: Place<'_>,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, ContentError> {
        let listed = self.registry.referrers(place.image, subject, artifact_type);
        Ok(listed.await?)
    }

    /// Reads a blob as a mapped file, so that it is never in memory as a whole. The caller verifies
    /// the digest. Calls `came` with the length of each chunk that the registry sends.
    pub(crate) async fn blob(
        &self,
        place: Place<'_>,
        wanted: &Descriptor,
        limit: u64,
        came: impl Fn(u64),
    ) -> Result<Bytes, ContentError> {
        let Descriptor { digest, size, .. } = wanted;
        let (digest, size) = (*digest, *size);
        if size > limit {
            return Err(ContentError::TooLarge {
                digest,
                size,
                limit,
            });
        }
        let io = |source| ContentError::Io { digest, source };
        if self.own.size(&digest).await.ok().flatten() == Some(size) {
            return map(&self.own.open_file(&digest)?).map_err(io);
        }
        if let Some(containerd) = self.containerd(place.namespace).await
            && let Ok(Some(found)) = self
                .soon(CONTAINERD_PATIENCE, containerd.size(&digest))
                .await
            && found == size
        {
            match self.copy(&containerd, digest).await {
                Ok(file) => return map(&file).map_err(io),
                Err(error) => debug!(digest = %digest, error = %error, "not taken from containerd"),
            }
        }
        let file = self.fetch(place, wanted, came).await?;
        map(&file).map_err(io)
    }

    /// Copies a blob of containerd to an unnamed file.
    async fn copy(&self, containerd: &Containerd, digest: Digest) -> Result<File, ContentError> {
        let io = |source| ContentError::Io { digest, source };
        let mut file = self.temporary().map_err(io)?;
        let copy = async {
            let mut blob = containerd.open(&digest).await?;
            // Use a blocking thread of the runtime, which has many. It ends by itself when no data
            // arrives.
            let copied = tokio::task::spawn_blocking(move || {
                io::copy(&mut blob.reader, &mut file)?;
                Ok::<_, io::Error>(file)
            });
            let copied = copied.await.map_err(io::Error::other).flatten();
            Ok(copied)
        };
        self.soon(COPY_PATIENCE, copy).await?.map_err(io)
    }

    /// Awaits a response of containerd for at most `limit`. After a timeout, containerd is skipped
    /// for [`CONTAINERD_PAUSE`].
    async fn soon<T>(
        &self,
        limit: Duration,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let answer = tokio::time::timeout(limit, asked).await;
        answer.unwrap_or_else(|_| {
            warn!(
                seconds = limit.as_secs(),
                "containerd does not answer: its content is left alone for a while"
            );
            let mut known = self.connections.lock();
            known.by_namespace.clear();
            known.failed = Some(Instant::now());
            Err(StoreError::Deadline)
        })
    }

    /// Downloads a blob from the registry to an unnamed file. Wrong bytes of a mirror are downloaded
    /// once more, from the registry itself.
    async fn fetch(
        &self,
        place: Place<'_>,
        wanted: &Descriptor,
        came: impl Fn(u64),
    ) -> Result<File, ContentError> {
        let digest = wanted.digest;
        let fetcher = self.registry.blob(place.image, wanted)?;
        let (file, good) = self.fetch_once(&*fetcher, digest, &came).await?;
        if good || !fetcher.distrust() {
            return Ok(file);
        }
        warn!(
            digest = %digest,
            "a mirror sent bytes with the wrong digest; downloading them again from the registry itself"
        );
        let (file, _) = self.fetch_once(&*fetcher, digest, &came).await?;
        Ok(file)
    }

    /// Downloads a blob, and says whether it has the right digest.
    async fn fetch_once(
        &self,
        fetcher: &dyn Fetcher,
        digest: Digest,
        came: impl Fn(u64),
    ) -> Result<(File, bool), ContentError> {
        let io = |source| ContentError::Io { digest, source };
        let fetch = |source| ContentError::Fetch { digest, source };
        let mut file = tokio::fs::File::from_std(self.temporary().map_err(io)?);
        let mut verifier = Verifier::new(digest);
        if fetcher.size() > 0 {
            let mut body = fetcher.fetch(0..fetcher.size()).await.map_err(fetch)?;
            let mut buffered_until = Instant::now();
            while let Some(chunk) = body.next().await.map_err(fetch)? {
                let arrived = Instant::now();
                // Bytes from a buffer do not show the rate of the link.
                let is_fresh = arrived >= buffered_until;
                came(if is_fresh { chunk.len() as u64 } else { 0 });
                verifier.update(&chunk);
                file.write_all(&chunk).await.map_err(io)?;
                if arrived.elapsed() > SLOW_WRITE {
                    buffered_until = Instant::now() + BUFFERED;
                }
            }
        }
        file.flush().await.map_err(io)?;
        Ok((file.into_std().await, verifier.finish().is_ok()))
    }

    /// An unnamed file on the disk of the store. It is deleted when it is closed.
    fn temporary(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.own.root())
    }

    /// containerd's content store, or `None` if it is not reachable.
    async fn containerd(&self, namespace: &str) -> Option<Containerd> {
        {
            let known = self.connections.lock();
            if let Some(store) = known.by_namespace.get(namespace) {
                return Some(store.clone());
            }
            if known
                .failed
                .is_some_and(|at| at.elapsed() < CONTAINERD_PAUSE)
            {
                return None;
            }
        }
        let address = self.containerd.to_string_lossy();
        let connected = if self.containerd.exists() {
            Containerd::connect(&address, namespace, Some(CONTAINERD_PATIENCE))
                .await
                .ok()
        } else {
            None
        };
        let mut known = self.connections.lock();
        match connected {
            Some(store) => {
                known
                    .by_namespace
                    .insert(namespace.to_owned(), store.clone());
                Some(store)
            }
            None => {
                debug!(address = %address, "containerd is not reachable");
                known.failed = Some(Instant::now());
                None
            }
        }
    }
}
