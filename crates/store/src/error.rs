//! Why a store operation failed.

use std::io;
use std::path::{Path, PathBuf};

use soci_oci::digest::{Digest, DigestMismatch};
use soci_registry::RegistryError;

use crate::MAX_DEPTH;

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The blob does not exist.
    #[error("content digest {0}: not found")]
    NotFound(Digest),
    /// The image does not exist in containerd.
    #[error("image {0:?}: not found")]
    NoImage(String),
    /// The blob does not match its digest.
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
    /// The blob has the wrong size.
    #[error("blob {digest} has {actual} bytes, expected {expected}")]
    Size {
        /// The blob.
        digest: Digest,
        /// Size in bytes according to the descriptor.
        expected: u64,
        /// Actual size in bytes.
        actual: u64,
    },
    /// The document exceeds the caller's limit.
    #[error("blob {digest} has {size} bytes, more than {limit} that may be read at once")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// The documents of the image are too large in total.
    #[error(
        "manifests and indexes of image {image} have more than {limit} bytes together; select fewer platforms"
    )]
    TooManyDocuments {
        /// The digest of the image.
        image: Digest,
        /// The limit in bytes.
        limit: u64,
    },
    /// The image has too many manifests and indexes.
    #[error("an image with more than {0} manifests and indexes")]
    ManyMembers(usize),
    /// A manifest or index is nested in too many indexes.
    #[error(
        "{0} is nested more than {MAX_DEPTH} indexes deep; use an image with fewer levels of indexes"
    )]
    TooDeep(Digest),
    /// A file system call failed. The message has Go's wording.
    #[error("{action} {}: {}", path.display(), errno(cause))]
    Io {
        /// The system call.
        action: &'static str,
        /// The path that it was called on.
        path: PathBuf,
        /// The error. It is not a source because the message already contains it in Go's wording.
        cause: io::Error,
    },
    /// A file of a layout is a link to a file that is not in the layout.
    #[error("{} is a link that leads out of the layout, to {}; --follow-links allows that", path.display(), target.display())]
    Outside {
        /// The file.
        path: PathBuf,
        /// Where the link leads.
        target: PathBuf,
    },
    /// A blob of an archive is a link to what the archive does not have.
    #[error("{} is a link to {target}, which the archive does not have", path.display())]
    DeadLink {
        /// The blob.
        path: PathBuf,
        /// The target as written in the archive.
        target: String,
    },
    /// The file is not a tar archive or not usable.
    #[error("{0}")]
    Archive(&'static str),
    /// The store cannot list its content.
    #[error("the store cannot list its blobs")]
    Unlisted,
    /// The store is read-only.
    #[error("{} is only read", .0.display())]
    ReadOnly(PathBuf),
    /// The name in the registry does not refer to an image.
    #[error("{image} is no image: the registry says {media_type:?}")]
    NotAnImage {
        /// The name.
        image: String,
        /// The media type that the name refers to.
        media_type: String,
    },
    /// The registry request failed.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// containerd returned an error.
    #[error("{action}: {message}")]
    Containerd {
        /// The request.
        action: &'static str,
        /// The gRPC status code.
        code: i32,
        /// containerd's message.
        message: String,
    },
    /// The connection to containerd failed.
    #[error(
        "connection error: desc = \"transport: Error while dialing: dial unix://{address}: {cause}\""
    )]
    Unreachable {
        /// The address of the socket.
        address: String,
        /// A short reason.
        cause: String,
    },
    /// The caller's timeout expired before the connection was established.
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

    /// Whether the error only means that the blob or image does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound(_) | Self::NoImage(_) => true,
            Self::Registry(error) => matches!(**error, RegistryError::NotFound { .. }),
            _ => false,
        }
    }
}

/// Formats an operating system error as Go does: only the text, in lower case. Any other error is
/// followed by its causes.
#[must_use]
pub fn errno(error: &io::Error) -> String {
    let text = error.to_string();
    let Some((text, _)) = text.split_once(" (os error") else {
        return with_causes(text, error);
    };
    let mut characters = text.chars();
    let first = characters.next();
    let first = first.into_iter().flat_map(char::to_lowercase);
    first.chain(characters).collect()
}

fn with_causes(mut text: String, error: &io::Error) -> String {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
