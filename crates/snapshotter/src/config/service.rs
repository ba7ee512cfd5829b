//! Keys of the daemon, its content store and its snapshots.

use serde::Deserialize;

use super::{ValueError, or_default};

pub(super) const KEYS: &[&str] = &[
    "disable_verification",
    "max_concurrency",
    "mount_timeout_sec",
    "no_prometheus",
    "metrics_address",
    "metrics_network",
    "debug_address",
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

/// Default number of zTOCs of an image to fetch in parallel.
const MAX_CONCURRENCY: i64 = 100;
/// Default number of seconds that a Prepare waits for index and zTOC.
const MOUNT_TIMEOUT_SEC: i64 = 30;
const METRICS_NETWORK: &str = "tcp";
const CONTAINERD_ADDRESS: &str = "/run/containerd/containerd.sock";

/// Top-level keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Do not compare tar headers with zTOC entries. Spans are verified anyway.
    pub disable_verification: bool,
    /// zTOCs to fetch ahead in parallel; negative means no limit.
    pub max_concurrency: i64,
    /// Seconds that a Prepare waits for index and zTOC before it leaves the layer to containerd.
    pub mount_timeout_sec: i64,
    /// Do not try an overlay mount at start.
    pub skip_check_snapshotter_supported: bool,
    /// Do not serve metrics.
    pub no_prometheus: bool,
    /// Where to serve metrics; empty means nowhere.
    pub metrics_address: String,
    /// `tcp`, `tcp4`, `tcp6` or `unix`.
    pub metrics_network: String,
    /// In the reference: where to serve profiles of its runtime. Has no effect.
    pub debug_address: String,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            disable_verification: false,
            max_concurrency: MAX_CONCURRENCY,
            mount_timeout_sec: MOUNT_TIMEOUT_SEC,
            skip_check_snapshotter_supported: false,
            no_prometheus: false,
            metrics_address: String::new(),
            metrics_network: METRICS_NETWORK.to_owned(),
            debug_address: String::new(),
        }
    }
}

impl Service {
    pub(super) fn fill(&mut self) {
        or_default(&mut self.max_concurrency, MAX_CONCURRENCY);
        or_default(&mut self.mount_timeout_sec, MOUNT_TIMEOUT_SEC);
        if self.metrics_network.is_empty() {
            METRICS_NETWORK.clone_into(&mut self.metrics_network);
        }
    }

    /// Whether metrics are served.
    pub fn serves_metrics(&self) -> bool {
        !self.no_prometheus && !self.metrics_address.is_empty()
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

/// Where indexes and zTOCs are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentStoreKind {
    /// The daemon's own directory.
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

    /// The store selected by `type`.
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
    /// Layers smaller than this many bytes are downloaded whole; 0 disables this.
    pub min_layer_size: i64,
    /// In the reference: start even if layers cannot be mounted. Here a failing layer never
    /// prevents a start, so the key has no effect.
    pub allow_invalid_mounts_on_restart: bool,
    /// The mount mode: `auto` (the first that works), `loop`, `file`, or `none`.
    pub mount: MountChoice,
    /// Seconds between scrubs of a layer; 0 means one week, negative disables scrubs.
    pub scrub_interval_sec: i64,
    /// Bytes per second that a scrub reads; 0 means 8 MiB, negative means no limit.
    pub scrub_bytes_per_sec: i64,
    /// Which layers containers may start from: `claimed` (immediately, by their index) or
    /// `verified`.
    pub trust: Trust,
}

/// `[snapshotter] trust`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// A layer is trusted to match its index until it is complete.
    #[default]
    Claimed,
    /// Containers wait until the complete layer is verified against the image's configuration.
    Verified,
}

/// `[snapshotter] mount`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountChoice {
    /// The first mount mode that works.
    #[default]
    Auto,
    /// Loop devices, or nothing.
    Loop,
    /// Files, or nothing.
    File,
    /// Leave every layer to containerd.
    None,
}
