//! Stores spans that the disk did not accept earlier, once it has space. Bytes that are only in
//! memory are lost with the process.

use super::{Spans, fill::ROOM};
use crate::{cpu::Lane, layer::data::Held, sync::Arc};

impl Spans {
    /// Stores spans that are kept in memory, because the disk accepts spans again. Stored spans
    /// need not be downloaded.
    pub(in crate::layer) fn store_kept(self: &Arc<Self>) {
        for (span, held) in self.context.spare.of(self.data.files.number) {
            self.store_behind(span, held);
        }
    }

    /// A span was read from memory: stores it if there is enough space.
    pub(super) fn store_if_room(self: &Arc<Self>, span: u32, held: &Held) {
        let need = held.bytes.len() as u64 + ROOM;
        // statvfs does no I/O.
        let disk = self.context.store.disk();
        if disk.is_ok_and(|disk| disk.free >= need) {
            self.store_behind(span, held.clone());
        }
    }

    fn store_behind(self: &Arc<Self>, span: u32, held: Held) {
        // Once claimed, no other task downloads it.
        if self.states.lock().claim(span) {
            let spans = Arc::clone(self);
            let job = move || spans.store_held(span, held);
            self.context.cpu.spawn(Lane::ComputeBehind, job);
        }
    }

    fn store_held(self: &Arc<Self>, span: u32, held: Held) {
        if self.is_leaving(span) {
            self.serve_only(span, &held);
        } else {
            match self.data.write(held.tar.start, &held.bytes) {
                Ok(()) => {
                    self.written(span, &held.tar, &held.bytes);
                    self.context.spare.stored(self.data.files.number, span);
                    self.times.forget(span);
                }
                Err(error) => self.unstored(span, held, error),
            }
        }
        self.look_again();
    }
}
