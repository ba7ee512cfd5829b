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
        let compressed = |id| size(ztoc.spans().compressed(SpanId(id)));
        let bad = self.trouble.bad_for_now();
        let (mut under_way, mut absent) = (0, Vec::new());
        {
            let mut states = self.states.lock();
            for (id, span) in states.missing() {
                if !span.is_absent() {
                    under_way += compressed(id);
                    space = space.saturating_sub(size(ztoc.spans().uncompressed(SpanId(id))));
                } else if !bad.contains(&id) {
                    absent.push(id);
                }
                if under_way > window / 2 {
                    return Vec::new();
                }
            }
        }
        let last_read = self.last_read.load(Ordering::Relaxed);
        let first = absent.partition_point(|id| *id < last_read);
        absent.rotate_left(first);
        let mut room = window.saturating_sub(under_way);
        absent.retain(|id| {
            let fits = room > 0 && space > 0;
            room = room.saturating_sub(compressed(*id));
            space = space.saturating_sub(size(ztoc.spans().uncompressed(SpanId(*id))));
            fits
        });
        absent
    }
}
