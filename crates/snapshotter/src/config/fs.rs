//! Keys of the file systems of layers and of what fills them.

use serde::Deserialize;

pub(super) const FUSE_KEYS: &[&str] = &[
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "log_fuse_operations",
];
pub(super) const BACKGROUND_KEYS: &[&str] = &["disable"];

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
