//! Limits for the disk space that background downloads may use. Reads are never refused.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use super::{LayerKey, LayerStore, sealed::missing_is_none};

/// Bytes per block in stat(2).
const BLOCK: u64 = 512;

/// By default, 5 % of the file system stays free, but at most this many bytes.
const MOST_KEPT: u64 = 2 << 30;

/// Limits for background downloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the store's file system that stay free. `None` means 5 % or 2 GiB, whichever is
    /// smaller.
    pub min_free: Option<u64>,
    /// Maximum bytes on disk for all layers together.
    pub max_bytes: Option<u64>,
}

/// The file system of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Free bytes.
    pub free: u64,
    /// Total bytes.
    pub total: u64,
}

impl Limits {
    /// Bytes that stay free on this disk.
    pub fn floor(&self, disk: Disk) -> u64 {
        self.min_free
            .unwrap_or_else(|| (disk.total / 20).min(MOST_KEPT))
    }

    /// Bytes to release if layers occupy `used` bytes.
    pub fn excess(&self, disk: Disk, used: u64) -> u64 {
        let missing = self.floor(disk).saturating_sub(disk.free);
        let own = self.max_bytes.map_or(0, |most| used.saturating_sub(most));
        missing.max(own)
    }

    /// Bytes that the background may still download if layers occupy `used` bytes.
    pub fn room(&self, disk: Disk, used: u64) -> u64 {
        let free = disk.free.saturating_sub(self.floor(disk));
        let own = self
            .max_bytes
            .map_or(u64::MAX, |most| most.saturating_sub(used));
        free.min(own)
    }
}

/// The disk usage of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of its files, without holes.
    pub bytes: u64,
    /// Its files and its directory.
    pub inodes: u64,
}

impl LayerStore {
    /// The file system of the layers. Does no I/O.
    ///
    /// # Errors
    /// The system's.
    pub fn disk(&self) -> io::Result<Disk> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(Disk {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    /// Bytes on disk of the contents of all layers. Two system calls per layer.
    pub fn used(&self) -> u64 {
        let layers = self.list().into_iter();
        let folders = layers.map(|(number, _)| self.root.join(number.to_string()));
        let files = folders.flat_map(|folder| ["data", "heads"].map(|name| folder.join(name)));
        // A layer that is removed meanwhile occupies nothing.
        files
            .filter_map(|file| fs::metadata(file).ok())
            .map(|found| found.blocks() * BLOCK)
            .sum()
    }
}

impl LayerStore {
    /// The disk usage of a layer, including its tables and images. Zero if it does not exist. One
    /// system call per file.
    ///
    /// # Errors
    /// The system's.
    pub fn taken(&self, key: &LayerKey) -> io::Result<Taken> {
        let Some(number) = self.number(key) else {
            return Ok(Taken::default());
        };
        let folder = self.root.join(number.to_string());
        let mut taken = Taken::default();
        let mut add = |found: fs::Metadata| {
            taken.bytes += found.blocks() * BLOCK;
            taken.inodes += 1;
        };
        // The layer may be removed meanwhile.
        let Some(found) = missing_is_none(fs::metadata(&folder))? else {
            return Ok(taken);
        };
        add(found);
        for file in missing_is_none(fs::read_dir(&folder))?
            .into_iter()
            .flatten()
        {
            if let Some(found) = missing_is_none(file?.metadata())? {
                add(found);
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_a_share_of_the_disk_or_the_configured_value() {
        let disk = |free: u64, total: u64| Disk { free, total };
        let limits = Limits::default();
        assert_eq!(limits.floor(disk(0, 10 << 30)), (10 << 30) / 20);
        assert_eq!(limits.floor(disk(0, 1 << 40)), MOST_KEPT);
        assert_eq!(limits.room(disk(3 << 30, 1 << 40), 0), 1 << 30);
        assert_eq!(limits.room(disk(1 << 30, 1 << 40), 0), 0);
        let limits = Limits {
            min_free: Some(100),
            max_bytes: Some(1000),
        };
        assert_eq!(limits.room(disk(5000, 10_000), 300), 700);
        assert_eq!(limits.room(disk(500, 10_000), 300), 400);
        assert_eq!(limits.room(disk(500, 10_000), 2000), 0);
        assert_eq!(limits.excess(disk(500, 10_000), 900), 0);
        assert_eq!(limits.excess(disk(30, 10_000), 900), 70);
        assert_eq!(limits.excess(disk(30, 10_000), 1200), 200);
    }
}
