//! Selects the spans that the background requests next.

use std::ops::Range;

use soci_ztoc::SpanId;

use super::Spans;

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

    /// The next absent spans, in tar order, such that at most `window` compressed bytes are in
    /// progress and they decompress to at most about `space` bytes. Empty while more than half of
    /// the window is in progress, so that neighboring spans share requests.
    pub(in crate::layer) fn next_absent(&self, window: u64, mut space: u64) -> Vec<u32> {
        let Some(ztoc) = self.data.ztoc() else {
            return Vec::new();
        };
        let (mut under_way, mut room, mut absent) = (0, window, Vec::new());
        let bad = self.trouble.bad_for_now();
        let mut states = self.states.lock();
        for (id, span) in states.missing() {
            if span.is_absent() && bad.contains(&id) {
                continue;
            }
            let Range { start, end } = ztoc.spans().compressed(SpanId(id));
            let size = end - start;
            let tar = ztoc.spans().uncompressed(SpanId(id));
            space = space.saturating_sub(tar.end - tar.start);
            if span.is_absent() {
                absent.push(id);
            } else {
                under_way += size;
            }
            if under_way > window / 2 {
                return Vec::new();
            }
            room = room.saturating_sub(size);
            if room == 0 || space == 0 {
                break;
            }
        }
        absent
    }
}
