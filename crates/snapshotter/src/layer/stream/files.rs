//! Writes the files of a draft while the tar is scanned.

use std::{fs::File, io};

use soci_ztoc::{Entry, TarSink};

use crate::{
    layer::sparse,
    places::{BLOCK, LEAD, Planned, TAIL},
    store::Draft,
};

/// Bytes gathered before a write.
const WRITE: usize = 1 << 20;
/// A part of this size is written without being gathered first.
const DIRECT: usize = 128 << 10;

/// Receives the bytes of the tar. Keeps its first error, because the scanner cannot report it.
pub(super) struct Files {
    draft: Draft,
    data: Gathered,
    heads: Gathered,
    pub(super) planned: Vec<Planned>,
    /// Offset in `data` and in the tar of the current file, and the offset in `data` of the next
    /// one.
    file: (u64, u64),
    next: u64,
    pub(super) error: Option<io::Error>,
}

impl Files {
    pub(super) fn new(draft: Draft) -> Files {
        Files {
            draft,
            data: Gathered::default(),
            heads: Gathered::default(),
            planned: Vec::new(),
            file: (LEAD, 0),
            next: LEAD,
            error: None,
        }
    }

    pub(super) fn finish(mut self) -> io::Result<Draft> {
        self.data.flush(&self.draft.data)?;
        self.heads.flush(&self.draft.heads)?;
        self.draft.heads.set_len(self.heads.end())?;
        self.draft.data.set_len(self.next.saturating_add(TAIL))?;
        Ok(self.draft)
    }

    fn keep(&mut self, written: io::Result<()>) {
        if let (Err(error), None) = (written, &self.error) {
            self.error = Some(error);
        }
    }
}

impl TarSink for Files {
    fn head(&mut self, _offset: u64, bytes: &[u8]) {
        let place = self.heads.end();
        let written = self.heads.push(&self.draft.heads, place, bytes);
        self.keep(written);
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        let content = entry.content();
        let size = content.end - content.start;
        self.planned.push(Planned {
            header: entry.header(),
            offset: content.start,
            size,
        });
        self.file = (self.next, content.start);
        // The plan rejects sizes that do not fit. Nothing is written for them before.
        self.next = self
            .next
            .saturating_add(size.checked_next_multiple_of(BLOCK).unwrap_or(0));
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) {
        let place = self.file.0 + (offset - self.file.1);
        let written = self.data.push(&self.draft.data, place, bytes);
        self.keep(written);
    }
}

/// Bytes gathered for one large write.
#[derive(Default)]
struct Gathered {
    start: u64,
    bytes: Vec<u8>,
}

impl Gathered {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn push(&mut self, file: &File, place: u64, part: &[u8]) -> io::Result<()> {
        if part.len() >= DIRECT {
            self.flush(file)?;
            sparse::write_new(file, part, place)?;
            self.start = place + part.len() as u64;
            return Ok(());
        }
        match place.checked_sub(self.end()) {
            // The gap is the padding after a file.
            Some(gap) if gap < BLOCK => {
                let gap = usize::try_from(gap).unwrap_or(0);
                self.bytes.resize(self.bytes.len() + gap, 0);
            }
            _ => {
                self.flush(file)?;
                self.start = place;
            }
        }
        self.bytes.extend_from_slice(part);
        if self.bytes.len() >= WRITE {
            self.flush(file)
        } else {
            Ok(())
        }
    }

    fn flush(&mut self, file: &File) -> io::Result<()> {
        sparse::write_new(file, &self.bytes, self.start)?;
        self.start = self.end();
        self.bytes.clear();
        Ok(())
    }
}
