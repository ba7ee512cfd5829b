//! Reserved space for the database file.
//!
//! On a full disk, containerd must still be able to remove snapshots, because removals free space.
//! Every transaction writes new pages, and the file grows by doubling. Blocks after its end are
//! therefore allocated while there is space, so that no other file can use them. New snapshots
//! require a complete reserve; updates and removals may use it up.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::FallocateFlags;

/// Block size in the units of stat(2), in bytes.
const STAT_BLOCK: u64 = 512;
/// Limits of the reserve in bytes. Between them it equals the file size, because the file doubles.
const LEAST: u64 = 1 << 20;
const MOST: u64 = 16 << 20;

/// The reserve of one file.
#[derive(Debug)]
pub(super) struct Reserve(File);

impl Reserve {
    /// The reserve of the file at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        File::options().write(true).open(path).map(Self)
    }

    /// Completes the reserve. If it is complete, this costs one stat call.
    ///
    /// # Errors
    ///
    /// When the disk is full. A file system that cannot allocate ahead has no reserve, which is not
    /// an error.
    pub(super) fn keep(&self) -> io::Result<()> {
        let found = self.0.metadata()?;
        let wanted = found.len() + found.len().clamp(LEAST, MOST);
        if found.blocks() * STAT_BLOCK >= wanted {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, 0, wanted) {
            Err(error) if is_full(&error.into()) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Reserve {
    /// redb truncates the file when it closes it. Reserve the space again for the next process.
    fn drop(&mut self) {
        drop(self.keep());
    }
}

/// Whether the error means that the disk is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
