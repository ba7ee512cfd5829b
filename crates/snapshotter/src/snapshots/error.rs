//! Errors of the snapshotter. Only `grpc` converts them into status codes.

use std::io;
use std::path::PathBuf;

use super::ids::OwnersError;
use super::metadata::{MetadataError, OpenError, SnapshotId};
use super::support::Unsupported;
use crate::cpu::Lost;
use crate::image::StartsError;
use crate::mount::MountError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The records reject the request.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The layer is committed under the requested name, so containerd does not have to unpack it.
    #[error("target snapshot {target:?}")]
    TargetExists {
        /// The name.
        target: String,
    },
    /// A request for a layer needs a namespace.
    #[error("context has no namespace attached")]
    NoNamespace,
    /// A committed snapshot has no mounts of its own.
    #[error("snapshot {key:?} is not active and not a view")]
    NotMountable {
        /// The name of the snapshot.
        key: String,
    },
    /// Neither key nor name may be empty.
    #[error("{field} is empty")]
    Empty {
        /// The field of the request.
        field: &'static str,
    },
    /// A file or directory of the snapshot cannot be accessed.
    #[error("cannot {action} of snapshot {id}")]
    Files {
        /// What was attempted.
        action: &'static str,
        /// The snapshot.
        id: SnapshotId,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The disk is full.
    #[error("cannot {action} of snapshot {id}: the disk of {} is full: remove images or containers, or free space there", path.display())]
    Full {
        /// What was attempted.
        action: &'static str,
        /// The snapshot.
        id: SnapshotId,
        /// The directory.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The owners that the labels request are not possible.
    #[error(transparent)]
    Owners(#[from] OwnersError),
    /// The image has an index, and the layer cannot be loaded lazily.
    #[error(
        "{why}: the image has an index and cannot be loaded lazily; [snapshotter] strict forbids to fall back"
    )]
    Strict {
        /// What failed, for which image and layer.
        why: String,
    },
    /// What was read first of an image cannot be said.
    #[error(transparent)]
    Starts(#[from] Box<StartsError>),
    /// The caller is gone. What the request made is removed.
    #[error("the client went away")]
    CallerGone,
    /// The directory of all snapshots cannot be read.
    #[error("cannot read {}", path.display())]
    Folder {
        /// The directory.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// A layer below the snapshot cannot be mounted.
    #[error("layer {layer:?} unavailable: {why}")]
    Unavailable {
        /// Number of its snapshot.
        layer: String,
        /// The reason.
        why: String,
    },
    /// A layer below the snapshot does not match its image.
    #[error("{why}; remove image {image} and pull it again from a trusted source")]
    Untrusted {
        /// The image that the layer was pulled with.
        image: String,
        /// The mismatch.
        why: String,
    },
    /// Containers start only from verified layers, and this one is not verified.
    #[error("layer {layer} is not verified yet, and [snapshotter] trust is \"verified\": {why}")]
    Unverified {
        /// The layer.
        layer: String,
        /// The reason.
        why: &'static str,
    },
    /// The task of the request panicked or was cancelled.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A mount could not be removed.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Why the snapshotter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The records cannot be opened.
    #[error(transparent)]
    Records(#[from] OpenError),
    /// The machine does not support overlay snapshots.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A directory cannot be created or read.
    #[error("cannot use {}", path.display())]
    Folder {
        /// The directory.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
}
