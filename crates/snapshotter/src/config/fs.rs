//! Keys of FUSE, background downloads and the caches.

use super::ValueError;
use super::declare::{table, words};

table! {
    /// A cache of files that soci-rs does not have.
    pub struct DirectoryCache {
        /// Number of files in memory.
        max_lru_cache_entry: i64 = 0, unused;
        /// Number of open files.
        max_cache_fds: i64 = 0, unused;
        /// Waits for the disk.
        sync_add: bool = false, unused;
        /// Writes without the cache in memory.
        direct: bool = true, unused;
    }
}

table! {
    /// The kernel handles names and attributes of layers itself, so no such request arrives.
    pub struct Fuse {
        /// Seconds for which the kernel keeps attributes.
        attr_timeout: i64 = 1, zero_is_default, unused;
        /// Seconds for which the kernel keeps names.
        entry_timeout: i64 = 1, zero_is_default, unused;
        /// Seconds for which the kernel remembers that a name does not exist.
        negative_timeout: i64 = 1, zero_is_default, unused;
        /// Logs every operation.
        log_fuse_operations: bool = false, unused;
    }
}

table! {
    /// Downloads of what no container has read yet.
    pub struct BackgroundFetch {
        /// Downloads only what is read.
        disable: bool = false;
        /// How fast: `adaptive`, as fast as the network allows while no reader waits, or `paced`, as
        /// the keys below say.
        mode: FetchMode = FetchMode::Adaptive, ours;
        /// Only `paced`: pause after the first mount of a new image, in milliseconds.
        silence_period_msec: i64 = 30_000, zero_is_default;
        /// Only `paced`: milliseconds per span, for all layers together.
        fetch_period_msec: i64 = 500, zero_is_default;
        /// Only `paced`: number of waiting layers; negative means no limit.
        max_queue_size: i64 = 300, zero_is_default;
        /// Only `paced`: which layer a full queue drops: `newest`, the one that comes, or `oldest`, the
        /// one that is next. Another word is an error.
        drop_policy: String = "newest".to_owned(), zero_is_default;
        /// Seconds between updates of the metric `background_fetch_work_queue_size`, which is always
        /// current.
        emit_metric_period_sec: i64 = 10, zero_is_default, unused;
    }
}

words! {
    /// `[background_fetch] mode`.
    pub enum FetchMode {
        /// As fast as the network allows while no reader waits.
        Adaptive = "adaptive",
        /// One span per period, as the reference does.
        Paced = "paced",
    }
}

impl BackgroundFetch {
    /// Whether a full queue drops the layer that is next, not the one that comes.
    pub fn drops_oldest(&self) -> bool {
        self.drop_policy == "oldest"
    }

    pub(super) fn check(&self) -> Result<(), ValueError> {
        match self.drop_policy.as_str() {
            "newest" | "oldest" => Ok(()),
            other => Err(ValueError::DropPolicy(other.to_owned())),
        }
    }
}

table! {
    /// Spans that an index says to download first.
    pub struct Prefetch {
        /// Reads the prefetch artifacts of indexes.
        enable: bool = false;
        /// Notes what containers read first, for `soci prefetch record`. A few kilobytes per image.
        record: bool = true, ours;
        /// Downloads first what a recorded start read, if the index was made with
        /// `--prefetch-record`. `enable` is not needed for this.
        replay: bool = true, ours;
        /// Layers that prefetch at the same time; 0 means no limit. A layer prefetches a few spans at
        /// a time, and the limits of downloads apply.
        max_concurrency: i64 = 0, unused;
    }
}

impl Prefetch {
    /// Brings values into their effective form.
    pub(super) fn settle(&mut self) {
        self.max_concurrency = self.max_concurrency.max(0);
    }
}

table! {
    /// Disk space for layers. Beyond a limit, background downloads pause, and layers that no
    /// container uses give back space. Reads are always served.
    pub struct Cache {
        /// Maximum number of bytes on disk for all layers; 0 means no limit.
        max_bytes: i64 = 0, ours;
        /// Bytes to keep free on the file system; 0 means the smaller of 5 % and 2 GiB, negative means
        /// none.
        min_free_bytes: i64 = 0, ours;
    }
}
