//! Keys of where an index is looked for.

use serde::Deserialize;

pub(super) const KEYS: &[&str] = &["soci_v1", "soci_v2"];
pub(super) const MODE_KEYS: &[&str] = &["enable"];

/// `[pull_modes]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PullModes {
    /// Indexes that refer to an image; see [`PullModes::v1`].
    pub soci_v1: Mode,
    /// Indexes that an image's manifest names; see [`PullModes::v2`].
    pub soci_v2: Mode,
}

/// One mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Mode {
    /// Whether it is used, if the file says so.
    pub enable: Option<bool>,
}

impl PullModes {
    /// Whether an index may be found among what refers to an image. Off by default.
    pub fn v1(&self) -> bool {
        self.soci_v1.enable.unwrap_or(false)
    }

    /// Whether an image's manifest may name its index. On by default.
    pub fn v2(&self) -> bool {
        self.soci_v2.enable.unwrap_or(true)
    }
}
