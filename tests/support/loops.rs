//! The loop devices of a node, from sysfs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A loop device with a backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    /// `/dev/loopN`.
    pub path: PathBuf,
    pub backing: PathBuf,
    /// Size of the device in bytes.
    pub size: u64,
    /// Whether it uses direct I/O.
    pub direct: bool,
}

/// All loop devices whose backing files are below a directory.
pub fn below(folder: &Path) -> Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").context("list block devices")? {
        let entry = entry?;
        let attribute = |name: &str| fs::read_to_string(entry.path().join(name));
        // Not a loop device, without a backing file, or just detached.
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
    /// Reads a part of the device, like programs that probe block devices.
    pub fn read(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        let mut piece = vec![0; length];
        File::open(&self.path)?
            .read_exact_at(&mut piece, at)
            .with_context(|| format!("read {} at {at}", self.path.display()))?;
        Ok(piece)
    }
}
