//! The spans that a prefetch artifact lists: downloaded before the rest of the layer, a few at a time,
//! and without a reader.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::{Event, Span, Spans};
use crate::{fetch::Class, sync::Arc};

/// Spans requested at a time. More would delay the readahead of readers, which has the same class.
const AT_ONCE: usize = 4;
/// Listed spans that are looked at: those of 256 GiB with the usual size. Ranges may overlap.
const MOST: usize = 1 << 16;

/// The listed spans in order.
#[derive(Debug, Default)]
pub(super) struct First {
    waiting: VecDeque<u32>,
    asked: Vec<u32>,
}

impl First {
    /// The spans of these ranges, each once. Whatever lies outside of the layer is ignored.
    fn of(ranges: impl IntoIterator<Item = Range<u64>>, count: u32) -> First {
        let within = move |at: u64| u32::try_from(at).unwrap_or(count).min(count);
        let listed = ranges
            .into_iter()
            .flat_map(move |range| within(range.start)..within(range.end));
        let mut seen = HashSet::new();
        First {
            waiting: listed
                .take(MOST)
                .filter(|span| seen.insert(*span))
                .collect(),
            asked: Vec::new(),
        }
    }
}

impl Spans {
    /// Sets the spans to download first. The layer's completion requests them.
    pub(in crate::layer) fn set_first(&self, ranges: impl IntoIterator<Item = Range<u64>>) {
        *self.first.lock() = First::of(ranges, self.data.span_count());
        self.look_again();
    }

    /// Whether listed spans are not downloaded yet.
    pub(in crate::layer) fn has_first(&self) -> bool {
        let first = self.first.lock();
        !first.waiting.is_empty() || !first.asked.is_empty()
    }

    /// Requests the next listed spans. One that fails is left to the background download.
    pub(in crate::layer) fn want_first(self: &Arc<Self>) {
        let mut wanted = Vec::new();
        {
            let mut first = self.first.lock();
            let First { waiting, asked } = &mut *first;
            let states = self.states.lock();
            asked.retain(|span| {
                let state = states.get(*span);
                state.is_some_and(|state| !matches!(state, Span::Present | Span::Absent))
            });
            while asked.len() < AT_ONCE
                && let Some(span) = waiting.pop_front()
            {
                if states.get(span).is_some_and(Span::is_absent) {
                    asked.push(span);
                    wanted.push(span);
                }
            }
        }
        for span in wanted {
            self.step(span, Event::Want(Class::Next, None));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::reversed_empty_ranges, reason = "artifacts come from outside")]
    fn ranges_are_clamped_and_each_span_is_listed_once() {
        let of = |ranges: &[Range<u64>]| {
            let first = First::of(ranges.iter().cloned(), 10);
            Vec::from(first.waiting)
        };
        assert_eq!(of(&[7..9, 2..4, 3..6]), [7, 8, 2, 3, 4, 5]);
        assert_eq!(of(&[8..u64::MAX, 1 << 40..1 << 41, 5..2]), [8, 9]);
        assert_eq!(of(&vec![0..u64::MAX; 100_000]).len(), 10);
        assert!(of(&[]).is_empty());
    }
}
