//! Every check of containerd's own suite for snapshotters, and those of its records that can be
//! observed at the socket. (For overlayfs, containerd also skips the test that renames a directory
//! of a lower layer.)

mod files;
mod records;
