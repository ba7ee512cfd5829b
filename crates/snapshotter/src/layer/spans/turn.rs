//! Paces spans that arrived and that no reader waits for.

use soci_ztoc::SpanId;

use super::Spans;
use crate::{cpu::Lane, sync::Arc};

impl Spans {
    /// Fills a span that no reader waits for, once the disk has accepted enough of the earlier
    /// writes. A reader that arrives meanwhile moves it to the front.
    pub(super) fn fill_in_turn(self: &Arc<Self>, span: u32, lane: Lane) {
        let Some(ztoc) = self.data.ztoc() else { return };
        let tar = ztoc.spans().uncompressed(SpanId(span));
        // A weak reference, so that waiting for the disk does not keep a layer open.
        let spans = Arc::downgrade(self);
        let writeback = &self.context.writeback;
        writeback.admit(tar.end - tar.start, move |turn| {
            let Some(spans) = spans.upgrade() else { return };
            let cpu = Arc::clone(&spans.context.cpu);
            cpu.spawn(lane, move || {
                spans.fill(span);
                drop(turn);
            });
        });
    }
}
