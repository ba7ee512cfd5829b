//! What became of each layer, and why; and the lines that say so.
//!
//! Messages and keys are those of the reference, because tests and operators look for them. All values are
//! strings.

use tracing::{info, warn};

/// How a layer got to its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Mounted before its bytes were there.
    Lazy,
    /// Fetched in one pass, then mounted.
    Whole,
}

/// What became of a layer that is mounted. One that is not is left to containerd, with a reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How it got to its snapshot.
    pub way: Way,
    /// Why this way.
    pub why: String,
}

/// The request that a line is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Key of the snapshot.
    pub(crate) key: String,
    /// Name of its parent; empty without one.
    pub(crate) parent: String,
}

impl Subject {
    /// The layer is mounted and committed.
    pub(crate) fn prepared(&self, verdict: &Verdict) {
        let Self { key, parent } = self;
        let why = &verdict.why;
        match verdict.way {
            Way::Lazy => info!(
                "remote-snapshot-prepared" = "true",
                key, parent, why, "remote snapshot successfully prepared."
            ),
            Way::Whole => info!(
                "local-snapshot-prepared" = "true",
                key, parent, why, "local snapshot successfully prepared"
            ),
        }
    }

    /// The layer cannot be mounted before its bytes are there.
    pub(crate) fn not_remote(&self, error: &str) {
        let Self { key, parent } = self;
        warn!(
            "remote-snapshot-prepared" = "false",
            error, key, parent, "failed to prepare remote snapshot"
        );
    }

    /// containerd unpacks the layer, because the image has no index that can be used.
    pub(crate) fn deferred(&self, error: &str) {
        let Self { key, parent } = self;
        warn!(
            "defer-snapshot-runtime" = "true",
            error, key, parent, "no valid SOCI index found; deferring to container runtime"
        );
    }

    /// containerd unpacks the layer, though the image has an index.
    pub(crate) fn deferred_local(&self, error: &str) {
        let Self { key, parent } = self;
        warn!(
            "defer-snapshot-runtime" = "true",
            error, key, parent, "failed to prepare local snapshot; deferring to container runtime"
        );
    }
}
