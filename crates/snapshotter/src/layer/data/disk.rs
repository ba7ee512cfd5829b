//! Operations on stored bytes: making them durable, comparing them with their checksums, and
//! dropping them from memory. Runs on the pool.

use std::{io, ops::Range, os::unix::fs::FileExt};

use rustix::fs::{Advice, FallocateFlags};
use soci_ztoc::SpanId;

use super::Data;
use crate::places::{BLOCK, Piece};

/// The result of checking one span.
pub(in crate::layer) struct Checked {
    pub(in crate::layer) bytes: u64,
    pub(in crate::layer) damage: Option<&'static str>,
}

/// A range of the tar as read from disk.
pub(in crate::layer) struct FromDisk {
    pub(in crate::layer) tar: Vec<u8>,
    /// Whether the padding after files is all zeros.
    pub(in crate::layer) padding: bool,
}

impl Data {
    /// Compares a span with its checksum. `None` if it is absent, or not durable: then it may be in
    /// the page cache only.
    pub(in crate::layer) fn check_span(&self, span: u32) -> Option<Checked> {
        let tar = self.ztoc()?.spans().uncompressed(SpanId(span));
        let _reading = self.reading();
        if !self.files.present.is_durable(span) {
            return None;
        }
        let bytes = tar.end - tar.start;
        let damage = match (self.files.sums.get(span), self.read_disk(tar)) {
            (_, Err(_)) => Some("it cannot be read"),
            (Err(_) | Ok(None), _) => Some("its checksum is unknown"),
            (Ok(Some(_)), Ok(read)) if !read.padding => {
                Some("the padding after a file is not zero")
            }
            (Ok(Some(sum)), Ok(read)) => {
                (sum != self.files.sums.of(&read.tar)).then_some("its checksum does not match")
            }
        };
        Some(Checked { bytes, damage })
    }

    /// Reads a range of the tar from disk. Bypasses the page cache, which would hide the state of
    /// the disk, and leaves nothing in it.
    pub(in crate::layer) fn read_disk(&self, tar: Range<u64>) -> io::Result<FromDisk> {
        let ranges = self.ranges(tar.clone());
        ranges.forget(self)?;
        let mut read = FromDisk {
            tar: Vec::with_capacity(usize::try_from(tar.end - tar.start).unwrap_or(0)),
            padding: true,
        };
        for piece in self.files.places.pieces(tar) {
            let (file, place, len, behind) = match piece {
                Piece::Data { data, len, .. } => {
                    (&self.files.data, data, len, self.padding_at(data + len))
                }
                Piece::Heads { heads, len, .. } => (&self.files.heads, heads, len, 0),
            };
            let from = read.tar.len();
            let content = usize::try_from(len).unwrap_or(usize::MAX);
            let size = usize::try_from(len + behind).unwrap_or(usize::MAX);
            read.tar.resize(from.saturating_add(size), 0);
            let part = read.tar.get_mut(from..).unwrap_or_default();
            file.read_exact_at(part, place)?;
            let zeros = part.get(content..).unwrap_or_default();
            read.padding &= zeros.iter().all(|byte| *byte == 0);
            read.tar.truncate(from + content);
        }
        ranges.forget(self)?;
        Ok(read)
    }

    /// The blocks of both files that contain a range of the tar.
    fn ranges(&self, tar: Range<u64>) -> Ranges {
        let mut ranges = Ranges::default();
        for piece in self.files.places.pieces(tar) {
            let (range, place, len) = match piece {
                Piece::Data { data, len, .. } => (&mut ranges.data, data, len),
                Piece::Heads { heads, len, .. } => (&mut ranges.heads, heads, len),
            };
            if range.is_empty() {
                range.start = place - place % BLOCK;
            }
            range.end = (place + len).next_multiple_of(BLOCK);
        }
        ranges
    }

    /// The number of bytes between a file that ends at this offset of `data` and the next block. 0
    /// if no file ends there.
    fn padding_at(&self, end: u64) -> u64 {
        let index = self.files.places.files_in(end.saturating_sub(1)..end).start;
        let file = self.files.places.file(index);
        let ends = file.is_some_and(|file| file.data + file.size == end);
        if ends {
            end.next_multiple_of(BLOCK) - end
        } else {
            0
        }
    }

