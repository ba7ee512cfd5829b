//! Which files are read with readahead at the moment. The kernel reads present and missing pages in one request then, and
//! answers it as one: a read of a present page by somebody else waits for the missing ones, on any block device.

use std::sync::atomic::{AtomicU64, Ordering};

/// The readers of one file that let the kernel read ahead.
#[derive(Debug, Default)]
pub(crate) struct Readahead {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// One reader; it reads until this is dropped.
#[derive(Debug)]
pub(crate) struct Reads<'a>(&'a Readahead);

impl Drop for Reads<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Readahead {
    pub(crate) fn begin(&self) -> Reads<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Reads(self)
    }

    /// That nobody reads now, as [`Readahead::nobody_since`] takes it; `None` if somebody does.
    pub(crate) fn nobody(&self) -> Option<u64> {
        // In this order: one that begins in between makes them differ.
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst) == ended).then_some(ended)
    }

    /// Whether nobody has begun since.
    pub(crate) fn nobody_since(&self, alone: Option<u64>) -> bool {
        alone == Some(self.begun.load(Ordering::SeqCst))
    }
}
