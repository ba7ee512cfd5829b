//! Maps tar offsets of a layer to offsets in `data` and `heads`.
//!
//! `data` contains the content of every nonempty regular file, in tar order, each at a 4 KiB
//! boundary, with zeros in between, before ([`LEAD`]), and after ([`TAIL`]). `heads` contains all
//! other bytes of the tar:
//!
//! ```text
//! tar           | head 1 | file 1   |pad| head 2 | head 3 | file 3 |pad|00..|
//! data   |00 .. | file 1   ....|file 3 ......| 00..|     files on 4 KiB boundaries
//! heads         | head 1 |pad| head 2 | head 3 |pad|00..|
//! ```
//!
//! A contiguous range of the tar is therefore one contiguous range of `data` and one of `heads`.
//! Lookups are binary searches in two tables of fixed-size records, [`File`]s and headers. The
//! tables are usually a mapped file, so a layer of 100,000 entries needs no heap. The records are
//! trusted here; the caller verifies a checksum.

use std::{fmt, ops::Range};

use crate::sync::Arc;

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{PlaceError, Planned, plan};

/// Files start at multiples of this in `data`. It is the block size of EROFS and the `st_blksize`
/// that users expect.
pub const BLOCK: u64 = 4096;

/// Bytes before the first file. They belong to no span and are always available as a hole: programs
/// that probe block devices for file systems (udev, blkid, LVM) read up to 4 MiB from the start and
/// must not wait for a registry.
pub const LEAD: u64 = 8 << 20;

/// Bytes after the last file, for the same reason: probes read up to 1.6 MiB before the end.
pub const TAIL: u64 = 2 << 20;

/// The largest `data`. EROFS counts the blocks of a device in 32 bits.
const MAX_DATA: u64 = BLOCK << 32;

/// Maximum number of entries of a mounted layer. Building its tree takes about 400 MB. Images with
/// a million files are rare.
pub const MOST_ENTRIES: usize = 2 << 20;

const MAGIC: &[u8; 8] = b"socipl\x00\x03";
const HEADER: usize = 64;
const FILE: usize = 32;
const HEAD: usize = 16;

/// A nonempty regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// The index of its entry in the tar.
    pub entry: u32,
    /// Offset of its content in the tar.
    pub tar: u64,
    /// Size of its content, never 0.
    pub size: u64,
    /// Offset in `data`, a multiple of [`BLOCK`].
    pub data: u64,
    /// Number of bytes of `heads` that precede it.
    pub heads: u64,
}

/// A contiguous piece of the tar in one of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Content of a file.
    Data {
        /// Offset in the tar.
        tar: u64,
        /// Offset in `data`.
        data: u64,
        /// Bytes.
        len: u64,
    },
    /// Any other bytes.
    Heads {
        /// Offset in the tar.
        tar: u64,
        /// Offset in `heads`.
        heads: u64,
        /// Bytes.
        len: u64,
    },
}

/// The tables, ready for lookups.
#[derive(Clone)]
pub struct Places {
    table: Arc<dyn AsRef<[u8]> + Send + Sync>,
    files: usize,
    entries: usize,
    archive_size: u64,
    data_size: u64,
    heads_size: u64,
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places")
            .field("files", &self.files)
            .field("entries", &self.entries)
            .field("data_size", &self.data_size)
            .finish_non_exhaustive()
    }
}

impl Places {
    /// Opens tables that [`plan`] created.
    ///
    /// # Errors
    /// [`PlaceError::Foreign`] if the format is not this version's.
    pub fn new(table: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Result<Places, PlaceError> {
        let bytes: &[u8] = (*table).as_ref();
        if bytes.get(..8) != Some(MAGIC) || bytes.len() < HEADER {
            return Err(PlaceError::Foreign);
        }
        let count = |at| usize::try_from(word(bytes, at)).map_err(|_| PlaceError::Foreign);
        let (files, entries) = (count(8)?, count(16)?);
        let expected = files
            .checked_mul(FILE)
            .zip(entries.checked_mul(HEAD))
            .and_then(|(a, b)| a.checked_add(b)?.checked_add(HEADER));
        if expected != Some(bytes.len()) {
            return Err(PlaceError::Foreign);
        }
        let (archive_size, data_size, heads_size) =
            (word(bytes, 24), word(bytes, 32), word(bytes, 40));
        Ok(Places {
            files,
            entries,
            archive_size,
            data_size,
            heads_size,
            table,
        })
    }

    /// Number of regular files with content.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Number of entries of the tar.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Size of the tar.
    pub fn archive_size(&self) -> u64 {
        self.archive_size
    }

    /// Size of `data`, a multiple of [`BLOCK`].
    pub fn data_size(&self) -> u64 {
        self.data_size
    }

    /// The part of `data` that contains files. The bytes before and after it belong to no span.
    pub fn contents(&self) -> Range<u64> {
        LEAD..self.data_size.saturating_sub(TAIL).max(LEAD)
    }

    /// Size of `heads`.
    pub fn heads_size(&self) -> u64 {
        self.heads_size
    }

    /// The `index`th file, in the order of the tar.
    pub fn file(&self, index: usize) -> Option<File> {
        (index < self.files).then(|| {
            let [tar, data, heads, entry] = self.raw_file(index);
            let [next_tar, _, next_heads, _] = self.raw_file(index + 1);
            let size = next_tar
                .saturating_sub(tar)
                .saturating_sub(next_heads.saturating_sub(heads));
            File {
                entry: u32::try_from(entry).unwrap_or(u32::MAX),
                tar,
                size,
                data,
                heads,
            }
        })
    }

    /// All files, in the order of the tar.
    pub fn iter(&self) -> impl Iterator<Item = File> + '_ {
        (0..self.files).filter_map(|index| self.file(index))
    }

