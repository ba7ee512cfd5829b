//! Snapshots: prepare, view, mounts, commit, remove, usage, walk, cleanup.
