//! The spans that a recorded start read first: downloaded in this order, before other background
//! data of the node and after everything that a reader waits for.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
};

use soci_ztoc::SpanId;

use super::{Event, Span, Spans};
use crate::{
    fetch::{Class, LOOSE},
    sync::Arc,
};

/// Spans of a layer requested at a time. The scheduler decides how many of them it downloads at
/// once.
const AT_ONCE: usize = 256;
/// Spans of a layer that are replayed at most: those of 256 GiB with the usual size.
const MOST: usize = 1 << 16;
/// Orders below this belong to recorded starts. The rest comes in the order of layers, except that
/// readers are followed.
const REST: u64 = LOOSE;

/// Consecutive spans of a layer, and their place in the start of the whole image. The smallest comes
/// first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The spans. Those outside of the layer are ignored.
    pub spans: Range<u64>,
    /// Their place, smaller than 2^32.
    pub order: u64,
}

/// The spans to replay, in order.
#[derive(Debug, Default)]
pub(super) struct Replay {
    waiting: VecDeque<(u32, u64)>,
    /// Requested spans with their order.
    asked: HashMap<u32, u64>,
}

/// The spans of these ranges in a layer with `count` spans, each once, with their order.
pub(in crate::layer) fn in_order(
    ranges: &[Replayed],
    count: u32,
) -> impl Iterator<Item = (u32, u64)> {
    let within = move |at: u64| u32::try_from(at).unwrap_or(count).min(count);
    let listed = ranges.iter().flat_map(move |range| {
        let spans = within(range.spans.start)..within(range.spans.end);
        spans.map(|span| (span, range.order.min(REST - 1)))
    });
    let mut seen = HashSet::new();
    // Ranges may overlap.
    listed
        .take(MOST)
        .filter(move |(span, _)| seen.insert(*span))
}

impl Spans {
    /// Sets the spans to replay. The layer's completion requests them.
    pub(in crate::layer) fn set_replay(&self, ranges: &[Replayed]) {
        let replay = Replay {
            waiting: in_order(ranges, self.data.span_count()).collect(),
            asked: HashMap::new(),
        };
        *self.replay.lock() = replay;
        self.look_again();
    }

    /// Whether spans to replay are not downloaded yet.
    pub(in crate::layer) fn has_replay(&self) -> bool {
        let replay = self.replay.lock();
        !replay.waiting.is_empty() || !replay.asked.is_empty()
    }

    /// Whether spans to replay are not even requested yet.
    pub(in crate::layer) fn has_replay_waiting(&self) -> bool {
        !self.replay.lock().waiting.is_empty()
    }

    /// Requests the next spans to replay, such that those in progress decompress to at most about
    /// `space` bytes. One that fails is left to the background download.
    pub(in crate::layer) fn want_replay(self: &Arc<Self>, mut space: u64) {
        let mut wanted = Vec::new();
        let size = |span| {
            let tar = self
                .data
                .ztoc()
                .map(|it| it.spans().uncompressed(SpanId(span)));
            tar.map_or(0, |tar| tar.end - tar.start)
        };
        {
            let mut replay = self.replay.lock();
            let Replay { waiting, asked } = &mut *replay;
            let states = self.states.lock();
            asked.retain(|span, _| {
                let state = states.get(*span);
                state.is_some_and(|state| !matches!(state, Span::Present | Span::Absent))
            });
            for span in asked.keys() {
                space = space.saturating_sub(size(*span));
            }
            while asked.len() < AT_ONCE
                && space > 0
                && let Some((span, order)) = waiting.pop_front()
            {
                if states.get(span).is_some_and(Span::is_absent) {
                    space = space.saturating_sub(size(span));
                    asked.insert(span, order);
                    wanted.push(span);
                }
            }
        }
        for span in wanted {
            self.step(span, Event::Want(Class::All, None));
        }
    }

    /// The place of a span in the queue of the background.
    pub(super) fn background_order(&self, span: u32) -> u64 {
        let replayed = self.replay.lock().asked.get(&span).copied();
        // Layers are completed one after the other.
        replayed.unwrap_or_else(|| REST.saturating_add(self.data.files.number.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_span_has_its_first_place() {
        let range = |spans, order| Replayed { spans, order };
        let ranges = [
            range(7..9, 3),
            range(2..3, 5),
            range(8..12, 6),
            range(1 << 40..u64::MAX, 7),
            range(0..1, u64::MAX),
        ];
        let spans: Vec<_> = in_order(&ranges, 10).collect();
        let wanted = [(7, 3), (8, 3), (2, 5), (9, 6), (0, REST - 1)];
        assert_eq!(spans, wanted);
    }
}