    /// The range of the tar that contains the header of an entry.
    pub fn header(&self, entry: usize) -> Option<Range<u64>> {
        (entry < self.entries).then(|| {
            let at = HEADER + entry * HEAD;
            word(self.bytes(), at)..word(self.bytes(), at + 8)
        })
    }

    /// The entries whose headers overlap this range of the tar.
    pub fn headers_in(&self, tar: Range<u64>) -> Range<usize> {
        let header = |entry| self.header(entry).unwrap_or(0..0);
        let first = partition(self.entries, |entry| header(entry).end <= tar.start);
        let end = partition(self.entries, |entry| header(entry).start < tar.end);
        first..end.max(first)
    }

    /// Offset in `data` of the file with this entry. `None` if the entry has no content.
    pub fn data_of(&self, entry: u32) -> Option<u64> {
        let index = partition(self.files, |file| self.raw_file(file)[3] < u64::from(entry));
        self.file(index)
            .filter(|file| file.entry == entry)
            .map(|file| file.data)
    }

    /// The files that have blocks in this range of `data`.
    pub fn files_in(&self, data: Range<u64>) -> Range<usize> {
        let end = partition(self.files, |file| self.raw_file(file)[1] < data.end);
        let first = partition(self.files, |file| self.raw_file(file)[1] <= data.start);
        first.saturating_sub(1).min(end)..end
    }

    /// The ranges of the tar whose content is in this range of `data`, in order, each with the
    /// index of its file. Padding after the end of a file belongs to none.
    pub fn tar_of_data(
        &self,
        data: Range<u64>,
    ) -> impl Iterator<Item = (usize, Range<u64>)> + use<'_> {
        self.files_in(data.clone()).filter_map(move |index| {
            let file = self.file(index)?;
            let from = data.start.max(file.data) - file.data;
            let to = data
                .end
                .min(file.data + file.size)
                .saturating_sub(file.data);
            (from < to).then_some((index, file.tar + from..file.tar + to))
        })
    }

    /// Splits a range of the tar into pieces of `data` and `heads`, in order.
    pub fn pieces(&self, tar: Range<u64>) -> impl Iterator<Item = Piece> + use<'_> {
        // The last file that starts at or before the range may reach into it.
        let mut next = partition(self.files, |file| self.raw_file(file)[0] <= tar.start);
        next = next.saturating_sub(1);
        let (mut at, end) = (tar.start, tar.end.min(self.archive_size));
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let mut file = self.file(next);
            while file.is_some_and(|file| file.tar + file.size <= at) {
                next += 1;
                file = self.file(next);
            }
            let tar = at;
            if let Some(file) = file.filter(|file| file.tar <= tar) {
                at = end.min(file.tar + file.size);
                let data = file.data + (tar - file.tar);
                return Some(Piece::Data {
                    tar,
                    data,
                    len: at - tar,
                });
            }
            // The bytes before the next file, or before the end of the tar.
            let [begins, _, heads, _] = self.raw_file(next);
            at = end.min(begins);
            let heads = heads - (begins - tar);
            Some(Piece::Heads {
                tar,
                heads,
                len: at - tar,
            })
        })
    }

    fn bytes(&self) -> &[u8] {
        (*self.table).as_ref()
    }

    /// tar, data, heads, entry. The record after the last file marks the end of the tar.
    fn raw_file(&self, index: usize) -> [u64; 4] {
        if index >= self.files {
            return [self.archive_size, self.data_size, self.heads_size, u64::MAX];
        }
        let at = HEADER + self.entries * HEAD + index * FILE;
        [0, 8, 16, 24].map(|field| word(self.bytes(), at + field))
    }
}

/// The first index in `0..len` for which `before` is false. `before` must be true for a prefix.
fn partition(len: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|field| field.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}
