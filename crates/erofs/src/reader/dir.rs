//! Directories: sorted blocks of entries, with binary search and ordered listing.

use std::cmp::Ordering;

use super::{Bytes, Nid, ReadError, Reader, Stat, u16_of, u64_of};
use crate::format::{BLOCK_SIZE, DIRENT_SIZE, Layout};

const DIR_BLOCK: usize = 4096;
const _: () = assert!(
    DIR_BLOCK as u64 == BLOCK_SIZE,
    "directories are cut into blocks"
);

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Its name; never `.` or `..`.
    pub name: &'a [u8],
    /// Its inode.
    pub nid: Nid,
}

impl<'a> Reader<'a> {
    /// Finds a name in a directory, including `.` and `..`. Returns `None` if the name does not
    /// exist or the inode is not a directory.
    ///
    /// # Errors
    /// Fails if the image is damaged.
    pub fn lookup(&self, dir: Nid, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        let stat = self.stat(dir)?;
        if !stat.is_dir() {
            return Ok(None);
        }
        // Find the last block whose first name is not greater than the name, then the entry in it.
        let (mut low, mut high) = (0, stat.size.div_ceil(BLOCK_SIZE));
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            let block = DirBlock::new(&stat, self.dir_block(&stat, middle)?)?;
            if block.name(0)? <= name {
                low = middle
            } else {
                high = middle
            }
        }
        if low >= high {
            return Ok(None);
        }
        let block = DirBlock::new(&stat, self.dir_block(&stat, low)?)?;
        let (mut low, mut high) = (0, block.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match block.name(middle)?.cmp(name) {
                Ordering::Equal => return Ok(Some(block.nid(middle)?)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// The entries of a directory in name order, without `.` and `..`.
    pub fn read_dir(&self, dir: Nid) -> impl Iterator<Item = Result<DirEntry<'a>, ReadError>> {
        let reader = *self;
        let stat = reader.stat(dir).and_then(|stat| match stat.is_dir() {
            true => Ok(stat),
            false => Err(stat.error("not a directory")),
        });
        let (blocks, failed) = match &stat {
            Ok(stat) => (stat.size.div_ceil(BLOCK_SIZE), None),
            Err(error) => (0, Some(Err(error.clone()))),
        };
        let entries = (0..blocks).map_while(move |number| {
            let stat = stat.as_ref().ok()?;
            let block = reader
                .dir_block(stat, number)
                .and_then(|bytes| DirBlock::new(stat, bytes));
            Some(block)
        });
        // The listing ends at an unreadable block, so that a bogus size cannot make it long.
        let mut broken = false;
        let entries =
            entries.take_while(move |block| !std::mem::replace(&mut broken, block.is_err()));
        let entries = entries.flat_map(|block| {
            let (block, error) = match block {
                Ok(block) => (Some(block), None),
                Err(error) => (None, Some(Err(error))),
            };
            let count = block.as_ref().map_or(0, |block| block.count);
            (0..count)
                .filter_map(move |at| block.as_ref().map(|block| block.entry(at)))
                .chain(error)
        });
        failed
            .into_iter()
            .chain(entries)
            .filter(|entry| match entry {
                Ok(entry) => !matches!(entry.name, b"." | b".."),
                Err(_) => true,
            })
    }

    /// One block of a directory; the last block is cut to its used size.
    fn dir_block(&self, stat: &Stat, number: u64) -> Result<&'a [u8], ReadError> {
        let begin = number.saturating_mul(BLOCK_SIZE);
        let len = stat.size.saturating_sub(begin).min(BLOCK_SIZE);
        let is_tail = stat.layout == Layout::Inline && len < BLOCK_SIZE;
        let at = match stat.layout {
            Layout::Chunks => return Err(stat.error("a directory of chunks")),
            _ if is_tail => self.tail_at(stat),
            _ => (u64::from(stat.union) * BLOCK_SIZE).saturating_add(begin),
        };
        Bytes(self.image).slice(at, len)
    }
}

/// A block of a directory with a checked entry count.
struct DirBlock<'a> {
    bytes: &'a [u8],
    count: usize,
    nid: u64,
}

impl<'a> DirBlock<'a> {
    fn new(stat: &Stat, bytes: &'a [u8]) -> Result<Self, ReadError> {
        let damaged = || stat.error("damaged directory block");
        let first_name = bytes.get(8..10).map(|field| usize::from(u16_of(field, 0)));
        let first_name = first_name.ok_or_else(damaged)?;
        let fits = first_name % DIRENT_SIZE == 0 && first_name > 0 && first_name <= bytes.len();
        if !fits || bytes.len() > DIR_BLOCK {
            return Err(damaged());
        }
        Ok(Self {
            bytes,
            count: first_name / DIRENT_SIZE,
            nid: stat.nid.0,
        })
    }

    fn error(&self) -> ReadError {
        ReadError::Inode {
            nid: self.nid,
            what: "damaged directory entry",
        }
    }

    fn record(&self, at: usize) -> Result<&'a [u8], ReadError> {
        self.bytes
            .get(at * DIRENT_SIZE..(at + 1) * DIRENT_SIZE)
            .ok_or_else(|| self.error())
    }

    fn nid(&self, at: usize) -> Result<Nid, ReadError> {
        Ok(Nid(u64_of(self.record(at)?, 0)))
    }

    fn name(&self, at: usize) -> Result<&'a [u8], ReadError> {
        let begin = usize::from(u16_of(self.record(at)?, 8));
        let end = match at + 1 < self.count {
            true => usize::from(u16_of(self.record(at + 1)?, 8)),
            false => self.bytes.len(),
        };
        let name = self.bytes.get(begin..end).ok_or_else(|| self.error())?;
        // In a block that is not full, a NUL ends the last name.
        Ok(name.split(|&byte| byte == 0).next().unwrap_or_default())
    }

    fn entry(&self, at: usize) -> Result<DirEntry<'a>, ReadError> {
        Ok(DirEntry {
            name: self.name(at)?,
            nid: self.nid(at)?,
        })
    }
}
