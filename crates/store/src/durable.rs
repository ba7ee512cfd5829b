//! Makes the names of files durable. Syncing a file covers its content, but not its name in its
//! folder.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Syncs the names in a folder and its subfolders. The contents were synced when they were written.
///
/// # Errors
/// The error of the system call that failed.
pub fn sync_names(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_names(&entry.path())?;
        }
    }
    sync_folder(folder)
}

/// Syncs the name of a file or folder.
///
/// # Errors
/// The error of the system call that failed.
pub fn sync_name(place: &Path) -> io::Result<()> {
    sync_folder(&folder_of(place))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems do not support this.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// The parent folder of a path, which does not have to exist.
#[must_use]
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
