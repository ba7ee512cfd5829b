//! Writes results to disk atomically.
//!
//! A result is written under a temporary name next to its destination, and renamed when it is
//! complete and durable. Until then the previous content stays in place, also after a power
//! failure.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};

use soci_store::durable::sync_name;

use super::error::OutputError;

mod folder;

pub(super) use folder::{Copier, NewFolder};

/// A file that is renamed to its destination when it is complete.
#[derive(Debug)]
pub(super) struct NewFile {
    place: PathBuf,
    /// `None` if the destination is not a regular file (a pipe or a device), which is written
    /// directly.
    temporary: Option<Temporary>,
}

impl NewFile {
    /// Opens a file for the content of `path`.
    pub(super) fn create(path: &Path) -> Result<(Self, File), OutputError> {
        let failed = |cause| OutputError::CreateArchive {
            path: path.to_owned(),
            cause,
        };
        // A symlink stays: its target is replaced.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&place) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(failed(io::Error::from_raw_os_error(21)));
            }
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new()
                    .write(true)
                    .open(&place)
                    .map_err(failed)?;
                return Ok((
                    Self {
                        place,
                        temporary: None,
                    },
                    file,
                ));
            }
            _ => {}
        }
        let temporary = Temporary::beside(&place)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary.path);
        let file = file.map_err(failed)?;
        Ok((
            Self {
                place,
                temporary: Some(temporary),
            },
            file,
        ))
    }

    /// Renames the file to its destination.
    pub(super) fn finish(self, file: &File) -> Result<(), OutputError> {
        let Some(temporary) = self.temporary else {
            return Ok(());
        };
        file.sync_all().map_err(OutputError::WriteArchive)?;
        fs::rename(&temporary.path, &self.place).map_err(OutputError::WriteArchive)?;
        sync_name(&self.place).map_err(OutputError::WriteArchive)
    }
}

/// Locks a layout, so that only one process at a time changes its index. The lock is held until the
/// file is closed.
pub(super) fn lock(layout: &Path) -> Result<File, OutputError> {
    let folder = File::open(layout).map_err(|source| OutputError::Lock {
        path: layout.to_owned(),
        source,
    })?;
    if let Err(error) = folder.lock() {
        // Some network file systems do not support locks.
        tracing::warn!(
            "{} cannot be locked: {error}; let only one process write to it at a time",
            layout.display()
        );
    }
    Ok(folder)
}

/// A temporary path that is removed on drop, unless it has been renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(place: &Path) -> Result<Self, OutputError> {
        let name = place
            .file_name()
            .ok_or_else(|| OutputError::NoName(place.to_owned()))?;
        let number = std::hash::RandomState::new().build_hasher().finish();
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{number:016x}.tmp"));
        Ok(Self {
            path: place.with_file_name(hidden),
        })
    }
}

impl Temporary {
    /// Leaves what is at the path.
    fn keep(&mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let removed = match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&self.path),
            Ok(_) => fs::remove_file(&self.path),
            Err(_) => return,
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), %error, "temporary files stay behind");
        }
    }
}
