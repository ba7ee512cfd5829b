//! What became of an image and of each layer, and why; and the lines that say so.
//!
//! Messages and keys are those of the reference, because tests and operators look for them. All values are
//! strings.

use tracing::warn;

/// containerd unpacks the layer itself.
pub(crate) fn deferred(key: &str, parent: Option<&str>, why: &str) {
    warn!(
        "defer-snapshot-runtime" = "true",
        error = why,
        key,
        parent = parent.unwrap_or_default(),
        "no valid SOCI index found; deferring to container runtime"
    );
}
