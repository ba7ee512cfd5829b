//! Where blobs lie: an OCI layout folder, an archive of one, or containerd's content store.
//!
//! A [`ContentStore`] gives blobs by digest and takes new ones. Large blobs are never held in
//! memory: [`ContentStore::open`] gives a reader that streams (for plain threads: it blocks), and
//! [`Content::File`] is streamed in. What is read as a whole goes through [`ContentStore::read`],
//! which has a limit and checks the digest.

pub mod archive;
mod archive_writer;
mod budget;
pub mod containerd;
pub mod docker_archive;
mod ingest;
pub mod layout;
pub mod local;
mod reachable;
pub mod registry;
mod stacked;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use archive_writer::write_archive;
pub use budget::{DocumentBudget, MAX_DEPTH, MAX_IMAGE_DOCUMENTS};
pub use reachable::{ReachableError, reachable};
pub use stacked::Stacked;

use crate::descriptor::Descriptor;
use crate::digest::{Digest, DigestMismatch, VerifyingReader};
use crate::registry::RegistryError;

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such blob.
    #[error("content digest {0}: not found")]
    NotFound(Digest),
    /// No such image in containerd.
    #[error("image {0:?}: not found")]
    NoImage(String),
    /// The blob is not what its digest says.
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
    /// The blob is not as long as it should be.
    #[error("blob {digest} has {actual} bytes, expected {expected}")]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes that its descriptor states.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// A document that is too large to be one.
    #[error("blob {digest} has {size} bytes, more than {limit} that may be read at once")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its bytes.
        size: u64,
        /// The most that the caller accepts.
        limit: u64,
    },
    /// An image whose documents are too large together.
    #[error(
        "manifests and indexes of image {image} have more than {limit} bytes together; select fewer platforms"
    )]
    TooManyDocuments {
        /// Its root.
        image: Digest,
        /// The most bytes that they may have.
        limit: u64,
    },
    /// A manifest or index that lies in too many indexes.
    #[error(
        "{0} is nested more than {MAX_DEPTH} indexes deep; use an image with fewer levels of indexes"
    )]
    TooDeep(Digest),
    /// The file system refused; worded as Go does.
    #[error("{action} {}: {}", path.display(), errno(cause))]
    Io {
        /// The system call.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why; not a source, since the message says it in Go's words.
        cause: io::Error,
    },
    /// An archive that is no tar, or one that cannot be used.
    #[error("{0}")]
    Archive(&'static str),
    /// A store that does not know what it has.
    #[error("the store cannot list its blobs")]
    Unlisted,
    /// A store that cannot be written.
    #[error("{} is only read", .0.display())]
    ReadOnly(PathBuf),
    /// A name in a registry that stands for something else.
    #[error("{image} is no image: the registry says {media_type:?}")]
    NotAnImage {
        /// The name.
        image: String,
        /// What it stands for.
        media_type: String,
    },
    /// A registry did not do what it was asked.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// containerd answered with an error.
    #[error("{action}: {message}")]
    Containerd {
        /// What was asked for.
        action: &'static str,
        /// The number of gRPC's status.
        code: i32,
        /// What containerd says.
        message: String,
    },
    /// containerd cannot be reached.
    #[error(
        "connection error: desc = \"transport: Error while dialing: dial unix://{address}: {cause}\""
    )]
    Unreachable {
        /// The socket.
        address: String,
        /// Why, in short.
        cause: String,
    },
    /// The caller's deadline passed before there was a connection.
    #[error(
        "context deadline exceeded while waiting for connections to become ready: context deadline exceeded"
    )]
    Deadline,
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io {
            action,
            path: path.to_owned(),
            cause,
        }
    }

    /// Whether the blob or image is not there (and nothing else is wrong).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound(_) | Self::NoImage(_) => true,
            Self::Registry(error) => matches!(**error, RegistryError::NotFound { .. }),
            _ => false,
        }
    }
}

/// An operating system's error in the words of Go: the text alone, lower case.
#[must_use]
pub fn errno(error: &io::Error) -> String {
    let text = error.to_string();
    let Some((text, _)) = text.split_once(" (os error") else {
        return text;
    };
    let mut characters = text.chars();
    let first = characters.next();
    let first = first.into_iter().flat_map(char::to_lowercase);
    first.chain(characters).collect()
}

/// Labels of a blob, by key.
pub type Labels = BTreeMap<String, String>;

/// A blob that is open for reading, from its start.
pub struct Blob {
    /// Its bytes.
    pub size: u64,
    /// Streams them; may block, so it is for plain threads.
    pub reader: Box<dyn Read + Send>,
}

