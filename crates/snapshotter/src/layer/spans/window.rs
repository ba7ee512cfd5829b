//! Selects the spans that the background requests next.

use std::ops::Range;

use soci_ztoc::SpanId;

use super::Spans;
use crate::sync::atomic::Ordering;

impl Spans {
    /// The first absent span, in tar order.
    pub(in crate::layer) fn first_absent(&self) -> Option<u32> {
        self.data.ztoc()?;
        let bad = self.trouble.bad_for_now();
        let mut states = self.states.lock();
        let mut missing = states.missing();
        missing
            .find(|(id, span)| span.is_absent() && !bad.contains(id))
            .map(|(id, _)| id)
    }

    /// The next absent spans, in tar order from the last read on, such that at most `window`
    /// compressed bytes are in progress and they decompress to at most about `space` bytes. Empty
    /// while more than half of the window is in progress, so that neighboring spans share requests.
    pub(in crate::layer) fn next_absent(&self, window: u64, mut space: u64) -> Vec<u32> {
        let Some(ztoc) = self.data.ztoc() else {
            return Vec::new();
        };
        let size = |range: Range<u64>| range.end - range.start;
        let (mut under_way, mut room, mut absent) = (0, window, Vec::new());
        let bad = self.trouble.bad_for_now();
        let last_read = self.last_read.load(Ordering::Relaxed);
        let mut states = self.states.lock();
        // Each pass ends with the window, because a layer can have tens of thousands of spans.
        for part in [last_read..u32::MAX, 0..last_read] {
            let missing = states.missing();
            let missing = missing.skip_while(|(id, _)| *id < part.start);
            for (id, span) in missing.take_while(|(id, _)| *id < part.end) {
                let is_absent = span.is_absent();
                if is_absent && bad.contains(&id) {
                    continue;
                }
                if room == 0 || space == 0 {
                    return absent;
                }
                let compressed = size(ztoc.spans().compressed(SpanId(id)));
                space = space.saturating_sub(size(ztoc.spans().uncompressed(SpanId(id))));
                room = room.saturating_sub(compressed);
                if is_absent {
                    absent.push(id);
                } else {
                    under_way += compressed;
                }
                if under_way > window / 2 {
                    return Vec::new();
                }
            }
        }
        absent
    }
}
