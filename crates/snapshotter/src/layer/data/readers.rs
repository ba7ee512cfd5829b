//! Tracks readers that rely on present bytes.
//!
//! Bytes are removed in this order: the marks are cleared, then all readers that may have seen them
//! finish ([`Data::has_no_readers`]), then holes are punched. A reader takes a [`Reading`] before
//! it looks at marks.

use super::Data;
use crate::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering, fence},
};

/// Present bytes stay on disk until this is dropped.
#[derive(Debug)]
pub(in crate::layer) struct Reading(Arc<AtomicUsize>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Data {
    /// Registers a reader. Call this before looking at a mark.
    pub(in crate::layer) fn reading(&self) -> Reading {
        self.readers.fetch_add(1, Ordering::SeqCst);
        // Either this reader sees the cleared mark, or the evicting thread sees this reader.
        fence(Ordering::SeqCst);
        Reading(Arc::clone(&self.readers))
    }

    /// Whether there are no readers that may have seen marks that are cleared by now.
    pub(in crate::layer) fn has_no_readers(&self) -> bool {
        fence(Ordering::SeqCst);
        self.readers.load(Ordering::SeqCst) == 0
    }
}
