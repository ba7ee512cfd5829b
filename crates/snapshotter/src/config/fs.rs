//! Keys of FUSE, background downloads and the cache.

use serde::Deserialize;

pub(super) const FUSE_KEYS: &[&str] = &[
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "log_fuse_operations",
];
pub(super) const BACKGROUND_KEYS: &[&str] = &["disable"];

pub(super) const PREFETCH_KEYS: &[&str] = &["enable", "max_concurrency"];

pub(super) const CACHE_KEYS: &[&str] = &["max_bytes", "min_free_bytes"];

/// `[fuse]`. The keys have no effect, because the kernel handles the metadata of layers. They are
/// parsed so that a wrong type is an error, as in the reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Fuse {
    /// Seconds.
    pub attr_timeout: i64,
    /// Seconds.
    pub entry_timeout: i64,
    /// Seconds.
    pub negative_timeout: i64,
    /// Log every operation.
    pub log_fuse_operations: bool,
}

/// `[background_fetch]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BackgroundFetch {
    /// Whether to fetch only what is read.
    pub disable: bool,
}

/// `[prefetch]`: the spans that an index says to download first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Prefetch {
    /// Whether to read the prefetch artifacts of indexes.
    pub enable: bool,
    /// Has no effect: a layer prefetches a few spans at a time, and the limits of downloads apply.
    pub max_concurrency: i64,
}

/// `[cache]`: limits for data that no container has read yet. Reads are always served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// Maximum number of bytes on disk for all layers; 0 means no limit.
    pub max_bytes: i64,
    /// Bytes to keep free on the file system; 0 means the smaller of 5 % and 2 GiB, negative means
    /// none.
    pub min_free_bytes: i64,
}
