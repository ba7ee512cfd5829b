//! Spans that leave the disk, to be fetched again when somebody reads them.

use std::{collections::HashSet, io};

use super::{Event, Spans};
use crate::sync::Arc;

/// Spans that are absent and whose bytes are about to go: what comes of them meanwhile is not stored.
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
    /// Takes durable spans out, durably. Those of them that are under way stay. Blocks on the disk.
    ///
    /// # Errors
    /// The system's: nothing may be made a hole then.
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

    /// Whether a span's bytes are about to go.
    pub(super) fn is_leaving(&self, span: u32) -> bool {
        self.leaving.lock().contains(&span)
    }
}

pub(super) type LeavingSpans = HashSet<u32>;
