//! Why a conversion failed.

use std::io;
use std::path::PathBuf;

use soci_oci::reference::ImageRef;
use soci_store::{ReachableError, StoreError, errno};

use super::local::SourceError;
use crate::convert::ConvertError;

/// Why an image was not converted, or not written to its destination.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image cannot be converted, or its layers cannot be indexed.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The image on disk cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The files of the destination cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The documents of the image cannot be read, or it cannot be written to the registry.
    #[error(transparent)]
    Image(#[from] ReachableError),
    /// A store operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The destination's reference contains a digest, but the copy gets a digest of its own.
    #[error("{0}: the copy gets a digest of its own; name a tag only")]
    Pinned(Box<ImageRef>),
}

impl Error {
    /// Whether wrong bytes from the source can be the cause.
    pub(super) fn is_about_bytes(&self) -> bool {
        matches!(
            self,
            Self::Store(StoreError::Digest(_) | StoreError::Size { .. })
        )
    }
}

/// Why the files of a destination cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The archive cannot be created. The message has Go's wording.
    #[error("failed to create output tar {shown}: open {shown}: {}", errno(cause), shown = path.display())]
    CreateArchive {
        /// The path of the archive.
        path: PathBuf,
        /// The error. The message contains it.
        cause: io::Error,
    },
    /// The archive cannot be written.
    #[error("failed to write output tar")]
    WriteArchive(#[source] io::Error),
    /// The folder at the destination cannot be listed.
    #[error("failed to read output directory {}", path.display())]
    ReadFolder {
        /// The path of the folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder at the destination contains something else than a layout.
    #[error("output {} is a directory that is not an OCI image layout; it is not replaced", .0.display())]
    NotALayout(PathBuf),
    /// The layout cannot be created.
    #[error("failed to create output directory {}", path.display())]
    CreateFolder {
        /// The path of the layout.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// The source layout cannot be copied.
    #[error("failed to copy OCI image layout from {}", path.display())]
    Copy {
        /// The path of the source layout.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A blob that the source layout links to cannot be read.
    #[error("failed to read {}", path.display())]
    ReadLinked {
        /// The path of the link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A member of the source archive cannot be written to the layout.
    #[error("failed to extract {name}")]
    Extract {
        /// The name of the member.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The layout cannot be locked for a change of its index.
    #[error("open {}", path.display())]
    Lock {
        /// The path of the layout.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The index of the existing layout is not an image index.
    #[error("{}: unmarshal index.json", path.display())]
    IndexJson {
        /// The path of the layout.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The layout cannot be written.
    #[error("failed to write to {}", path.display())]
    Write {
        /// The path of the layout.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layout cannot take the place of the previous one.
    #[error("failed to replace {}", path.display())]
    Replace {
        /// The path of the layout.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path has no last component.
    #[error("{} cannot be written: it has no name", .0.display())]
    NoName(PathBuf),
    /// The folder for new blobs cannot be created.
    #[error("failed to create temp directory")]
    Temporary(#[source] DiskError),
    /// A store operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a folder cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The layout in the folder cannot be created.
    #[error(transparent)]
    Layout(#[from] StoreError),
}
