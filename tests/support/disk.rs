//! A small disk that a test can fill.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::Program;

/// An ext4 file system in a file, mounted until it is dropped.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Creates a disk of the given size in megabytes, and copies everything under `folder` to it.
    pub fn make(folder: &Path, megabytes: u64) -> Result<Self> {
        let (image, at) = (folder.join("disk.ext4"), folder.join("disk"));
        fs::create_dir_all(&at)?;
        fs::File::create(&image)?.set_len(megabytes << 20)?;
        let mkfs = Program::at(Path::new("/sbin/mkfs.ext4"));
        mkfs.args(["-q", "-m", "0", "-O", "^has_journal"])
            .args([&image])
            .succeed()?;
        Program::at(Path::new("mount"))
            .args(["-o", "loop"])
            .args([&image, &at])
            .succeed()?;
        Ok(Self { at })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Fills the disk up to the given number of free megabytes. Removing the returned file frees
    /// the space.
    pub fn fill(&self, leaving_megabytes: u64) -> Result<PathBuf> {
        let (ballast, reserve) = (self.at.join("ballast"), self.at.join("reserve"));
        let block = vec![0xA5; 1 << 20];
        let mut kept = fs::File::create(&reserve)?;
        for _ in 0..leaving_megabytes {
            kept.write_all(&block)?;
        }
        kept.sync_all()?;
        let mut file = fs::File::create(&ballast)?;
        // Delayed allocation reserves more than it uses, so fill the remainder in smaller steps.
        for step in [block.len(), 64 << 10, 1 << 10] {
            while self.take(&mut file, &block[..step])? {}
        }
        fs::remove_file(reserve)?;
        Ok(ballast)
    }

    /// Writes to the file until the disk is full, and syncs it. Returns false if there was no
    /// space.
    fn take(&self, file: &mut fs::File, step: &[u8]) -> Result<bool> {
        let mut took = false;
        loop {
            match file.write(step) {
                Ok(_) => took = true,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("fill the disk"),
            }
        }
        match file.sync_all() {
            Err(error) if error.kind() != ErrorKind::StorageFull => Err(error)?,
            _ => Ok(took),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Mounts inside may keep it busy. The end of the sandbox removes it.
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }
}
