//! Content stores: an OCI layout folder, an archive of one, a registry, or containerd's store.
//!
//! A [`ContentStore`] returns blobs by digest and stores new ones. Large blobs are never held in
//! memory: [`ContentStore::open`] returns a streaming reader that blocks and is therefore for plain
//! threads, and [`Content::File`] is streamed into the store. To load a whole blob, use
//! [`ContentStore::read`], which enforces a limit and verifies the digest.

#![warn(missing_docs)]

pub mod archive;
mod archive_writer;
mod budget;
mod checked;
pub mod containerd;
pub mod docker_archive;
pub mod durable;
mod error;
mod graph;
mod ingest;
pub mod layout;
pub mod local;
mod reachable;
pub mod registry;
mod stacked;
mod upload;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;

pub use archive_writer::write_archive;
pub use budget::{DocumentBudget, MAX_DEPTH, MAX_IMAGE_DOCUMENTS};
pub use checked::Checked;
pub use error::{StoreError, errno};
pub use graph::{Document, Limits, ReachableError, Traversal};
pub use reachable::reachable;
pub use stacked::Stacked;
pub use upload::FromStore;

use soci_oci::descriptor::Descriptor;
use soci_oci::digest::{Digest, VerifyingReader};

/// Labels of a blob, by key.
pub type Labels = BTreeMap<String, String>;

/// A blob opened for reading, positioned at its start.
pub struct Blob {
    /// Its size in bytes.
    pub size: u64,
    /// Reads the blob. Reads may block, so use it on plain threads only.
    pub reader: Box<dyn Read + Send>,
}

impl Blob {
    /// Verifies the bytes against a descriptor while they are read. A mismatch is a read error.
    pub fn verified(self, descriptor: &Descriptor) -> Result<impl Read + Send + use<>, StoreError> {
        let Self { size, reader } = self;
        if size != descriptor.size {
            let digest = descriptor.digest;
            return Err(StoreError::Size {
                digest,
                expected: descriptor.size,
                actual: size,
            });
        }
        Ok(VerifyingReader::new(reader, descriptor.digest, size))
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The bytes of a new blob.
#[derive(Debug)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A file, from start to end.
    File(File),
}

impl Content {
    /// Returns a reader over the bytes.
    pub(crate) fn into_reader(self) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(io::Cursor::new(bytes))),
            Self::File(mut file) => {
                io::Seek::rewind(&mut file)?;
                Ok(Box::new(file))
            }
        }
    }
}

/// The result of storing a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The blob was stored.
    Stored,
    /// The blob was already present.
    AlreadyThere,
}

/// A store of blobs, addressed by digest.
///
/// A blob that was stored can be read from the same store immediately. Implementations verify the
/// digest and size of a new blob and do not keep partially written blobs.
#[async_trait]
pub trait ContentStore: Send + Sync + fmt::Debug {
    /// Returns the size of a blob in bytes, or `None` if it is missing.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// Opens a blob. The reader may block, so use it outside the runtime's threads.
    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError>;

    /// Stores a blob under the digest of its descriptor.
    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError>;

    /// Adds labels to a blob and keeps its other labels. Stores without garbage collection do
    /// nothing.
    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError>;

    /// Removes a blob; a missing blob is not an error. Stores that only grow do nothing.
    async fn delete(&self, _digest: &Digest) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns known repositories on this registry host that may contain the blob.
    async fn repositories(&self, _: &Digest, _host: &str) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// Reports that a blob had wrong bytes. Returns `true` if another source may have the right
    /// bytes; the next [`open`](Self::open) then uses that source.
    fn distrust(&self, _: &Digest) -> bool {
        false
    }

    /// Lists all blobs and their sizes in bytes.
    async fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        Err(StoreError::Unlisted)
    }

    /// Reads a range of a blob into memory. Only the length is checked, not the digest.
    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        let blob = self.open(digest).await?;
        let digest = *digest;
        blocking(move || read_part(blob, digest, &range)).await
    }

    /// Reads a blob of at most `limit` bytes into memory and verifies its digest.
    async fn read(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let blob = self.open(digest).await?;
        let digest = *digest;
        blocking(move || read_whole(blob, digest, limit)).await
    }
}

fn read_part(blob: Blob, digest: Digest, range: &Range<u64>) -> Result<Bytes, StoreError> {
    let Blob { size, mut reader } = blob;
    let mut part = Vec::new();
    let length = range.end.saturating_sub(range.start);
    io::copy(&mut reader.by_ref().take(range.start), &mut io::sink())
        .and_then(|_| reader.take(length).read_to_end(&mut part))
        .map_err(unreadable(digest))?;
    if part.len() as u64 != length {
        return Err(StoreError::Size {
            digest,
            expected: range.end,
            actual: size,
        });
    }
    Ok(part.into())
}

fn read_whole(blob: Blob, digest: Digest, limit: u64) -> Result<Bytes, StoreError> {
    let Blob { size, mut reader } = blob;
    if size > limit {
        return Err(StoreError::TooLarge {
            digest,
            size,
            limit,
        });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    reader
        .by_ref()
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable(digest))?;
    checked(bytes.into(), digest, size)
}

/// The error for a failed read. Some stores learn only then that they do not have the blob.
fn unreadable(digest: Digest) -> impl FnOnce(io::Error) -> StoreError {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound(digest),
        _ => StoreError::io("read", Path::new(&digest.to_string()))(error),
    }
}

/// Returns the bytes if they have the expected size and digest.
pub(crate) fn checked(bytes: Bytes, digest: Digest, size: u64) -> Result<Bytes, StoreError> {
    let actual = bytes.len() as u64;
    if actual != size {
        return Err(StoreError::Size {
            digest,
            expected: size,
            actual,
        });
    }
    let mut verifier = soci_oci::digest::Verifier::new(digest);
    verifier.update(&bytes);
    verifier.finish()?;
    Ok(bytes)
}

/// Whether the reader yields exactly the bytes of the blob, and nothing after them.
pub(crate) fn is_blob(reader: impl Read, blob: &Descriptor) -> bool {
    let mut reader = VerifyingReader::new(reader, blob.digest, blob.size);
    io::copy(&mut reader, &mut io::sink()).is_ok()
}

/// Runs file I/O on the runtime's blocking threads. A panic of the work is passed on.
pub async fn blocking<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // The task is never aborted, so this is a panic: propagate it.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
