//! Keys of the whole daemon, of its content store and of its snapshots.

use serde::Deserialize;

use super::{ValueError, or_default};

pub(super) const KEYS: &[&str] = &[
    "disable_verification",
    "max_concurrency",
    "mount_timeout_sec",
    "skip_check_snapshotter_supported",
];
pub(super) const CONTENT_STORE_KEYS: &[&str] = &["type", "containerd_address"];
pub(super) const SNAPSHOTTER_KEYS: &[&str] = &[
    "min_layer_size",
    "allow_invalid_mounts_on_restart",
    "mount",
    "scrub_interval_sec",
    "scrub_bytes_per_sec",
    "trust",
];

/// zTOCs of an image that are fetched at once.
const MAX_CONCURRENCY: i64 = 100;
/// Seconds that a Prepare waits for index and zTOC.
const MOUNT_TIMEOUT_SEC: i64 = 30;
const CONTAINERD_ADDRESS: &str = "/run/containerd/containerd.sock";

/// Keys that stand before any table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Do not compare tar headers with the zTOC's entries. Spans are verified all the same.
    pub disable_verification: bool,
    /// zTOCs fetched ahead at once; negative is unlimited.
    pub max_concurrency: i64,
    /// Seconds that a Prepare waits for index and zTOC before it leaves the layer to containerd.
    pub mount_timeout_sec: i64,
    /// Do not try an overlay mount at start.
    pub skip_check_snapshotter_supported: bool,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            disable_verification: false,
            max_concurrency: MAX_CONCURRENCY,
            mount_timeout_sec: MOUNT_TIMEOUT_SEC,
            skip_check_snapshotter_supported: false,
        }
    }
}

impl Service {
    pub(super) fn fill(&mut self) {
        or_default(&mut self.max_concurrency, MAX_CONCURRENCY);
        or_default(&mut self.mount_timeout_sec, MOUNT_TIMEOUT_SEC);
    }
}

/// `[content_store]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ContentStore {
    /// `soci` or `containerd`; see [`ContentStore::kind`].
    pub r#type: String,
    /// Socket of containerd, used for image manifests whatever the type.
    pub containerd_address: String,
}

/// Where indexes and zTOCs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentStoreKind {
    /// Our own folder.
    Soci,
    /// containerd's content store.
    Containerd,
}

impl Default for ContentStore {
    fn default() -> Self {
        Self {
            r#type: "soci".to_owned(),
            containerd_address: CONTAINERD_ADDRESS.to_owned(),
        }
    }
}

impl ContentStore {
    pub(super) fn fill(&mut self) -> Result<(), ValueError> {
        let defaults = Self::default();
        if self.r#type.is_empty() {
            self.r#type = defaults.r#type;
        }
        if self.containerd_address.is_empty() {
            self.containerd_address = defaults.containerd_address;
        }
        if let Some(path) = self.containerd_address.strip_prefix("unix://") {
            self.containerd_address = path.to_owned();
        }
        match self.r#type.as_str() {
            "soci" | "containerd" => Ok(()),
            other => Err(ValueError::ContentStore(other.to_owned())),
        }
    }

    /// The store that `type` names.
    pub fn kind(&self) -> ContentStoreKind {
        match self.r#type.as_str() {
            "containerd" => ContentStoreKind::Containerd,
            _ => ContentStoreKind::Soci,
        }
    }
}

/// `[snapshotter]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SnapshotterTable {
    /// Layers smaller than this many bytes are fetched whole; 0 is off.
    pub min_layer_size: i64,
    /// Start with layers that cannot be mounted again. Here a failing layer never keeps the daemon from
    /// starting, so the key has no effect.
    pub allow_invalid_mounts_on_restart: bool,
    /// How layers are given to the kernel: `auto` (the first way that works), `loop`, `file`, or `none`.
    pub mount: MountChoice,
    /// Seconds after which a layer in the store is held against its digests again; 0 is a week, negative never.
    pub scrub_interval_sec: i64,
    /// Bytes a second that this reads; 0 is 8 MiB, negative no limit.
    pub scrub_bytes_per_sec: i64,
    /// From which layers containers start: `claimed` (at once, by their index) or `verified`.
    pub trust: Trust,
}

/// `[snapshotter] trust`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// A layer is what its index says until its last byte is here.
    #[default]
    Claimed,
    /// Containers wait until the whole layer is known to be the one that the image's configuration names.
    Verified,
}

/// `[snapshotter] mount`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountChoice {
    /// The first way that works here.
    #[default]
    Auto,
    /// On loop devices, or not at all.
    Loop,
    /// From files, or not at all.
    File,
    /// Every layer is left to containerd.
    None,
}
