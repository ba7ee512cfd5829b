//! Checks tar headers against the zTOC. There is one mark per entry of the tar.
//!
//! | mark | meaning |
//! |--|--|
//! | unknown | not checked since the layer was opened |
//! | agreed | the header's bytes, verified by their spans, parse to exactly the entry |
//! | disagreed | they do not; every read of the file fails and the layer never becomes complete |
//!
//! A header is checked when the spans that contain it are present, at the latest by the first read
//! of its file. Marks are kept in memory only: after a restart the bytes are present and can be
//! checked again. In a complete layer all headers have agreed.

use std::ops::Range;

use soci_ztoc::{Entry, HeaderMismatch, verify_header};

use super::{Data, Held};
use crate::{
    layer::ReadError,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
};

const UNKNOWN: u8 = 0;
const AGREED: u8 = 1;
const DISAGREED: u8 = 2;

/// Larger headers are rejected without reading them. The format's own tar reader stops at three
/// payloads of 1 MiB.
pub(super) const MAX_HEADER: u64 = 4 << 20;

/// What is known about one header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Unknown,
    Agreed,
    Disagreed,
}

/// The marks of a layer.
#[derive(Debug)]
pub(super) struct Headers {
    /// Empty if every header counts as agreed.
    marks: Box<[AtomicU8]>,
    unknown: AtomicUsize,
    disagreed: AtomicUsize,
}

impl Headers {
    /// Creates marks for `entries` entries. `known` if they need no check.
    pub(super) fn new(entries: usize, known: bool) -> Headers {
        let count = if known { 0 } else { entries };
        Headers {
            marks: (0..count).map(|_| AtomicU8::new(UNKNOWN)).collect(),
            unknown: AtomicUsize::new(count),
            disagreed: AtomicUsize::new(0),
        }
    }

    pub(super) fn mark(&self, entry: usize) -> Mark {
        match self
            .marks
            .get(entry)
            .map_or(AGREED, |mark| mark.load(Ordering::Acquire))
        {
            AGREED => Mark::Agreed,
            DISAGREED => Mark::Disagreed,
            _ => Mark::Unknown,
        }
    }

    /// Whether every header has been checked.
    pub(super) fn all_known(&self) -> bool {
        self.unknown.load(Ordering::Acquire) == 0
    }

    /// Whether every header is known to agree.
    pub(super) fn all_agreed(&self) -> bool {
        self.all_known() && self.disagreed.load(Ordering::Acquire) == 0
    }

    /// Whether any header is known to disagree.
    pub(super) fn any_disagreed(&self) -> bool {
        self.disagreed.load(Ordering::Acquire) > 0
    }

    /// Checks one header. The first value is true if this call set the mark.
    pub(super) fn check(
        &self,
        index: usize,
        entry: &Entry<'_>,
        header: &[u8],
    ) -> (bool, Result<(), HeaderMismatch>) {
        let found = verify_header(entry, header);
        let value = if found.is_ok() { AGREED } else { DISAGREED };
        let Some(mark) = self.marks.get(index) else {
            return (false, Ok(()));
        };
        // Count a disagreement before the header becomes known, so that completion never sees one
        // without the other.
        let first = {
            if found.is_err() {
                self.disagreed.fetch_add(1, Ordering::AcqRel);
            }
            let swap = mark.compare_exchange(UNKNOWN, value, Ordering::AcqRel, Ordering::Acquire);
            if swap.is_err() && found.is_err() {
                self.disagreed.fetch_sub(1, Ordering::AcqRel);
            }
            swap.is_ok()
        };
        if first {
            self.unknown.fetch_sub(1, Ordering::AcqRel);
        }
        (first, found)
    }
}

impl Data {
    /// Checks the header of an entry unless it is already known. Its bytes must be present or in
    /// `held`.
    pub(super) fn check_header(&self, entry: usize, held: &[Held]) -> Result<(), ReadError> {
        match self.headers.mark(entry) {
            Mark::Agreed => return Ok(()),
            Mark::Disagreed => return Err(self.header_error(entry, None)),
            Mark::Unknown => {}
        }
        let range = self.files.places.header(entry).unwrap_or(0..0);
        let header = if range.end - range.start > MAX_HEADER {
            Vec::new()
        } else {
            self.tar_bytes(range, held)
                .map_err(|source| self.store_error(source))?
        };
        self.check_header_bytes(entry, &header)
    }

    /// Checks one header, given its bytes.
    fn check_header_bytes(&self, entry: usize, header: &[u8]) -> Result<(), ReadError> {
        let Some(ztoc) = self.ztoc() else {
            return Ok(());
        };
        let view = ztoc.view();
        let Some(stated) = view.entry(entry) else {
            return Ok(());
        };
        match self.headers.check(entry, &stated, header) {
            (_, Ok(())) => Ok(()),
            (first, Err(mismatch)) => {
                let error = self.header_error(entry, Some(mismatch));
                if first {
                    tracing::error!(
                        layer = %self.digest(),
                        error = &error as &dyn std::error::Error,
                        "a file does not match its index; reads of it fail"
                    );
                    self.trouble.note(&error);
                }
                Err(error)
            }
        }
    }

    pub(super) fn header_error(&self, entry: usize, mismatch: Option<HeaderMismatch>) -> ReadError {
        let range = self.files.places.header(entry).unwrap_or(0..0);
        let (mut file, mut span) = (Arc::from(""), 0);
        if let Some(ztoc) = self.ztoc() {
            span = ztoc
                .spans()
                .covering(range.start..range.end.max(range.start + 1))
                .start;
            if let Some(entry) = ztoc.view().entry(entry) {
                file = Arc::from(String::from_utf8_lossy(entry.name));
            }
        }
        let source = mismatch.unwrap_or(HeaderMismatch::Field("header, as found earlier"));
        ReadError::Header {
            subject: self.subject(Some(span)),
            file,
            source: Arc::new(source),
        }
    }

    /// Checks the headers that became complete with these bytes of the tar, without I/O where
    /// `bytes` contains them. Mismatches are recorded and logged. Completion checks the marks.
    pub(in crate::layer) fn check_headers_in(&self, tar: Range<u64>, bytes: Option<&[u8]>) {
        if self.headers.all_known() {
            return;
        }
        let _reading = self.reading();
        for entry in self.files.places.headers_in(tar.clone()) {
            let Some(header) = self.files.places.header(entry) else {
                continue;
            };
            let inside = tar.start <= header.start && header.end <= tar.end;
            match bytes {
                Some(bytes) if inside => {
                    let at = |place| usize::try_from(place - tar.start).unwrap_or(usize::MAX);
                    let header = bytes.get(at(header.start)..at(header.end));
                    drop(self.check_header_bytes(entry, header.unwrap_or_default()));
                }
                _ if self.has_tar(header) => drop(self.check_header(entry, &[])),
                _ => {}
            }
        }
    }

    /// Checks the remaining headers if all spans are present. Returns whether every header agrees.
    pub(in crate::layer) fn check_all_headers(&self) -> bool {
        // Spans may have been evicted since.
        let _reading = self.reading();
        if !self.headers.all_known() && self.has_all() {
            for entry in 0..self.files.places.entries() {
                // Mismatches are recorded in the marks.
                drop(self.check_header(entry, &[]));
            }
        }
        self.headers.all_agreed()
    }

    /// Whether any header is known to disagree.
    pub(in crate::layer) fn any_header_disagrees(&self) -> bool {
        self.headers.any_disagreed()
    }
}
