//! Buffers for the tar of one pass. They come back when every stage has let go of them, so their
//! number bounds what lies between the stages.

use bytes::Bytes;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// Bytes of a buffer: what a core keeps in its own cache.
const ROOM: usize = 512 << 10;
/// Buffers of one pass.
const ROOMS: usize = 6;

/// The buffers of a pass.
pub(super) struct Rooms {
    home: UnboundedSender<Vec<u8>>,
    back: UnboundedReceiver<Vec<u8>>,
    /// Buffers that were never needed and do not exist yet.
    unmade: usize,
}

/// The filled part of a buffer. Returns the buffer when dropped.
struct Lent {
    bytes: Vec<u8>,
    filled: usize,
    home: UnboundedSender<Vec<u8>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // A failed send means that the pass is over.
        drop(self.home.send(std::mem::take(&mut self.bytes)));
    }
}

impl Rooms {
    pub(super) fn new() -> Rooms {
        let (home, back) = mpsc::unbounded_channel();
        Rooms {
            home,
            back,
            unmade: ROOMS,
        }
    }

    /// A buffer, if one is free.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        if let Ok(room) = self.back.try_recv() {
            return Some(room);
        }
        self.unmade = self.unmade.checked_sub(1)?;
        Some(vec![0; ROOM])
    }

    /// Waits for a buffer.
    pub(super) async fn next(&mut self) -> Vec<u8> {
        match self.take() {
            Some(room) => room,
            // Not closed, because `home` is a sender too.
            None => self.back.recv().await.unwrap_or_default(),
        }
    }

    /// Lends out the first bytes of a buffer.
    pub(super) fn lend(&self, bytes: Vec<u8>, filled: usize) -> Bytes {
        let home = self.home.clone();
        Bytes::from_owner(Lent {
            bytes,
            filled,
            home,
        })
    }
}
