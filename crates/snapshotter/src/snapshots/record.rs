//! The stored record of a snapshot.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::image::LayerUse;
use crate::image::labels::Labels;

/// The number of a snapshot, which is also the name of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub u64);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The kind of a snapshot, as in containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only, never committed.
    View,
    /// Writable until it is committed.
    Active,
    /// Read-only; can be a parent.
    Committed,
}

/// Owner of the root directory of a snapshot's file tree. It is stored so that a child's directory
/// gets it without access to one of our mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// Disk space of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes allocated on disk.
    pub size: u64,
    /// Inodes, including the root directory.
    pub inodes: u64,
}

/// One snapshot, without its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, which a commit does not change.
    pub id: SnapshotId,
    /// Its kind.
    pub kind: Kind,
    /// Name of the parent.
    pub parent: Option<String>,
    /// When it was prepared or committed.
    pub created: SystemTime,
    /// When its labels last changed.
    pub updated: SystemTime,
    /// Its labels. No value is empty.
    pub labels: Labels,
    /// Disk space, as measured when it was committed.
    pub usage: Usage,
    /// Owner of its root directory.
    pub owner: Owner,
    /// The layer mounted at its `fs`, for a layer of ours.
    pub layer: Option<LayerUse>,
    /// Whether containerd has changed the owners of its files for a user namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remapped: bool,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name (committed) or key (active, view).
    pub name: String,
    /// The record.
    pub record: Record,
}
