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

/// One entry of the tar, as planning needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Bytes of the tar that are its header (with long names and PAX records, and the padding of the entry before).
    pub header: Range<u64>,
    /// First byte of its content in the tar.
    pub offset: u64,
    /// Bytes of content; 0 for everything that is not a regular file.
    pub size: u64,
}

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

/// A list of entries that has no places, or tables that cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Entries overlap or are out of order.
    #[error("entry {entry} at {offset} of the tar begins before {free}, where the one before ends")]
    Overlap {
        /// Ordinal of the entry.
        entry: u32,
        /// Where it says it begins.
        offset: u64,
        /// First byte that is not taken.
        free: u64,
    },
    /// An entry does not lie in the archive.
    #[error("entry {entry} ends outside the archive's {archive} bytes")]
    Outside {
        /// Ordinal of the entry.
        entry: u32,
        /// Size of the tar.
        archive: u64,
    },
    /// More than an EROFS device holds.
    #[error("the files need more than 16 TiB")]
    TooLarge,
    /// More entries than a tree is made of.
    #[error("more than {MOST_ENTRIES} entries")]
    TooMany,
    /// Not tables of this version.
    #[error("not a table of places of this version")]
    Foreign,
}

/// Makes the tables from the entries in the order of the tar.
///
/// # Errors
/// Entries that overlap, leave the archive or need too much room.
pub fn plan(
    entries: impl ExactSizeIterator<Item = Planned>,
    archive_size: u64,
) -> Result<Vec<u8>, PlaceError> {
    if entries.len() > MOST_ENTRIES {
        return Err(PlaceError::TooMany);
    }
    let headers = entries.len().checked_mul(HEAD).ok_or(PlaceError::TooMany)?;
    let mut table = Vec::with_capacity(HEADER + headers + entries.len() * FILE);
    table.resize(HEADER + headers, 0);
    let (mut free, mut data, mut content) = (0_u64, LEAD, 0_u64);
    let mut count = 0_u32;
    for planned in entries {
        let entry = count;
        count = count.checked_add(1).ok_or(PlaceError::TooMany)?;
        let Planned {
            header,
            offset,
            size,
        } = planned;
        if header.start > header.end || header.end > offset || offset < free {
            return Err(PlaceError::Overlap {
                entry,
                offset,
                free,
            });
        }
        let outside = PlaceError::Outside {
            entry,
            archive: archive_size,
        };
        let end = offset
            .checked_add(size)
            .filter(|end| *end <= archive_size)
            .ok_or(outside)?;
        let at = HEADER + entry as usize * HEAD;
        let slot = table.get_mut(at..at + HEAD).ok_or(PlaceError::TooMany)?;
        slot[..8].copy_from_slice(&header.start.to_le_bytes());
        slot[8..].copy_from_slice(&header.end.to_le_bytes());
        free = end;
        if size > 0 {
            for number in [offset, data, offset - content, u64::from(entry)] {
                table.extend_from_slice(&number.to_le_bytes());
            }
            content += size;
            data = size
                .checked_next_multiple_of(BLOCK)
                .and_then(|room| data.checked_add(room))
                .filter(|data| *data <= MAX_DATA - TAIL)
                .ok_or(PlaceError::TooLarge)?;
        }
    }
    let files = (table.len() - HEADER - headers) / FILE;
    let numbers = [
        files as u64,
        u64::from(count),
        archive_size,
        data + TAIL,
        archive_size - content,
    ];
    table[..8].copy_from_slice(MAGIC);
    for (slot, number) in table[8..HEADER].chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    Ok(table)
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
        let mut next = partition(self.files, |file| self.raw_file(file)[0] <= tar.start);
        // The file that begins at or before the range may reach into it.
        next = next.saturating_sub(1);
        let mut at = tar.start;
        let end = tar.end.min(self.archive_size);
        std::iter::from_fn(move || {
            while at < end {
                let Some(file) = self.file(next) else {
                    let heads = self.heads_size - (self.archive_size - at);
                    let len = end - at;
                    let piece = Piece::Heads {
                        tar: at,
                        heads,
                        len,
                    };
                    at = end;
                    return Some(piece);
                };
                let file_end = file.tar + file.size;
                if at >= file_end {
                    next += 1;
                } else if at < file.tar {
                    let len = file.tar.min(end) - at;
                    let piece = Piece::Heads {
                        tar: at,
                        heads: file.heads - (file.tar - at),
                        len,
                    };
                    at += len;
                    // What lies before the first file that can be here: its own end, by the loop above.
                    return Some(piece);
                } else {
                    let len = file_end.min(end) - at;
                    let piece = Piece::Data {
                        tar: at,
                        data: file.data + (at - file.tar),
                        len,
                    };
                    at += len;
                    return Some(piece);
                }
            }
            None
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

#[cfg(test)]
mod tests {
    #![allow(
        clippy::cast_possible_truncation,
        reason = "offsets of small test archives"
    )]

    use proptest::prelude::*;

    use super::*;

    fn places(entries: &[Planned], archive: u64) -> Places {
        let table = plan(entries.iter().cloned(), archive).expect("a plan");
        Places::new(Arc::new(table)).expect("tables")
    }

    fn entry(header: Range<u64>, size: u64) -> Planned {
        Planned {
            offset: header.end,
            header,
            size,
        }
    }

    #[test]
    fn an_archive_without_files_is_all_heads() {
        let places = places(&[entry(0..512, 0), entry(512..1024, 0)], 2048);
        assert_eq!(
            (places.data_size(), places.heads_size()),
            (LEAD + TAIL, 2048)
        );
        assert!(places.contents().is_empty());
        let pieces: Vec<_> = places.pieces(100..2048).collect();
        assert_eq!(
            pieces,
            [Piece::Heads {
                tar: 100,
                heads: 100,
                len: 1948
            }]
        );
        assert_eq!(places.headers_in(0..512), 0..1);
        assert_eq!(places.headers_in(511..513), 0..2);
        assert_eq!(places.headers_in(1024..2048), 2..2);
    }

    #[test]
    fn files_begin_at_blocks_and_the_rest_is_packed() {
        let entries = [
            entry(0..512, 5000),
            entry(5632..6144, 0),
            entry(6144..6656, 1),
        ];
        let places = places(&entries, 10240);
        assert_eq!(places.data_size(), LEAD + 3 * BLOCK + TAIL);
        assert_eq!(places.contents(), LEAD..LEAD + 3 * BLOCK);
        assert_eq!(places.heads_size(), 10240 - 5001);
        let files: Vec<_> = places.iter().collect();
        assert_eq!(
            files[0],
            File {
                entry: 0,
                tar: 512,
                size: 5000,
                data: LEAD,
                heads: 512
            }
        );
        assert_eq!(files[1].data, LEAD + 2 * BLOCK);
        assert_eq!(places.data_of(2), Some(LEAD + 2 * BLOCK));
        assert_eq!(places.data_of(1), None);
        let needed: Vec<_> = places.tar_of_data(LEAD + BLOCK..LEAD + 3 * BLOCK).collect();
        assert_eq!(needed, [(0, 512 + 4096..5512), (1, 6656..6657)]);
        // Only zeros behind a file's end: nothing is needed.
        let behind = LEAD + 2 * BLOCK + 1..LEAD + 3 * BLOCK;
        assert_eq!(places.tar_of_data(behind).count(), 0);
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let overlap = [entry(0..512, 5000), entry(1024..1536, 0)];
        assert!(matches!(
            plan(overlap.into_iter(), 10240),
            Err(PlaceError::Overlap {
                entry: 1,
                free: 5512,
                ..
            })
        ));
        let outside = PlaceError::Outside {
            entry: 0,
            archive: 1000,
        };
        assert_eq!(
            plan([entry(0..512, 600)].into_iter(), 1000),
            Err(outside.clone())
        );
        assert_eq!(
            plan([entry(0..512, u64::MAX)].into_iter(), 1000),
            Err(outside)
        );
        assert_eq!(
            plan([entry(0..512, MAX_DATA + 1)].into_iter(), u64::MAX),
            Err(PlaceError::TooLarge)
        );
        let most = MAX_DATA - LEAD - TAIL;
        let largest = places(&[entry(0..512, most)], u64::MAX);
        assert_eq!(largest.data_size(), MAX_DATA);
        assert_eq!(
            plan([entry(0..512, most + 1)].into_iter(), u64::MAX),
            Err(PlaceError::TooLarge)
        );
    }

    #[test]
    fn torn_tables_are_not_taken() {
        let table = plan([entry(0..512, 5)].into_iter(), 1024).expect("a plan");
        for len in 0..table.len() {
            assert!(
                Places::new(Arc::new(table[..len].to_vec())).is_err(),
                "{len}"
            );
        }
    }

    prop_compose! {
        /// Entries as a tar has them, and the size of the archive.
        fn archives()(
            raw in prop::collection::vec((1_u64..3, 0_u64..20_000, any::<bool>()), 0..20),
            tail in 0_u64..2000,
        ) -> (Vec<Planned>, u64) {
            let (mut at, mut entries) = (0, Vec::new());
            for (heads, size, regular) in raw {
                let header = at..at + heads * 512;
                let size = if regular { size } else { 0 };
                at = (header.end + size).next_multiple_of(512);
                entries.push(entry(header, size));
            }
            (entries, at + tail)
        }
    }

    proptest! {
        #[test]
        fn prop_every_byte_of_the_tar_has_one_place(
            (entries, archive) in archives(), cut in (0_u64..60_000, 0_u64..60_000),
        ) {
            let places = places(&entries, archive);
            let tar: Vec<u32> = (0..archive as u32).collect();
            let contents = places.contents();
            let mut data = vec![None; (contents.end - contents.start) as usize];
            let mut heads = vec![None; places.heads_size() as usize];
            // Any cut of the tar into ranges must give the same files.
            let mut ends = [cut.0.min(archive), cut.1.min(archive), archive];
            ends.sort_unstable();
            let mut start = 0;
            for end in ends {
                let mut at = start;
                for piece in places.pieces(start..end) {
                    let (file, tar_at, to, len) = match piece {
                        Piece::Data { tar, data: to, len } => (&mut data, tar, to - LEAD, len),
                        Piece::Heads { tar, heads: to, len } => (&mut heads, tar, to, len),
                    };
                    prop_assert_eq!(tar_at, at);
                    for i in 0..len {
                        let slot = &mut file[(to + i) as usize];
                        prop_assert_eq!(slot.replace(tar[(tar_at + i) as usize]), None);
                    }
                    at += len;
                }
                prop_assert_eq!(at, end);
                start = end;
            }
            // heads: packed and in order.
            prop_assert!(heads.iter().all(Option::is_some));
            prop_assert!(heads.is_sorted());
            // data: each file whole, at its place.
            for file in places.iter() {
                prop_assert_eq!(file.data % BLOCK, 0);
                prop_assert_eq!(places.data_of(file.entry), Some(file.data));
                for i in 0..file.size {
                    prop_assert_eq!(data[(file.data - LEAD + i) as usize], Some((file.tar + i) as u32));
                }
                prop_assert_eq!(places.header(file.entry as usize).map(|h| h.end), Some(file.tar));
            }
        }

        #[test]
        fn prop_a_range_of_data_needs_exactly_its_files_bytes(
            (entries, archive) in archives(), start in 0_u64..100_000, len in 1_u64..50_000,
        ) {
            let places = places(&entries, archive);
            let start = LEAD - 20_000 + start;
            let range = start..start + len;
            let mut expected = Vec::new();
            for (index, file) in places.iter().enumerate() {
                let from = range.start.max(file.data);
                let to = range.end.min(file.data + file.size);
                if from < to {
                    expected.push((index, from - file.data + file.tar..to - file.data + file.tar));
                }
            }
            prop_assert_eq!(places.tar_of_data(range).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn prop_head_and_tail_need_nothing((entries, archive) in archives(), cut in 0..=LEAD, len in 1..=LEAD) {
            let places = places(&entries, archive);
            let contents = places.contents();
            prop_assert_eq!((contents.start, places.data_size() - contents.end), (LEAD, TAIL));
            let files = places.iter().map(|file| file.size.next_multiple_of(BLOCK)).sum::<u64>();
            prop_assert_eq!(contents.end - contents.start, files);
            let front = cut..(cut + len).min(LEAD);
            let behind = contents.end + cut % TAIL..places.data_size();
            for range in [front, behind] {
                prop_assert_eq!(places.tar_of_data(range).count(), 0);
            }
            // Whatever the tar's bytes are, none has its place there.
            for piece in places.pieces(0..archive) {
                if let Piece::Data { data, len, .. } = piece {
                    prop_assert!(contents.start <= data && data + len <= contents.end);
                }
            }
        }

        #[test]
        fn prop_headers_of_a_range((entries, archive) in archives(), start in 0_u64..60_000, len in 1_u64..20_000) {
            let places = places(&entries, archive);
            let range = start..start + len;
            let expected: Vec<_> = entries.iter().enumerate()
                .filter(|(_, e)| e.header.start < range.end && range.start < e.header.end)
                .map(|(i, _)| i).collect();
            prop_assert_eq!(places.headers_in(range).collect::<Vec<_>>(), expected);
        }
    }
}
