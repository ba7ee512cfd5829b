//! Where each byte of a layer's tar lies in the store: the 4 KiB shift.
//!
//! `data` has the content of every regular file that has any, in the order of the tar, each from the next 4 KiB
//! boundary on, zeros between, in front ([`LEAD`]) and behind ([`TAIL`]). `heads` has every other byte of the tar:
//!
//! ```text
//! tar           | head 1 | file 1   |pad| head 2 | head 3 | file 3 |pad|00..|
//! data   |00 .. | file 1   ....|file 3 ......| 00..|     files on 4 KiB boundaries
//! heads         | head 1 |pad| head 2 | head 3 |pad|00..|
//! ```
//!
//! So a contiguous range of the tar is one contiguous range of `data` and one of `heads`, and everything is a binary
//! search in two tables of fixed records, [`File`]s and headers. The tables are bytes (in practice a mapped file), so a
//! layer of 100,000 entries costs no heap. Who keeps them keeps a checksum: the records are trusted here.

use std::{fmt, ops::Range};

use crate::sync::Arc;

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{PlaceError, Planned, plan};

/// Files begin at multiples of this in `data`: the block of EROFS, and `st_blksize` as users expect it.
pub const BLOCK: u64 = 4096;

/// Bytes in front of the first file. They belong to no span and are always there, as a hole: what probes block devices
/// for file systems (udev, blkid, LVM) reads up to 4 MiB from the start of one and must not wait for a registry.
pub const LEAD: u64 = 8 << 20;

/// Bytes behind the last file, for the same reason: probes read up to 1.6 MiB before the end.
pub const TAIL: u64 = 2 << 20;

/// The largest `data`: EROFS counts a device's blocks in 32 bits.
const MAX_DATA: u64 = BLOCK << 32;

/// Entries of the largest layer that is mounted: about 400 MB while its tree is made. Images of a million files are rare.
pub const MOST_ENTRIES: usize = 2 << 20;

const MAGIC: &[u8; 8] = b"socipl\x00\x03";
const HEADER: usize = 64;
const FILE: usize = 32;
const HEAD: usize = 16;

/// A regular file with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Which entry of the tar it is.
    pub entry: u32,
    /// First byte of its content in the tar.
    pub tar: u64,
    /// Bytes of content, never 0.
    pub size: u64,
    /// Its place in `data`, a multiple of [`BLOCK`].
    pub data: u64,
    /// Bytes of `heads` in front of it.
    pub heads: u64,
}

/// One contiguous piece of the tar in one of the two files.
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
    /// Anything else.
    Heads {
        /// Offset in the tar.
        tar: u64,
        /// Offset in `heads`.
        heads: u64,
        /// Bytes.
        len: u64,
    },
}

/// The tables, ready for questions.
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
    /// Reads the tables that [`plan`] made.
    ///
    /// # Errors
    /// [`PlaceError::Foreign`] for anything of another form.
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

    /// The part of `data` that files are in: nothing in front of it and behind it belongs to a span.
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

    /// The bytes of the tar that are the header of an entry.
    pub fn header(&self, entry: usize) -> Option<Range<u64>> {
        (entry < self.entries).then(|| {
            let at = HEADER + entry * HEAD;
            word(self.bytes(), at)..word(self.bytes(), at + 8)
        })
    }

    /// The entries whose header has bytes in this range of the tar.
    pub fn headers_in(&self, tar: Range<u64>) -> Range<usize> {
        let header = |entry| self.header(entry).unwrap_or(0..0);
        let first = partition(self.entries, |entry| header(entry).end <= tar.start);
        let end = partition(self.entries, |entry| header(entry).start < tar.end);
        first..end.max(first)
    }

    /// Place in `data` of the file that is this entry; `None` if the entry has no content.
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

    /// The ranges of the tar that have the contents in this range of `data`, in order, each with its file's index. Zeros
    /// behind a file's end have none.
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

    /// Cuts a range of the tar into what lies in `data` and what lies in `heads`, in order.
    pub fn pieces(&self, tar: Range<u64>) -> impl Iterator<Item = Piece> + use<'_> {
        // The file that begins at or before the range may reach into it.
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
            // What is in front of the next file, or of the end of everything.
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

    /// tar, data, heads, entry; the record behind the last file is the end of everything.
    fn raw_file(&self, index: usize) -> [u64; 4] {
        if index >= self.files {
            return [self.archive_size, self.data_size, self.heads_size, u64::MAX];
        }
        let at = HEADER + self.entries * HEAD + index * FILE;
        [0, 8, 16, 24].map(|field| word(self.bytes(), at + field))
    }
}

/// First index in `0..len` for which `before` is false; `before` is true for a prefix.
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
