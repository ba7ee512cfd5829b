//! How much room layers may take behind the back of their readers. Readers themselves are never refused.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use super::{LayerKey, LayerStore, sealed::missing_is_none};

/// Bytes of a block as stat(2) counts them.
const BLOCK: u64 = 512;

/// Free space that is kept unless told otherwise: a twentieth of the file system, but not more than this.
const MOST_KEPT: u64 = 2 << 30;

/// Bounds for what is fetched that nobody has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the store's file system that stay free; none is the smaller of 5 % and 2 GiB.
    pub min_free: Option<u64>,
    /// Bytes on disk that all layers together may take.
    pub max_bytes: Option<u64>,
}

/// The store's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Limits {
    /// Bytes that stay free on this disk.
    pub fn floor(&self, disk: Disk) -> u64 {
        self.min_free
            .unwrap_or_else(|| (disk.total / 20).min(MOST_KEPT))
    }

    /// Bytes that are to be given back, when layers take `used`.
    pub fn excess(&self, disk: Disk, used: u64) -> u64 {
        let missing = self.floor(disk).saturating_sub(disk.free);
        let own = self.max_bytes.map_or(0, |most| used.saturating_sub(most));
        missing.max(own)
    }

    /// Bytes that may still be brought behind, when layers take `used`.
    pub fn room(&self, disk: Disk, used: u64) -> u64 {
        let free = disk.free.saturating_sub(self.floor(disk));
        let own = self
            .max_bytes
            .map_or(u64::MAX, |most| most.saturating_sub(used));
        free.min(own)
    }
}

/// What one layer takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of its files, holes not counted.
    pub bytes: u64,
    /// Its files and its folder.
    pub inodes: u64,
}

impl LayerStore {
    /// The file system that layers are on. No I/O.
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

    /// Bytes that the contents of all layers take on disk; two calls a layer.
    pub fn used(&self) -> u64 {
        let layers = self.list().into_iter();
        let folders = layers.map(|(number, _)| self.root.join(number.to_string()));
        let files = folders.flat_map(|folder| ["data", "heads"].map(|name| folder.join(name)));
        // One that was removed meanwhile takes nothing.
        files
            .filter_map(|file| fs::metadata(file).ok())
            .map(|found| found.blocks() * BLOCK)
            .sum()
    }
}

impl LayerStore {
    /// What a layer takes on disk, with its tables and images; nothing if it is not there. One call a file.
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
        // It may be removed meanwhile.
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
    fn the_floor_is_a_part_of_the_disk_or_what_was_asked_for() {
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
