//! What is logged about a request for a layer.
//!
//! Messages and keys are those of the reference implementation, because tests and operators search
//! for them. All values are strings.

use soci_status::Reason;
use tracing::{error, info, warn};

use super::plan::{Decision, Line, Step};
use crate::metrics::{NodeEvent, Prepared, global as metrics};

/// How a mounted layer was provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Mounted before its bytes were present.
    Lazy,
    /// Downloaded in one pass, then mounted.
    Whole,
}

/// The request that a log line is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Key of the snapshot.
    pub(crate) key: String,
    /// Name of its parent, or empty.
    pub(crate) parent: String,
    /// Digest of the layer, or empty if the request does not name one.
    pub(crate) layer: String,
}

impl Subject {
    /// Logs and counts a decision. `why` explains it.
    pub(crate) fn say(&self, decision: &Decision, why: &str) {
        for line in decision.says {
            self.line(*line, why);
        }
        let prepared = match (decision.step, decision.verdict) {
            (Step::Defer, Some((_, Reason::NoIndex | Reason::BadIndex))) => Prepared::NoIndex,
            (Step::Defer | Step::Refuse, _) => Prepared::Failed,
            (Step::Commit, _) if decision.says.contains(&Line::PreparedLazy) => Prepared::Lazy,
            (Step::Commit, _) => Prepared::Whole,
            _ => return,
        };
        metrics().prepared.inc(prepared);
    }

    fn line(&self, line: Line, why: &str) {
        let Self { key, parent, layer } = self;
        let operations = &metrics().operations;
        match line {
            Line::BadSize => error!(
                key,
                parent, "the label with the size of the layer is not a number and is ignored"
            ),
            Line::Small => info!(
                key,
                parent,
                "layer size less than runtime min_layer_size, skipping remote snapshot preparation"
            ),
            Line::Local => info!("preparing snapshot as local snapshot"),
            Line::Parallel => info!(
                layerDigest = layer,
                key, parent, why, "preparing snapshot with parallel pull/unpack"
            ),
            Line::PreparedLazy => info!(
                "remote-snapshot-prepared" = "true",
                key, parent, why, "remote snapshot successfully prepared."
            ),
            Line::PreparedWhole => info!(
                "local-snapshot-prepared" = "true",
                key, parent, why, "local snapshot successfully prepared"
            ),
            Line::NotIndexed => self.not_prepared(why),
            Line::NotRemote => {
                operations.node_event(NodeEvent::MountFailure);
                self.not_prepared(why);
            }
            Line::Deferred => warn!(
                "defer-snapshot-runtime" = "true",
                error = why,
                key,
                parent,
                "no valid SOCI index found; deferring to container runtime"
            ),
            Line::DeferredLocal => {
                operations.node_event(NodeEvent::LocalMountFailure);
                warn!(
                    "defer-snapshot-runtime" = "true",
                    error = why,
                    key,
                    parent,
                    "failed to prepare local snapshot; deferring to container runtime"
                );
            }
            Line::Refused => error!(
                error = why,
                key,
                parent,
                "the image has an index and cannot be loaded lazily: the pull fails, because [snapshotter] strict is set"
            ),
        }
    }

    fn not_prepared(&self, error: &str) {
        let Self { key, parent, .. } = self;
        warn!(
            "remote-snapshot-prepared" = "false",
            error, key, parent, "failed to prepare remote snapshot"
        );
    }
}
