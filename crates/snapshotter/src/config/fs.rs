//! Keys of the file systems of layers and of what fills them.

use serde::Deserialize;

pub(super) const FUSE_KEYS: &[&str] = &[
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "log_fuse_operations",
];
pub(super) const BACKGROUND_KEYS: &[&str] = &["disable"];

pub(super) const CACHE_KEYS: &[&str] = &["max_bytes", "min_free_bytes"];

/// `[fuse]`. Metadata of a layer is the kernel's own here, so these times have nothing to act on; they are
/// read so that a file with a wrong type in them is refused as before.
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
    /// Fetch only what is read.
    pub disable: bool,
}

/// `[cache]`: bounds for what is fetched that nobody has read yet. Readers are never refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// Bytes on disk that all layers may take; 0 is no limit.
    pub max_bytes: i64,
    /// Bytes of the file system that stay free; 0 is the smaller of 5 % and 2 GiB, negative is none.
    pub min_free_bytes: i64,
}
