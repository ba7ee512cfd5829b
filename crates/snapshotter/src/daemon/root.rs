//! Locks the state directory for one daemon.
//!
//! There are two locks. A daemon (the keeper or a single process) *claims* the directory; a second
//! daemon fails immediately. The process that works in the directory, one at a time per daemon,
//! *takes* it and waits for its predecessor to end. Both happen before the socket or an existing
//! mount is used.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Lock file of the daemon.
const CLAIM: &str = "daemon.lock";
/// Lock file of the process that works in the directory.
const LOCK: &str = "lock";
/// How long to wait for a predecessor that was killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Another daemon uses it.
    #[error("{} is locked: another daemon runs on the same root", .0.display())]
    Taken(PathBuf),
    /// It cannot be created or written to.
    #[error("cannot use the root directory {}", path.display())]
    Io {
        /// The state directory.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
}

/// A daemon's claim on the state directory, until dropped or until the process ends.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl Claim {
    /// Creates the directory if necessary and claims it.
    pub fn take(path: &Path) -> Result<Self, RootError> {
        let path = made(path)?;
        let lock = locked(&path, CLAIM)?.ok_or(RootError::Taken(path))?;
        Ok(Self { _lock: lock })
    }
}

/// The state directory, locked until dropped or until the process ends.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    _lock: File,
    _claim: Option<Claim>,
}

impl Root {
    /// Claims and takes it, for a daemon without a keeper.
    pub fn take(path: &Path) -> Result<Self, RootError> {
        let claim = Claim::take(path)?;
        let root = Self::take_claimed(path)?;
        Ok(Self {
            _claim: Some(claim),
            ..root
        })
    }

    /// Takes the directory that this process's keeper has claimed.
    pub fn take_claimed(path: &Path) -> Result<Self, RootError> {
        let path = made(path)?;
        let start = Instant::now();
        loop {
            if let Some(lock) = locked(&path, LOCK)? {
                return Ok(Self {
                    path,
                    _lock: lock,
                    _claim: None,
                });
            }
            if start.elapsed() > PATIENCE {
                return Err(RootError::Taken(path));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The canonical path, as the kernel's mount table shows it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn made(path: &Path) -> Result<PathBuf, RootError> {
    let mut folder = DirBuilder::new();
    let made = folder.recursive(true).mode(0o700).create(path);
    made.and_then(|()| fs::canonicalize(path))
        .map_err(|source| failed(path, source))
}

/// Locks the file, unless another process holds the lock.
fn locked(root: &Path, name: &str) -> Result<Option<File>, RootError> {
    let lock = File::create(root.join(name)).map_err(|source| failed(root, source))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(root, error.into())),
    }
}

fn failed(path: &Path, source: io::Error) -> RootError {
    RootError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_created_and_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = Root::take(&path).unwrap();
        let error = Root::take(&path).unwrap_err();
        assert!(error.to_string().contains("another daemon"), "{error}");
        drop(first);
        Root::take(&path).unwrap();
    }

    #[test]
    fn the_next_process_waits_for_its_predecessor() {
        let folder = tempfile::tempdir().unwrap();
        let _claim = Claim::take(folder.path()).unwrap();
        let first = Root::take_claimed(folder.path()).unwrap();
        let path = folder.path().to_owned();
        let next = std::thread::spawn(move || Root::take_claimed(&path).map(drop));
        assert!(matches!(
            Claim::take(folder.path()),
            Err(RootError::Taken(_))
        ));
        drop(first);
        next.join().unwrap().unwrap();
    }
}
