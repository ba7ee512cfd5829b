//! Do the tar headers agree with the zTOC? One mark for each entry of the tar.
//!
//! | mark | set when |
//! |--|--|
//! | unknown | the layer was opened |
//! | agreed | the header's bytes, verified by their spans, parse to exactly the entry |
//! | disagreed | they do not; every read of the file is an error, the layer is never complete |
//!
//! A header is checked as soon as the spans that hold it are there, and at the latest by the first read of its file. Marks
//! are kept in memory only: after a restart the bytes are still there to be checked again. That a layer is complete says
//! that all agreed.

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

/// Headers larger than this are not read: the tar reader of the format itself stops at three payloads of 1 MiB.
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
    /// Empty if every header is taken as agreed.
    marks: Box<[AtomicU8]>,
    unknown: AtomicUsize,
    disagreed: AtomicUsize,
}

impl Headers {
    /// Marks for `entries` entries; `known` if they need no check.
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

    /// Whether nothing is left to check.
    pub(super) fn all_known(&self) -> bool {
        self.unknown.load(Ordering::Acquire) == 0
    }

    /// Whether every header is known to agree.
    pub(super) fn all_agreed(&self) -> bool {
        self.all_known() && self.disagreed.load(Ordering::Acquire) == 0
    }

    /// Whether one is known not to agree.
    pub(super) fn any_disagreed(&self) -> bool {
        self.disagreed.load(Ordering::Acquire) > 0
    }

    /// Checks one header; true if this call was the one that settled it.
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
        // A disagreement is counted before the header counts as known: completion must never see the one without the
        // other.
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
    /// Checks the header of one entry unless that was done. Its bytes must be there.
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

    /// Settles one header from its bytes.
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
                        "a file is not what its index says; it is not shown"
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
        let source = mismatch.unwrap_or(HeaderMismatch::Field("header, as found before"));
        ReadError::Header {
            subject: self.subject(Some(span)),
            file,
            source: Arc::new(source),
        }
    }

    /// Checks the headers that became whole with these bytes of the tar; without a read where the bytes are given. What
    /// disagrees is remembered and logged: completion looks at the marks.
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

    /// Checks what headers are left; all bytes are there. True if every one agrees.
    pub(in crate::layer) fn check_all_headers(&self) -> bool {
        // They may have left since.
        let _reading = self.reading();
        if !self.headers.all_known() && self.has_all() {
            for entry in 0..self.files.places.entries() {
                // As above.
                drop(self.check_header(entry, &[]));
            }
        }
        self.headers.all_agreed()
    }

    /// Whether a header is known to disagree.
    pub(in crate::layer) fn any_header_disagrees(&self) -> bool {
        self.headers.any_disagreed()
    }
}
