//! Reads: what a range of `data` needs, and its bytes from the files or from memory.

use std::{io, io::IoSliceMut, ops::Range, os::unix::fs::FileExt};

use bytes::Bytes;
use rustix::io::ReadWriteFlags;

use super::{
    Data,
    headers::{MAX_HEADER, Mark},
};
use crate::{
    cpu::Lane,
    layer::{ReadDone, ReadError},
    places::Piece,
    sync::Arc,
};

/// Bytes of the tar in memory, for reads that do not wait for the disk.
#[derive(Clone, Debug)]
pub(in crate::layer) struct Held {
    pub(in crate::layer) tar: Range<u64>,
    pub(in crate::layer) bytes: Arc<Vec<u8>>,
}

impl Held {
    /// The bytes from `at` on, as far as this contains them.
    fn from(&self, at: u64, len: u64) -> Option<&[u8]> {
        let start = at.checked_sub(self.tar.start)?;
        let end = len.min(self.tar.end.checked_sub(at)?);
        let start = usize::try_from(start).ok()?;
        let taken = self.bytes.get(start..)?;
        let taken = taken.get(..usize::try_from(end).ok()?)?;
        (!taken.is_empty()).then_some(taken)
    }
}

/// What a range of `data` needs.
pub(in crate::layer) struct Needs {
    /// Absent spans, in order.
    pub(in crate::layer) missing: Vec<u32>,
    /// The spans that contain the content of the range, present or not.
    pub(in crate::layer) touched: Option<Range<u32>>,
    /// Whether all headers in question are known to agree.
    pub(in crate::layer) checked: bool,
}

impl Data {
    /// Determines what a range of `data` needs. Fails if a header is known to disagree.
    pub(in crate::layer) fn needs(&self, range: &Range<u64>) -> Result<Needs, ReadError> {
        let mut needs = Needs {
            missing: Vec::new(),
            touched: None,
            checked: true,
        };
        let Some(ztoc) = self.ztoc() else {
            return Ok(needs);
        };
        let mut need = |tar: Range<u64>| {
            let ids = ztoc.spans().covering(tar);
            let missing = ids.clone().filter(|id| !self.files.present.has(*id));
            needs.missing.extend(missing);
            ids
        };
        for (index, tar) in self.files.places.tar_of_data(range.clone()) {
            let Some(file) = self.files.places.file(index) else {
                continue;
            };
            let entry = file.entry as usize;
            match self.headers.mark(entry) {
                Mark::Agreed => {}
                Mark::Disagreed => return Err(self.header_error(entry, None)),
                Mark::Unknown => {
                    needs.checked = false;
                    let header = self.files.places.header(entry).unwrap_or(0..0);
                    // A larger header is rejected without reading it.
                    if header.end - header.start <= MAX_HEADER {
                        need(header);
                    }
                }
            }
            let ids = need(tar);
            needs.touched = Some(match needs.touched.take() {
                Some(seen) => seen.start.min(ids.start)..seen.end.max(ids.end),
                None => ids,
            });
        }
        needs.missing.sort_unstable();
        needs.missing.dedup();
        Ok(needs)
    }

    /// Whether only headers and the end of the archive are missing, so that every file has been
    /// read whole.
    pub(in crate::layer) fn misses_no_content(&self) -> bool {
        const FEW: usize = 16;
        let Some(ztoc) = self.ztoc() else {
            return true;
        };
        let present = &self.files.present;
        if present.len() - present.count() > FEW {
            return false;
        }
        let holds_content = |span| {
            let pieces = self.files.places.pieces(ztoc.spans().uncompressed(span));
            pieces
                .into_iter()
                .any(|piece| matches!(piece, Piece::Data { .. }))
        };
        let mut missing = ztoc.spans().ids().filter(|span| !present.has(span.0));
        !missing.any(holds_content)
    }

    /// Checks the headers of a range and returns its bytes. Every span must be present or held.
    /// Runs on the pool.
    pub(in crate::layer) fn checked_bytes(
        &self,
        range: &Range<u64>,
        held: &[Held],
    ) -> Result<Bytes, ReadError> {
        for index in self.files.places.files_in(range.clone()) {
            let Some(file) = self.files.places.file(index) else {
                continue;
            };
            if file.data >= range.end || file.data + file.size <= range.start {
                continue;
            }
            self.check_header(file.entry as usize, held)?;
        }
        self.bytes_of(range, held)
    }

    /// Answers a read whose spans are all present: at once if the bytes are in the page cache,
    /// otherwise on the pool. The caller's thread serves every layer of the node and must not wait
    /// for the disk.
    pub(in crate::layer) fn answer(self: &Arc<Self>, range: Range<u64>, done: ReadDone) {
        if let Some(bytes) = self.cached(&range) {
            return done(Ok(bytes));
        }
        let data = Arc::clone(self);
        self.cpu.spawn(Lane::Compute, move || {
            done(data.bytes_of(&range, &[]));
        });
    }