    /// Zeros the padding after the files of a span. No span writes it.
    pub(in crate::layer) fn clear_padding(&self, span: u32) {
        let Some(ztoc) = self.ztoc() else { return };
        let tar = ztoc.spans().uncompressed(SpanId(span));
        for piece in self.files.places.pieces(tar) {
            let Piece::Data { data, len, .. } = piece else {
                continue;
            };
            let behind = usize::try_from(self.padding_at(data + len)).unwrap_or(0);
            if behind > 0
                && let Err(error) = self.files.data.write_all_at(&vec![0; behind], data + len)
            {
                tracing::error!(layer = %self.digest(), span, error = %error, "cannot clear the padding after a file");
            }
        }
    }

    /// Punches holes for absent spans that have no readers. Returns the number of bytes released.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::layer) fn punch(&self, spans: &[u32]) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;

        let files = [&self.files.data, &self.files.heads];
        let blocks = || {
            let taken = files.map(|file| file.metadata().map_or(0, |found| found.blocks()));
            taken.iter().sum::<u64>() * 512
        };
        let before = blocks();
        let Some(ztoc) = self.ztoc() else {
            return Ok(0);
        };
        for &span in spans {
            let mut ranges: [Range<u64>; 2] = [0..0, 0..0];
            for piece in self
                .files
                .places
                .pieces(ztoc.spans().uncompressed(SpanId(span)))
            {
                let (index, place, len) = match piece {
                    Piece::Data { data, len, .. } => (0, data, len),
                    Piece::Heads { heads, len, .. } => (1, heads, len),
                };
                let [data, heads] = &mut ranges;
                let range = if index == 0 { data } else { heads };
                if range.end == 0 {
                    range.start = place;
                }
                range.end = place + len;
            }
            for (file, range) in files.iter().zip(ranges) {
                // Blocks at the ends also contain bytes of other spans.
                let (start, end) = (
                    range.start.next_multiple_of(BLOCK),
                    range.end / BLOCK * BLOCK,
                );
                if start < end {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(file, flags, start, end - start)?;
                }
            }
        }
        Ok(before.saturating_sub(blocks()))
    }

    /// Writes a part of a file to disk.
    pub(in crate::layer) fn write_out(&self, heads: bool, range: Range<u64>) {
        let file = if heads {
            &self.files.heads
        } else {
            &self.files.data
        };
        if let Err(error) = crate::store::writeback::write_out(file, range) {
            // The kernel reports such an error only once.
            *self.lost.lock() = Some(error);
        }
    }

    /// Makes written bytes durable. Does not change marks.
    ///
    /// # Errors
    /// The system's. Bytes written since the last sync may be lost.
    pub(in crate::layer) fn sync_bytes(&self) -> io::Result<()> {
        if let Some(error) = self.lost.lock().take() {
            return Err(error);
        }
        self.files.data.sync_data()?;
        self.files.heads.sync_data()
    }

    /// Drops the page cache of the files. Mounts have their own copy in the page cache of EROFS.
    /// Not to be called soon after completion, when container starts still read the bytes. Blocks
    /// on the disk.
    pub(in crate::layer) fn drop_second_copy(&self) {
        for file in [&self.files.data, &self.files.heads] {
            if let Err(error) = rustix::fs::fadvise(file, 0, None, Advice::DontNeed) {
                tracing::debug!(layer = %self.digest(), error = %error, "cannot drop the page cache of a layer");
            }
        }
    }

    /// Records missing checksums of written spans and makes all checksums durable. A span becomes
    /// durable only with its checksum. One may be missing because a process was killed or the disk
    /// was full.
    ///
    /// # Errors
    /// The system's. The bytes of the spans are not affected.
    pub(in crate::layer) fn complete_sums(&self, spans: &[u32]) -> io::Result<()> {
        let Some(ztoc) = self.ztoc() else {
            return Ok(());
        };
        for &span in spans {
            if self.files.sums.get(span)?.is_none() {
                let tar = ztoc.spans().uncompressed(SpanId(span));
                let bytes = self.tar_bytes(tar, &[])?;
                self.files.sums.set(span, &self.files.sums.of(&bytes))?;
            }
        }
        self.files.sums.sync()
    }
}

/// Block-aligned ranges of the two files.
#[derive(Default)]
struct Ranges {
    data: Range<u64>,
    heads: Range<u64>,
}

impl Ranges {
    /// Drops clean pages from the page cache.
    fn forget(&self, data: &Data) -> io::Result<()> {
        let files = &data.files;
        for (file, range) in [(&files.data, &self.data), (&files.heads, &self.heads)] {
            let length = std::num::NonZeroU64::new(range.end - range.start);
            if length.is_some() {
                rustix::fs::fadvise(file, range.start, length, Advice::DontNeed)?;
            }
        }
        Ok(())
    }
}
