//! Every check of containerd's own suite for snapshotters, and those of its records that show at the socket.
//! (Its test that renames a directory of a lower layer is left out for overlayfs there too.)

mod files;
mod records;
