//! Spans that came and that nobody waits for: they are filled when it is their turn.

use soci_ztoc::SpanId;

use super::Spans;
use crate::{cpu::Lane, sync::Arc};

impl Spans {
    /// Fills a span that nobody waits for when the disk has taken enough of what was written before. A reader that comes
    /// meanwhile hurries it.
    pub(super) fn fill_in_turn(self: &Arc<Self>, span: u32, lane: Lane) {
        let Some(ztoc) = self.data.ztoc() else { return };
        let tar = ztoc.spans().uncompressed(SpanId(span));
        // Who waits for the disk keeps no layer.
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
