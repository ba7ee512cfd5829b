//! Keys of the daemon, its content store and its snapshots.

use super::ValueError;
use super::declare::{table, words};

table! {
    /// Keys before the first table.
    pub struct Service {
        /// The kind of a cache that does not exist.
        http_cache_type: String = String::new(), unused;
        /// `memory` for a cache of spans in memory. Layers are always stored on disk.
        filesystem_cache_type: String = String::new(), unused;
        /// Number of layers to remember after their last use; 0 means 30. Mounted layers are kept, and
        /// others are opened from disk.
        resolve_result_entry: i64 = 0, unused;
        /// Logs the FUSE protocol at the level `trace`.
        debug: bool = false, unused;
        /// Does not compare the headers of a tar with the entries of its zTOC. Spans are verified
        /// anyway.
        disable_verification: bool = false;
        /// zTOCs to fetch ahead in parallel; negative means no limit.
        max_concurrency: i64 = 100, zero_is_default;
        /// Does not serve metrics.
        no_prometheus: bool = false;
        /// Seconds that a Prepare waits for index and zTOC before it leaves the layer to containerd;
        /// negative means that it does not wait.
        mount_timeout_sec: i64 = 30, zero_is_default;
        /// Seconds until the number of FUSE operations of an image is counted. The kernel does not
        /// send these operations.
        fuse_metrics_emit_wait_duration_sec: i64 = 60, zero_is_default, unused;
        /// Where to serve [metrics](metrics.md); empty means nowhere.
        metrics_address: String = String::new();
        /// `tcp`, `tcp4`, `tcp6` or `unix`.
        metrics_network: String = "tcp".to_owned(), zero_is_default;
        /// Where to serve profiles of the Go runtime. `soci-snapshotter-grpc reads` shows what reads
        /// wait for.
        debug_address: String = String::new(), unused;
        /// The database for file metadata: `db` or `db-multi`. Another word is an error. soci-rs has no
        /// such database.
        metadata_store: String = "db".to_owned(), zero_is_default, unused;
        /// Does not sync that database.
        metadata_db_no_sync: bool = false, unused;
        /// Entries per transaction of that database; 0 means 5000.
        metadata_insertion_chunk_size: i64 = 0, unused;
        /// Does not try an overlay mount at the start.
        skip_check_snapshotter_supported: bool = false;
    }
}

impl Service {
    /// Brings values into their effective form.
    pub(super) fn settle(&mut self) {
        // As in the reference: "no limit" is dumped as 0, although 0 in a file means the default.
        self.max_concurrency = self.max_concurrency.max(0);
    }

    pub(super) fn check(&self) -> Result<(), ValueError> {
        match self.metadata_store.as_str() {
            "db" | "db-multi" => Ok(()),
            other => Err(ValueError::MetadataStore(other.to_owned())),
        }
    }

    /// zTOCs to fetch ahead in parallel.
    pub fn ahead(&self) -> usize {
        match usize::try_from(self.max_concurrency) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(count) => count,
        }
    }

    /// Whether metrics are served.
    pub fn serves_metrics(&self) -> bool {
        !self.no_prometheus && !self.metrics_address.is_empty()
    }
}

table! {
    /// Where indexes and zTOCs are stored.
    pub struct ContentStore {
        /// `soci` for a directory of the daemon, or `containerd`. Another word is an error.
        r#type as "type": String = "soci".to_owned(), zero_is_default;
        /// Socket of containerd, also with `unix://`. The manifests of images are read from it whatever
        /// the type is.
        containerd_address: String = "/run/containerd/containerd.sock".to_owned(), zero_is_default;
    }
}

/// Where indexes and zTOCs are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentStoreKind {
    /// The daemon's own directory.
    Soci,
    /// containerd's content store.
    Containerd,
}

impl ContentStore {
    /// Brings values into their effective form.
    pub(super) fn settle(&mut self) {
        if let Some(path) = self.containerd_address.strip_prefix("unix://") {
            self.containerd_address = path.to_owned();
        }
    }

    pub(super) fn check(&self) -> Result<(), ValueError> {
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

table! {
    /// Snapshots and the mounts of layers.
    pub struct SnapshotterTable {
        /// Layers smaller than this many bytes are downloaded whole; 0 disables this. Only for clients
        /// that send the size of a layer; the kubelet does not.
        min_layer_size: i64 = 0;
        /// Starts even if layers cannot be mounted. A layer never prevents a start.
        allow_invalid_mounts_on_restart: bool = false, unused;
        /// The mount mode: `auto` for the first that works, or only `loop` devices, `file` mounts, or
        /// `none`, which leaves every layer to containerd.
        mount: MountChoice = MountChoice::Auto, ours;
        /// Seconds between scrubs of a layer; 0 means one week, negative disables scrubs.
        scrub_interval_sec: i64 = 0, ours;
        /// Bytes per second that a scrub reads; 0 means 8 MiB, negative means no limit.
        scrub_bytes_per_sec: i64 = 0, ours;
        /// Which layers containers may start from: `claimed` (immediately, by their index) or
        /// `verified` (complete and compared with the image's configuration). See
        /// [security](security.md).
        trust: Trust = Trust::Claimed, ours;
        /// Fails the pull of an image with an index that cannot be loaded lazily, instead of
        /// falling back to another way.
        strict: bool = false, ours;
        /// The disk usage of lazily loaded layers: `disk` for what they have on disk, or `zero`, which
        /// the reference reports.
        lazy_usage: LazyUsage = LazyUsage::Disk, ours;
    }
}

words! {
    /// `[snapshotter] trust`.
    pub enum Trust {
        /// A layer is trusted to match its index until it is complete.
        Claimed = "claimed",
        /// Containers wait until the complete layer is verified against the image's configuration.
        Verified = "verified",
    }
}

words! {
    /// `[snapshotter] mount`.
    pub enum MountChoice {
        /// The first mount mode that works.
        Auto = "auto",
        /// Loop devices, or nothing.
        Loop = "loop",
        /// Files, or nothing.
        File = "file",
        /// Leave every layer to containerd.
        None = "none",
    }
}

words! {
    /// `[snapshotter] lazy_usage`.
    pub enum LazyUsage {
        /// What is on disk.
        Disk = "disk",
        /// Nothing.
        Zero = "zero",
    }
}
