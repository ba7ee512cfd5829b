//! Notices that a file has changed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// The state of a file, without its content. A replaced or edited file has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds. The change time also covers tools that set the modification time.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The state of the file that the path leads to; `None` if there is none.
    pub(crate) fn of(path: &Path) -> Option<Stamp> {
        let metadata = fs::metadata(path).ok()?;
        Some(Stamp {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
