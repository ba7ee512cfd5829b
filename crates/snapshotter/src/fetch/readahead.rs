//! Readahead: which units (spans of a layer) are likely to be read next, and whether past guesses
//! were right. Pure arithmetic.
//!
//! It follows a few streams. A read that continues a stream advances it. From the second such read
//! on, the stream requests units ahead, doubling each time up to a ceiling. The ceiling adapts:
//! requested units that are read raise it, and units that are unread when their stream is replaced
//! lower it.

use std::ops::Range;

/// Streams tracked per layer. A new one replaces the least recently used.
const STREAMS: usize = 8;
/// The minimum ceiling. One unit ahead costs little and hides a round trip.
const LOWEST_CEILING: u32 = 1;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The unit after the last one read.
    next: u32,
    /// The unit after the last one requested.
    asked: u32,
    window: u32,
    used: u64,
}

/// The streams of one layer.
#[derive(Debug)]
pub struct Readahead {
    streams: Vec<Stream>,
    clock: u64,
    most: u32,
    ceiling: u32,
    paid: u64,
    wasted: u64,
}

impl Readahead {
    /// Requests at most `most` units ahead.
    pub fn new(most: u32) -> Readahead {
        let most = most.max(LOWEST_CEILING);
        Readahead {
            streams: Vec::new(),
            clock: 0,
            most,
            ceiling: most,
            paid: 0,
            wasted: 0,
        }
    }

    /// Records a read of units and returns the units to request now. The caller skips units that it
    /// has and units beyond the end.
    pub fn read(&mut self, units: Range<u32>) -> Range<u32> {
        self.clock += 1;
        let now = self.clock;
        let goes_on = |s: &&mut Stream| {
            units.start <= s.next
                && s.next <= units.end.max(units.start + 1)
                && units.start + 1 >= s.next
        };
        let Some(stream) = self.streams.iter_mut().find(goes_on) else {
            self.begin(units.end, now);
            return units.end..units.end;
        };
        stream.used = now;
        if units.end <= stream.next {
            return stream.asked..stream.asked;
        }
        let hits = u64::from(stream.asked.min(units.end).saturating_sub(stream.next));
        stream.next = units.end;
        stream.asked = stream.asked.max(stream.next);
        stream.window = (stream.window * 2).clamp(1, self.ceiling);
        let from = stream.asked;
        let to = stream.next.saturating_add(stream.window).max(from);
        stream.asked = to;
        self.paid += hits;
        if hits > 0 && self.ceiling < self.most {
            self.ceiling += 1;
        }
        from..to
    }

    fn begin(&mut self, next: u32, now: u64) {
        let fresh = Stream {
            next,
            asked: next,
            window: 0,
            used: now,
        };
        if self.streams.len() < STREAMS {
            self.streams.push(fresh);
            return;
        }
        if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) {
            let unread = oldest.asked - oldest.next;
            self.wasted += u64::from(unread);
            if unread > 0 {
                self.ceiling = (self.ceiling / 2).max(LOWEST_CEILING);
            }
            *oldest = fresh;
        }
    }

    /// Units that were requested ahead and then read.
    pub fn paid(&self) -> u64 {
        self.paid
    }

    /// Units that were requested ahead and not read before their stream was replaced.
    pub fn wasted(&self) -> u64 {
        self.wasted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_grows_for_a_sequential_reader() {
        let mut ahead = Readahead::new(8);
        assert!(ahead.read(0..1).is_empty());
        assert!(ahead.read(0..1).is_empty(), "the same unit a second time");
        assert_eq!(ahead.read(1..2), 2..3);
        assert_eq!(ahead.read(2..3), 3..5);
        assert_eq!(ahead.read(3..4), 5..8);
        assert_eq!(ahead.read(4..5), 8..13);
        assert_eq!(ahead.read(5..6), 13..14);
        assert_eq!(ahead.paid(), 4);
    }

    #[test]
    fn two_sequential_readers_are_told_apart() {
        let mut ahead = Readahead::new(4);
        ahead.read(0..1);
        ahead.read(100..101);
        assert_eq!(ahead.read(1..2), 2..3);
        assert_eq!(ahead.read(101..102), 102..103);
    }

    #[test]
    fn random_reads_request_nothing_and_wrong_guesses_lower_the_ceiling() {
        let mut ahead = Readahead::new(8);
        for i in 0..100 {
            assert!(ahead.read(i * 10..i * 10 + 1).is_empty());
        }
        for i in 100..200 {
            ahead.read(i * 10..i * 10 + 1);
            ahead.read(i * 10 + 1..i * 10 + 2);
        }
        assert!(ahead.wasted() > 50);
        assert_eq!(ahead.ceiling, LOWEST_CEILING);
    }

    proptest! {
        #[test]
        fn prop_requested_units_lie_ahead_and_within_the_window(reads in prop::collection::vec((0_u32..50, 1_u32..4), 0..200)) {
            let mut ahead = Readahead::new(8);
            for (start, len) in reads {
                let asked = ahead.read(start..start + len);
                prop_assert!(asked.is_empty() || asked.start >= start + len);
                prop_assert!(asked.is_empty() || asked.end <= start + len + 8);
                prop_assert!(ahead.ceiling >= 1 && ahead.ceiling <= 8);
            }
        }
    }
}
