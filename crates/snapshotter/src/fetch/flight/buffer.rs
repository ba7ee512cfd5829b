//! The buffer of a piece while it arrives, and the feeds that follow it.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{Flight, PAUSE};
use crate::fetch::{Class, Feed, PieceId, Watch, line::Line, share::Held};

/// The bytes of a piece that have arrived.
pub(super) struct Buffer {
    bytes: BytesMut,
    feeds: Vec<Feed>,
    permit: Option<Held>,
}

impl Buffer {
    pub(super) fn push(&mut self, part: Bytes) {
        self.bytes.extend_from_slice(&part);
        for feed in &mut self.feeds {
            feed(part.clone());
        }
    }

    pub(super) fn complete(self) -> (Bytes, Option<Held>) {
        (self.bytes.freeze(), self.permit)
    }
}

impl Flight {
    /// Opens the buffer of a piece whose first bytes have arrived. Not earlier, so that a source
    /// that sends nothing holds no memory. `shared` is the byte shared with the piece before.
    pub(super) async fn begin(
        &mut self,
        id: PieceId,
        range: &Range<u64>,
        shared: Option<u8>,
        line: &mut Line,
    ) -> Buffer {
        let waits = Instant::now();
        let permit = self.permit(range.end - range.start).await;
        if waits.elapsed() > PAUSE {
            line.resumed();
        }
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut buffer = Buffer {
            bytes: BytesMut::with_capacity(length),
            feeds: self.feeds(id),
            permit,
        };
        if let Some(byte) = shared {
            buffer.push(Bytes::copy_from_slice(&[byte]));
        }
        buffer
    }

    /// The feeds of the demands for a piece, if a reader waits for it.
    fn feeds(&self, id: PieceId) -> Vec<Feed> {
        let watches: Vec<Watch> = {
            let mut state = self.shared.state.lock();
            let carries = state.queue.carries(self.request.flight, id);
            let piece = state.queue.get_mut(id).filter(|_| carries);
            let waiters = piece.filter(|piece| piece.class == Class::Now);
            let waiters = waiters.into_iter().flat_map(|piece| &mut piece.waiters);
            waiters.filter_map(|waiter| waiter.watch.take()).collect()
        };
        watches.into_iter().filter_map(|watch| watch()).collect()
    }
}
