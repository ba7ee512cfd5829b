//! Writes: stores bytes of the tar at their places in few calls, then marks the span and records
//! its checksum.

use std::{fs::File, io, io::IoSlice};

use super::Data;
use crate::{
    layer::sparse,
    places::{BLOCK, Piece},
    store::sums::Sum,
};

/// The kernel's limit for the slices of one vectored write.
const MAX_SLICES: usize = 1024;

/// Has the length of [`BLOCK`].
static ZEROS: [u8; 4096] = [0; 4096];

impl Data {
    /// Writes a contiguous range of the tar in as few calls as the kernel allows.
    pub(in crate::layer) fn write(&self, tar_start: u64, bytes: &[u8]) -> io::Result<()> {
        let mut data = Run::new(&self.files.data);
        let mut heads = Run::new(&self.files.heads);
        let tar_end = tar_start + bytes.len() as u64;
        for piece in self.files.places.pieces(tar_start..tar_end) {
            let (run, tar, place, len) = match piece {
                Piece::Data {
                    tar,
                    data: place,
                    len,
                } => (&mut data, tar, place, len),
                Piece::Heads {
                    tar,
                    heads: place,
                    len,
                } => (&mut heads, tar, place, len),
            };
            let at = usize::try_from(tar - tar_start).unwrap_or(usize::MAX);
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let part = bytes.get(at..at.saturating_add(len)).unwrap_or_default();
            run.push(place, part)?;
        }
        data.flush()?;
        heads.flush()
    }

    /// Marks a span as present after its bytes were written.
    pub(in crate::layer) fn mark_written(&self, span: u32) {
        if let Err(error) = self.files.present.written(span) {
            tracing::warn!(layer = %self.digest(), span, error = %error, "cannot write the mark of a span; it may be downloaded again");
        }
    }

    /// Records the checksum of a span. Only a scrub needs it, and a sync recreates a lost one.
    pub(in crate::layer) fn note_sum(&self, span: u32, sum: &Sum) {
        if let Err(error) = self.files.sums.set(span, sum) {
            tracing::debug!(layer = %self.digest(), span, error = %error, "cannot write the checksum of a span");
        }
    }
}

/// Consecutive slices of one file, gathered for one call. Gaps (the zeros after a file) are written
/// too: they are shorter than a block and cheaper than another call.
struct Run<'a> {
    file: &'a File,
    start: u64,
    end: u64,
    slices: Vec<&'a [u8]>,
}

impl<'a> Run<'a> {
    fn new(file: &'a File) -> Run<'a> {
        Run {
            file,
            start: 0,
            end: 0,
            slices: Vec::new(),
        }
    }

    /// Adds a part. Zeros in a hole are skipped.
    fn push(&mut self, mut place: u64, part: &'a [u8]) -> io::Result<()> {
        for (stretch, is_zero) in sparse::stretches(part, place) {
            if !is_zero || !sparse::is_hole(self.file, place, stretch.len()) {
                self.gather(place, stretch)?;
            }
            place += stretch.len() as u64;
        }
        Ok(())
    }

    fn gather(&mut self, place: u64, part: &'a [u8]) -> io::Result<()> {
        let gap = place.checked_sub(self.end).filter(|gap| *gap < BLOCK);
        let room = self.slices.len() + 2 <= MAX_SLICES;
        match gap {
            Some(gap) if room && !self.slices.is_empty() => {
                if gap > 0 {
                    let gap = usize::try_from(gap).unwrap_or(0);
                    self.slices.push(&ZEROS[..gap.min(ZEROS.len())]);
                }
            }
            _ => {
                self.flush()?;
                self.start = place;
            }
        }
        self.slices.push(part);
        self.end = place + part.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> =
            self.slices.iter().map(|part| IoSlice::new(part)).collect();
        let mut slices = slices.as_mut_slice();
        let mut at = self.start;
        while !slices.is_empty() {
            match rustix::io::pwritev(self.file, slices, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.slices.clear();
        Ok(())
    }
}