impl Blob {
    /// Checks the bytes against a descriptor while they are read: wrong ones end in an error.
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
    /// In memory.
    Bytes(Bytes),
    /// In a file, from its start to its end.
    File(File),
}

impl Content {
    /// The bytes one after the other.
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

/// What became of a blob that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Stored,
    /// It was there before.
    AlreadyThere,
}

/// Blobs by digest.
///
/// A blob that was put can be read at once by the same store. Implementations check digest and size
/// of what is put, and keep no half-written blob.
#[async_trait]
pub trait ContentStore: Send + Sync + fmt::Debug {
    /// Bytes of a blob; `None` if it is not there.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// Opens a blob. Its reader may block and must then be used outside of the runtime's threads.
    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError>;

    /// Stores a blob under its descriptor's digest.
    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError>;

    /// Adds labels to a blob; other labels stay. Stores that collect no garbage do nothing.
    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError>;

    /// Takes a blob away; it is fine if it is not there. Stores that only grow do nothing.
    async fn delete(&self, _digest: &Digest) -> Result<(), StoreError> {
        Ok(())
    }

    /// Repositories of this registry host that may have the blob, as far as known.
    async fn repositories(&self, _: &Digest, _host: &str) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// Is told that a blob came with wrong bytes. `true` if another source may have the right ones, which is asked when the
    /// blob is opened again.
    fn distrust(&self, _: &Digest) -> bool {
        false
    }

    /// Every blob that is there, and its bytes.
    async fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        Err(StoreError::Unlisted)
    }

    /// Reads a part of a blob into memory. Nothing is checked but that the part is there.
    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        let blob = self.open(digest).await?;
        let digest = *digest;
        blocking(move || read_part(blob, digest, &range)).await
    }

    /// Reads a blob of at most `limit` bytes into memory and checks its digest.
    async fn read(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let blob = self.open(digest).await?;
        let digest = *digest;
        blocking(move || read_whole(blob, digest, limit)).await
    }
}

fn read_part(blob: Blob, digest: Digest, range: &Range<u64>) -> Result<Bytes, StoreError> {
    let Blob { size, mut reader } = blob;
    let path = PathBuf::from(digest.to_string());
    let failed = StoreError::io("read", &path);
    let mut part = Vec::new();
    let length = range.end.saturating_sub(range.start);
    io::copy(&mut reader.by_ref().take(range.start), &mut io::sink())
        .and_then(|_| reader.take(length).read_to_end(&mut part))
        .map_err(failed)?;
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
    let path = PathBuf::from(digest.to_string());
    reader
        .by_ref()
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(StoreError::io("read", &path))?;
    checked(bytes.into(), digest, size)
}

/// Bytes that are as long as they should be and hash to the digest.
pub(crate) fn checked(bytes: Bytes, digest: Digest, size: u64) -> Result<Bytes, StoreError> {
    let actual = bytes.len() as u64;
    if actual != size {
        return Err(StoreError::Size {
            digest,
            expected: size,
            actual,
        });
    }
    let mut verifier = crate::digest::Verifier::new(digest);
    verifier.update(&bytes);
    verifier.finish()?;
    Ok(bytes)
}

/// Whether a reader gives the bytes of a blob, and nothing else, to its end.
pub(crate) fn is_blob(reader: impl Read, blob: &Descriptor) -> bool {
    let mut reader = VerifyingReader::new(reader, blob.digest, blob.size);
    io::copy(&mut reader, &mut io::sink()).is_ok()
}

/// Runs file work on the runtime's blocking threads.
pub(crate) async fn blocking<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // The task is never aborted: it panicked, and so does who waits for it.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Reads from a store that may have wrong bytes: what is not known to be right is checked while it is read, to its end.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Is only read.
    pub store: Arc<dyn ContentStore>,
    /// Blobs that were read and found right before.
    pub trusted: Arc<HashSet<Digest>>,
}

#[async_trait]
impl ContentStore for Checked {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.store.size(digest).await
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let blob = self.store.open(digest).await?;
        if self.trusted.contains(digest) {
            return Ok(blob);
        }
        let size = blob.size;
        let reader = blob.verified(&Descriptor::new("", *digest, size))?;
        Ok(Blob {
            size,
            reader: Box::new(reader),
        })
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        self.store.put(descriptor, content).await
    }

    fn distrust(&self, digest: &Digest) -> bool {
        self.store.distrust(digest)
    }

    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError> {
        self.store.label(digest, labels).await
    }
}
