//! The loop devices of a node, as sysfs shows them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A loop device that has a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    /// `/dev/loopN`.
    pub path: PathBuf,
    pub backing: PathBuf,
    /// Bytes of the device.
    pub size: u64,
    /// Whether it reads its file past the page cache.
    pub direct: bool,
}

/// All whose files lie below a folder.
pub fn below(folder: &Path) -> Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").context("list block devices")? {
        let entry = entry?;
        let attribute = |name: &str| fs::read_to_string(entry.path().join(name));
        // A device that is not a loop, or has no file, or has just lost it.
        let Ok(backing) = attribute("loop/backing_file") else {
            continue;
        };
        let backing = PathBuf::from(backing.trim_end());
        if !backing.starts_with(folder) {
            continue;
        }
        let sectors: u64 = attribute("size")?.trim_end().parse()?;
        found.push(LoopDevice {
            path: Path::new("/dev").join(entry.file_name()),
            backing,
            size: sectors * 512,
            direct: attribute("loop/dio")?.trim_end() == "1",
        });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

impl LoopDevice {
    /// Reads a piece, as what probes block devices does.
    pub fn read(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        let mut piece = vec![0; length];
        File::open(&self.path)?
            .read_exact_at(&mut piece, at)
            .with_context(|| format!("read {} at {at}", self.path.display()))?;
        Ok(piece)
    }
}
