//! Who reads bytes that it was told are there.
//!
//! Bytes leave the disk in this order: their marks go, then everyone who may have seen them is waited for
//! ([`Data::has_no_readers`]), then a hole is made. Who reads takes a [`Reading`] first and looks at marks then.

use super::Data;
use crate::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering, fence},
};

/// Bytes that were there when this was taken, or later, stay until it is dropped.
#[derive(Debug)]
pub(in crate::layer) struct Reading(Arc<AtomicUsize>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Data {
    /// To be taken before a mark is looked at.
    pub(in crate::layer) fn reading(&self) -> Reading {
        self.readers.fetch_add(1, Ordering::SeqCst);
        // Either we see that a mark is gone, or who took it away sees us.
        fence(Ordering::SeqCst);
        Reading(Arc::clone(&self.readers))
    }

    /// Whether nobody reads who may have seen marks that are gone by now.
    pub(in crate::layer) fn has_no_readers(&self) -> bool {
        fence(Ordering::SeqCst);
        self.readers.load(Ordering::SeqCst) == 0
    }
}
