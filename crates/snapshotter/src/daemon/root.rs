//! The root directory, which one daemon has at a time.
//!
//! Two locks: a daemon as a whole, keeper or lone process, *claims* the root, and a second one is refused at once; the
//! process that works in it, of which a daemon has one after the other, *takes* it, and waits for the one before to be
//! gone. Both before the socket and before any mount of an earlier process is touched.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The file that a daemon locks.
const CLAIM: &str = "daemon.lock";
/// The file that the process locks which works in the root.
const LOCK: &str = "lock";
/// How long a process that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// The right of one daemon to the root, until this is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl Claim {
    /// Makes the directory if it is not there, and claims it.
    pub fn take(path: &Path) -> Result<Self, RootError> {
        let path = made(path)?;
        let lock = locked(&path, CLAIM)?.ok_or(RootError::Taken(path))?;
        Ok(Self { _lock: lock })
    }
}

/// The root directory, locked until this is dropped or the process ends.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    _lock: File,
    _claim: Option<Claim>,
}

impl Root {
    /// Claims and takes it, for a daemon that is one process.
    pub fn take(path: &Path) -> Result<Self, RootError> {
        let claim = Claim::take(path)?;
        let root = Self::take_claimed(path)?;
        Ok(Self {
            _claim: Some(claim),
            ..root
        })
    }

    /// Takes what this process's keeper has claimed.
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

    /// Its path, canonical: as the kernel's table of mounts shows it.
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

/// The lock, unless another process has it.
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
    fn a_root_is_made_and_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = Root::take(&path).unwrap();
        let error = Root::take(&path).unwrap_err();
        assert!(error.to_string().contains("another daemon"), "{error}");
        drop(first);
        Root::take(&path).unwrap();
    }

    #[test]
    fn the_next_process_waits_for_the_one_before() {
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
