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

use soci_ztoc::{Entry, HeaderMismatch, verify_header};

use crate::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

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