    /// Bytes of `data` if that needs no I/O.
    fn cached(&self, range: &Range<u64>) -> Option<Bytes> {
        let mut buffer = vec![0; usize::try_from(range.end - range.start).ok()?];
        let contents = self.files.places.contents();
        let (from, to) = (range.start.max(contents.start), range.end.min(contents.end));
        if from < to {
            let place = |at| usize::try_from(at - range.start).ok();
            let part = buffer.get_mut(place(from)?..place(to)?)?;
            let (wanted, flags) = (part.len(), ReadWriteFlags::NOWAIT);
            let mut slices = [IoSliceMut::new(part)];
            let read = rustix::io::preadv2(&self.files.data, &mut slices, from, flags);
            // A short read counts as a miss: the pool reads everything.
            read.ok().filter(|read| *read == wanted)?;
        }
        Some(Bytes::from(buffer))
    }

    fn bytes_of(&self, range: &Range<u64>, held: &[Held]) -> Result<Bytes, ReadError> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut buffer = vec![0; length];
        let read = if held.is_empty() {
            self.contents_of(range, &mut buffer)
        } else {
            self.patchwork(range, &mut buffer, held)
        };
        read.map_err(|source| self.store_error(source))?;
        Ok(Bytes::from(buffer))
    }

    /// Reads bytes of `data` into a zeroed buffer. Head and tail are always zeros and are not read.
    fn contents_of(&self, range: &Range<u64>, buffer: &mut [u8]) -> io::Result<()> {
        let contents = self.files.places.contents();
        let from = range.start.max(contents.start);
        let to = range.end.min(contents.end);
        if from >= to {
            return Ok(());
        }
        let place = |at| usize::try_from(at - range.start).unwrap_or(usize::MAX);
        match buffer.get_mut(place(from)..place(to)) {
            Some(part) => self.files.data.read_exact_at(part, from),
            None => Ok(()),
        }
    }

    /// Reads bytes of `data` of which some are only in memory.
    fn patchwork(&self, range: &Range<u64>, buffer: &mut [u8], held: &[Held]) -> io::Result<()> {
        for (index, tar) in self.files.places.tar_of_data(range.clone()) {
            let Some(file) = self.files.places.file(index) else {
                continue;
            };
            let at = file.data + (tar.start - file.tar) - range.start;
            let content = self.tar_bytes(tar, held)?;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(part) = buffer.get_mut(at..at.saturating_add(content.len())) {
                part.copy_from_slice(&content);
            }
        }
        Ok(())
    }

    /// Bytes of the tar: from memory where held, otherwise from `data` and `heads`.
    pub(in crate::layer) fn tar_bytes(
        &self,
        tar: Range<u64>,
        held: &[Held],
    ) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(tar.end - tar.start).unwrap_or(0)];
        self.read_tar(tar, held, &mut bytes)?;
        Ok(bytes)
    }

    /// Like [`Data::tar_bytes`], into a buffer with the length of the range.
    pub(in crate::layer) fn read_tar(
        &self,
        tar: Range<u64>,
        held: &[Held],
        mut out: &mut [u8],
    ) -> io::Result<()> {
        for piece in self.files.places.pieces(tar) {
            let (file, mut at, mut place, mut len) = match piece {
                Piece::Data { tar, data, len } => (&self.files.data, tar, data, len),
                Piece::Heads { tar, heads, len } => (&self.files.heads, tar, heads, len),
            };
            while len > 0 {
                let known = held.iter().find_map(|held| held.from(at, len));
                let next = held.iter().map(|held| held.tar.start);
                let next = next.filter(|start| *start > at).min();
                let run = match known {
                    Some(part) => part.len() as u64,
                    None => next.map_or(len, |next| len.min(next - at)),
                };
                let size = usize::try_from(run).unwrap_or(usize::MAX);
                let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
                let (here, rest) = out.split_at_mut_checked(size).ok_or_else(short)?;
                match known {
                    Some(part) => here.copy_from_slice(part),
                    None => file.read_exact_at(here, place)?,
                }
                out = rest;
                (at, place, len) = (at + run, place + run, len - run);
            }
        }
        Ok(())
    }

    /// Whether all spans that contain a range of the tar are present.
    pub(in crate::layer) fn has_tar(&self, tar: Range<u64>) -> bool {
        self.ztoc().is_none_or(|ztoc| {
            ztoc.spans()
                .covering(tar)
                .all(|id| self.files.present.has(id))
        })
    }
}
