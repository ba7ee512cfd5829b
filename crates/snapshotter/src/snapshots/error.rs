//! Why the snapshotter refuses or fails. `grpc` turns this into status codes, nobody else.

use std::io;
use std::path::PathBuf;

use super::ids::OwnersError;
use super::metadata::{MetadataError, OpenError, SnapshotId};
use super::overlay::Unsupported;
use crate::cpu::Lost;
use crate::mount::MountError;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The records refuse it.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The layer is there under the name that was asked for: containerd's signal for "done".
    #[error("target snapshot {target:?}")]
    TargetExists {
        /// The name.
        target: String,
    },
    /// A layer needs a namespace.
    #[error("context has no namespace attached")]
    NoNamespace,
    /// A committed snapshot has no mounts of its own.
    #[error("snapshot {key:?} is not active and not a view")]
    NotMountable {
        /// Its name.
        key: String,
    },
    /// Neither key nor name may be empty.
    #[error("{field} is empty")]
    Empty {
        /// The field of the request.
        field: &'static str,
    },
    /// A file or directory of the snapshot cannot be used.
    #[error("cannot {action} of snapshot {id}")]
    Files {
        /// What was attempted.
        action: &'static str,
        /// The snapshot.
        id: SnapshotId,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// No space for a file or directory of the snapshot.
    #[error("cannot {action} of snapshot {id}: the disk of {} is full: remove images or containers, or free space there", path.display())]
    Full {
        /// What was attempted.
        action: &'static str,
        /// The snapshot.
        id: SnapshotId,
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The labels ask for owners that cannot be had.
    #[error(transparent)]
    Owners(#[from] OwnersError),
    /// Nobody waits for the answer any more: what was made is taken back.
    #[error("the client went away")]
    CallerGone,
    /// The folder of all snapshots cannot be used.
    #[error("cannot read {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A layer below the snapshot cannot be mounted.
    #[error("layer {layer:?} unavailable: {why}")]
    Unavailable {
        /// Id of its snapshot.
        layer: String,
        /// Why.
        why: String,
    },
    /// A layer below the snapshot is not what its image says.
    #[error("{why}; remove image {image} and pull it again from a source that can be trusted")]
    Untrusted {
        /// The image that brought it.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// Containers start from verified layers only, and one is not.
    #[error("layer {layer} is not verified yet, and [snapshotter] trust is \"verified\": {why}")]
    Unverified {
        /// The layer.
        layer: String,
        /// Why it is not.
        why: &'static str,
    },
    /// The work was lost: a defect of ours.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A mount is in the way.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Why the snapshotter could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its records cannot be opened.
    #[error(transparent)]
    Records(#[from] OpenError),
    /// The machine cannot do what plain snapshots need.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A folder cannot be made or read.
    #[error("cannot use {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}
