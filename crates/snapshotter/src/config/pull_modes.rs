//! Keys that select where to look for an index.

use serde::Deserialize;

pub(super) const KEYS: &[&str] = &["soci_v1", "soci_v2"];
pub(super) const MODE_KEYS: &[&str] = &["enable"];

/// `[pull_modes]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PullModes {
    /// Indexes among the referrers of an image; see [`PullModes::v1`].
    pub soci_v1: Mode,
    /// Indexes named in the manifest of an image; see [`PullModes::v2`].
    pub soci_v2: Mode,
}

/// One mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Mode {
    /// Whether the mode is enabled, if set.
    pub enable: Option<bool>,
}

impl PullModes {
    /// Whether to look for an index among the referrers of an image. Off by default.
    pub fn v1(&self) -> bool {
        self.soci_v1.enable.unwrap_or(false)
    }

    /// Whether to use an index named in an image's manifest. On by default.
    pub fn v2(&self) -> bool {
        self.soci_v2.enable.unwrap_or(true)
    }
}
