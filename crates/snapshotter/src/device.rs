//! The node's FUSE mount: one file per layer.
