//! Keys that select where to look for an index, and the parallel mode.

mod parallel;

use serde::Deserialize;

use super::declare::table;

pub(super) use self::parallel::LIMITS;
pub use self::parallel::{Parallel, ParallelError, Stream};

/// `[pull_modes]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PullModes {
    /// Indexes among the referrers of an image.
    pub soci_v1: SociV1,
    /// Indexes named in the manifest of an image.
    pub soci_v2: SociV2,
    /// Download and unpacking of whole layers.
    pub parallel_pull_unpack: Parallel,
}

table! {
    /// Indexes of version 1.
    pub struct SociV1 {
        /// Looks for an index among the referrers of an image.
        enable: bool = false;
    }
}

table! {
    /// Indexes of version 2.
    pub struct SociV2 {
        /// Uses the index that the manifest of an image names.
        enable: bool = true;
    }
}
