//! The root directory, which one daemon has at a time.
//!
//! It is taken before the socket and before any mount of an earlier process is detached: a second daemon on the
//! same root would otherwise take the first one's away before it noticed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Name of the file that is locked.
const LOCK: &str = "lock";

/// Why the root cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A second daemon.
    #[error("{} is locked: another daemon runs on the same root", .0.display())]
    Taken(PathBuf),
    /// It cannot be made or written to.
    #[error("cannot use the root directory {}", path.display())]
    Io {
        /// The root.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The root directory, locked until this is dropped or the process ends.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    _lock: File,
}

impl Root {
    /// Makes the directory if it is not there, and takes it.
    pub fn take(path: &Path) -> Result<Self, RootError> {
        let io = |source| RootError::Io {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io)?;
        let path = fs::canonicalize(path).map_err(io)?;
        let lock = File::create(path.join(LOCK)).map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(RootError::Taken(path)),
            Err(error) => Err(io(error.into())),
        }
    }

    /// Its path, canonical: as the kernel's table of mounts shows it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_made_and_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = Root::take(&path).unwrap();
        let error = Root::take(&path).unwrap_err();
        assert!(error.to_string().contains("another daemon"), "{error}");
        drop(first);
        Root::take(&path).unwrap();
    }
}
