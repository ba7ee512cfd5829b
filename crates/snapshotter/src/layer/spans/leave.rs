//! Evicts spans. A later read downloads them again.

use std::{collections::HashSet, io};

use super::{Event, Spans};
use crate::sync::Arc;

/// Absent spans whose bytes are about to be removed. Bytes that arrive for them meanwhile are not
/// stored.
pub(in crate::layer) struct Leaving {
    of: Arc<Spans>,
    pub(in crate::layer) spans: Vec<u32>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut leaving = self.of.leaving.lock();
        for span in &self.spans {
            leaving.remove(span);
        }
    }
}

impl Spans {
    /// Durably marks durable spans as absent. Skips spans that are in progress. Blocks on the disk.
    ///
    /// # Errors
    /// The system's. No hole may be punched then.
    pub(in crate::layer) fn leave(self: &Arc<Self>, spans: &[u32]) -> io::Result<Leaving> {
        let mut left = Leaving {
            of: Arc::clone(self),
            spans: Vec::new(),
        };
        {
            let mut states = self.states.lock();
            let mut leaving = self.leaving.lock();
            for &span in spans {
                let is_there = states.is_present(span);
                if is_there && self.data.files.present.is_durable(span) && leaving.insert(span) {
                    states.step(span, Event::Lost);
                    left.spans.push(span);
                }
            }
        }
        self.data.files.present.take_out(&left.spans)?;
        Ok(left)
    }

    /// Whether the bytes of a span are about to be removed.
    pub(super) fn is_leaving(&self, span: u32) -> bool {
        self.leaving.lock().contains(&span)
    }
}

pub(super) type LeavingSpans = HashSet<u32>;
