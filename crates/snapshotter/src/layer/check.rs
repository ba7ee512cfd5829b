//! The bytes of a layer as the disk has them, against its sums; and how spans that are wrong leave it. On the pool.

use std::{io, ops::Range, os::unix::fs::FileExt};

use rustix::fs::Advice;
use soci_ztoc::SpanId;

use super::{Event, Layer};
use crate::{
    places::{BLOCK, Piece},
    store::sums::sum_of,
    sync::Arc,
};

/// What a look at one span says.
pub(super) struct Checked {
    pub(super) bytes: u64,
    pub(super) damage: Option<&'static str>,
}

/// A range of the tar as the disk has it.
pub(super) struct FromDisk {
    pub(super) tar: Vec<u8>,
    /// Behind the ends of files there are zeros.
    pub(super) padding: bool,
}

impl Layer {
    /// None if it is not there, or not durable: that is in the page cache only, and may be lost yet.
    pub(super) fn check_span(&self, span: u32) -> Option<Checked> {
        let tar = self.ztoc()?.spans().uncompressed(SpanId(span));
        if !self.files.present.is_durable(span) {
            return None;
        }
        let bytes = tar.end - tar.start;
        let damage = match (self.files.sums.get(span), self.read_disk(tar)) {
            (_, Err(_)) => Some("it cannot be read"),
            (Err(_) | Ok(None), _) => Some("what it was is not known"),
            (Ok(Some(_)), Ok(read)) if !read.padding => {
                Some("there is something behind the end of a file")
            }
            (Ok(Some(sum)), Ok(read)) => {
                (sum != sum_of(&read.tar)).then_some("its bytes are not those that were stored")
            }
        };
        Some(Checked { bytes, damage })
    }

    /// Reads a range of the tar past the page cache, which would hide what the disk has; and leaves nothing there.
    pub(super) fn read_disk(&self, tar: Range<u64>) -> io::Result<FromDisk> {
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

    /// The blocks of both files that a range of the tar is in.
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

    /// Bytes between the end of a file at this place of `data` and the next block; 0 if no file ends there.
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

    /// The layer does not count as complete from now on. True if it did. Blocks on the disk.
    pub(super) fn doubt(self: &Arc<Self>) -> io::Result<bool> {
        let cleared = self.files.present.clear_complete();
        self.complete.send_replace(false);
        cleared
    }

    /// Takes spans out; they are to be fetched again. Blocks on the disk.
    pub(super) fn take_out(self: &Arc<Self>, spans: &[u32]) -> io::Result<()> {
        let taken = self.files.present.take_out(spans);
        for &span in spans {
            self.step(span, Event::Lost);
            self.clear_padding(span);
        }
        self.changed.notify_one();
        taken
    }

    /// What is behind the ends of files is written by no span.
    fn clear_padding(&self, span: u32) {
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
                tracing::error!(layer = %self.files.key.layer, span, error = %error, "padding is not cleared");
            }
        }
    }

    /// Bytes of a span that nobody has asked for yet are made certain before they are called durable: a process that was
    /// killed may have left a span without its sum.
    pub(super) fn complete_sums(&self, spans: &[u32]) -> io::Result<()> {
        let Some(ztoc) = self.ztoc() else {
            return Ok(());
        };
        for &span in spans {
            if self.files.sums.get(span)?.is_none() {
                let tar = ztoc.spans().uncompressed(SpanId(span));
                let bytes = self.tar_bytes(tar, &[])?;
                self.files.sums.set(span, &sum_of(&bytes))?;
            }
        }
        self.files.sums.sync()
    }
}

/// Blocks of the two files.
#[derive(Default)]
struct Ranges {
    data: Range<u64>,
    heads: Range<u64>,
}

impl Ranges {
    /// Drops clean pages from the page cache.
    fn forget(&self, layer: &Layer) -> io::Result<()> {
        let files = &layer.files;
        for (file, range) in [(&files.data, &self.data), (&files.heads, &self.heads)] {
            let length = std::num::NonZeroU64::new(range.end - range.start);
            if length.is_some() {
                rustix::fs::fadvise(file, range.start, length, Advice::DontNeed)?;
            }
        }
        Ok(())
    }
}
