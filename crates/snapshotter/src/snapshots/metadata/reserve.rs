//! Space that the file of the records has before it needs it.
//!
//! On a disk without a free byte containerd must still be able to remove snapshots through us: that is how space comes
//! back. Every transaction writes pages beside those that it replaces, and the file grows by doubling, so blocks are
//! allocated behind its end while there is room. Nobody else can take them. New snapshots wait until the reserve is
//! whole again; what only changes or removes may use it up.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::FallocateFlags;

/// Size of a block as stat(2) counts them, in bytes.
const STAT_BLOCK: u64 = 512;
/// Least and most bytes that are kept beyond the file's end; between them as many as it has, for it grows by doubling.
const LEAST: u64 = 1 << 20;
const MOST: u64 = 16 << 20;

/// The reserve of one file.
#[derive(Debug)]
pub(super) struct Reserve(File);

impl Reserve {
    /// That of the file at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        File::options().write(true).open(path).map(Self)
    }

    /// Makes the reserve whole. One look at the file where it is.
    ///
    /// # Errors
    /// A full disk. A file system that cannot allocate ahead has no reserve, which is no error.
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
    /// redb gives back what it does not use when it closes the file: the next process needs it.
    fn drop(&mut self) {
        drop(self.keep());
    }
}

/// Whether space is what is missing.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
