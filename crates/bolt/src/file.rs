//! Reads a whole file while no other process writes it.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(100);

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Another process has the file open for writing.
    #[error("another process does not let go of it")]
    Busy,
    /// It is a directory, a pipe or a device.
    #[error("it is no file")]
    NoFile,
    /// It is larger than the caller allows.
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a file of at most `limit` bytes under a shared lock, like bbolt's own readers. Returns
/// `None` if the file is missing or empty. Waits up to `patience` for a process that writes it.
///
/// # Errors
///
/// When the file cannot be read, or another process keeps it.
pub fn read(path: &Path, limit: u64, patience: Duration) -> Result<Option<Vec<u8>>, ReadError> {
    // Check the file type first, because opening a pipe would block.
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if !metadata.is_file() => return Err(ReadError::NoFile),
        other => other.map(drop)?,
    }
    let file = File::open(path)?;
    let started = Instant::now();
    loop {
        match file.try_lock_shared() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if started.elapsed() < patience => sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(ReadError::Busy),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge(limit));
    }
    Ok((!bytes.is_empty()).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_unless_it_is_missing_empty_large_or_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metadata.db");
        let now = Duration::ZERO;
        assert_eq!(read(&path, 4, now).unwrap(), None);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(read(&path, 4, now).unwrap(), None);
        std::fs::write(&path, b"four").unwrap();
        assert_eq!(read(&path, 4, now).unwrap().unwrap(), b"four");
        assert!(matches!(read(&path, 3, now), Err(ReadError::TooLarge(3))));
        assert!(matches!(
            read(folder.path(), 4, now),
            Err(ReadError::NoFile)
        ));
        let writer = File::open(&path).unwrap();
        writer.lock().unwrap();
        assert!(matches!(read(&path, 4, now), Err(ReadError::Busy)));
    }
}
