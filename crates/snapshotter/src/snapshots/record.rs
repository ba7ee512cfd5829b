//! What is known of a snapshot, as it is kept.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::image::LayerUse;
use crate::image::labels::Labels;

/// The number of a snapshot and the name of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub u64);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a snapshot is, in containerd's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read only, never committed.
    View,
    /// Writable, until it is committed.
    Active,
    /// Read only for ever; others stand on it.
    Committed,
}

/// Owner of the root directory of a snapshot's own file tree. It is kept here so that a child's directory
/// gets it without a look into a mount of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Space that a snapshot takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes allocated on disk.
    pub size: u64,
    /// Inodes, the root directory included.
    pub inodes: u64,
}

/// One snapshot, without its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number; stays the same when it is committed.
    pub id: SnapshotId,
    /// What it is.
    pub kind: Kind,
    /// Name of the snapshot below it.
    pub parent: Option<String>,
    /// When it was prepared or committed.
    pub created: SystemTime,
    /// When its labels changed last.
    pub updated: SystemTime,
    /// Its labels; none has an empty value.
    pub labels: Labels,
    /// Space as measured when it was committed.
    pub usage: Usage,
    /// Owner of its root directory.
    pub owner: Owner,
    /// The layer mounted at its `fs`, if it is one of ours.
    pub layer: Option<LayerUse>,
    /// containerd has changed the owners of its files for a user namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remapped: bool,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name (committed) or key (active, view).
    pub name: String,
    /// The rest.
    pub record: Record,
}
