//! How each layer was provided and why, and the log lines that report it.
//!
//! Messages and keys are those of the reference implementation, because tests and operators search
//! for them. All values are strings.

use tracing::{info, warn};

use crate::metrics::{NodeEvent, Prepared, global as metrics};

/// How a layer was provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Mounted before its bytes were present.
    Lazy,
    /// Downloaded in one pass, then mounted.
    Whole,
}

/// The result for a mounted layer. Other layers are left to containerd, with a reason in text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How the layer was provided.
    pub way: Way,
    /// The reason.
    pub why: String,
}

/// Why a layer is left to containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The image has no usable index.
    NoIndex,
    /// Whether the image has an index is not known, or the request or this machine does not allow a
    /// mount.
    Unknown,
    /// The layer could not be mounted.
    Failed,
}

/// The request that a log line is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Key of the snapshot.
    pub(crate) key: String,
    /// Name of its parent, or empty.
    pub(crate) parent: String,
}

impl Subject {
    /// Logs that the layer is mounted and committed.
    pub(crate) fn prepared(&self, verdict: &Verdict) {
        let Self { key, parent } = self;
        let why = &verdict.why;
        metrics().prepared.inc(match verdict.way {
            Way::Lazy => Prepared::Lazy,
            Way::Whole => Prepared::Whole,
        });
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

    /// Logs that the layer cannot be mounted before its bytes are present, which is a failure.
    pub(crate) fn not_remote(&self, error: &str) {
        metrics().operations.node_event(NodeEvent::MountFailure);
        self.not_indexed(error);
    }

    /// Like [`Self::not_remote`], but not a failure: the image has no index, or the index has no
    /// zTOC of the layer.
    pub(crate) fn not_indexed(&self, error: &str) {
        let Self { key, parent } = self;
        warn!(
            "remote-snapshot-prepared" = "false",
            error, key, parent, "failed to prepare remote snapshot"
        );
    }

    /// Logs that containerd unpacks the layer, and why.
    pub(crate) fn left(&self, reason: Reason, error: &str) {
        metrics().prepared.inc(match reason {
            Reason::NoIndex => Prepared::NoIndex,
            Reason::Unknown | Reason::Failed => Prepared::Failed,
        });
        match reason {
            Reason::NoIndex | Reason::Unknown => self.deferred(error),
            Reason::Failed => self.deferred_local(error),
        }
    }

    fn deferred(&self, error: &str) {
        let Self { key, parent } = self;
        warn!(
            "defer-snapshot-runtime" = "true",
            error, key, parent, "no valid SOCI index found; deferring to container runtime"
        );
    }

    fn deferred_local(&self, error: &str) {
        let operations = &metrics().operations;
        operations.node_event(NodeEvent::LocalMountFailure);
        let Self { key, parent } = self;
        warn!(
            "defer-snapshot-runtime" = "true",
            error, key, parent, "failed to prepare local snapshot; deferring to container runtime"
        );
    }
}
