//! Hands out turns: at most so many at a time on the node, and so many per image. The lowest order
//! goes first, then who waits longest. An image at its limit delays no other image.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::{Semaphore, oneshot};

use crate::sync::{Arc, Mutex};

/// Steps that wait for containerd, of all layers: as many as four layers fill.
const KEPT: usize = 20;

/// The turns of the node, and what all passes share.
#[derive(Debug)]
pub(in crate::layer) struct Turns {
    all: usize,
    per_image: usize,
    state: Mutex<State>,
    /// Permit for decompressing one layer at a time that needs much memory.
    pub(super) large: Arc<Semaphore>,
    /// Permits for steps that wait for containerd. They bound the memory, also of layers whose pass
    /// is over.
    pub(super) kept: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    by_image: HashMap<Arc<str>, usize>,
    waiting: BTreeMap<(u64, u64), Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    image: Arc<str>,
    tell: oneshot::Sender<Turn>,
}

/// A turn. Dropping it hands it to the next one that waits.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    image: Arc<str>,
}

impl Turns {
    /// Turns with a limit for the node and one per image. Both are at least 1.
    pub(in crate::layer) fn new(all: usize, per_image: usize) -> Arc<Turns> {
        Arc::new(Turns {
            all: all.max(1),
            per_image: per_image.max(1),
            state: Mutex::default(),
            large: Arc::new(Semaphore::new(1)),
            kept: Arc::new(Semaphore::new(KEPT)),
        })
    }

    /// Waits for a turn. Dropping the future gives up the place.
    pub(super) async fn take(self: &Arc<Self>, image: &Arc<str>, order: u64) -> Turn {
        let told = {
            let mut state = self.state.lock();
            let (tell, told) = oneshot::channel();
            let place = (order, state.next);
            state.next += 1;
            let image = Arc::clone(image);
            state.waiting.insert(place, Waiting { image, tell });
            told
        };
        self.hand_out();
        match told.await {
            Ok(turn) => turn,
            // The sender is only dropped when it sends.
            Err(_) => std::future::pending().await,
        }
    }

    fn hand_out(self: &Arc<Self>) {
        // Dropped outside the lock, because the drop takes the lock.
        let mut given_up = Vec::new();
        loop {
            let mut state = self.state.lock();
            let Some(waiting) = self.next(&mut state) else {
                break;
            };
            state.taken += 1;
            *state
                .by_image
                .entry(Arc::clone(&waiting.image))
                .or_default() += 1;
            let turn = Turn {
                turns: Arc::clone(self),
                image: waiting.image,
            };
            given_up.extend(waiting.tell.send(turn).err());
        }
        drop(given_up);
    }

    fn next(&self, state: &mut State) -> Option<Waiting> {
        state.waiting.retain(|_, waiting| !waiting.tell.is_closed());
        if state.taken >= self.all {
            return None;
        }
        let of = |image: &Arc<str>| state.by_image.get(image).copied().unwrap_or(0);
        let fits = |waiting: &Waiting| of(&waiting.image) < self.per_image;
        let place = state.waiting.iter().find(|(_, waiting)| fits(waiting))?.0;
        let place = *place;
        state.waiting.remove(&place)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.turns.state.lock();
            state.taken -= 1;
            if let Some(own) = state.by_image.get_mut(&self.image) {
                *own -= 1;
                if *own == 0 {
                    state.by_image.remove(&self.image);
                }
            }
        }
        self.turns.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use super::*;

    async fn poll(future: &mut (impl Future<Output = Turn> + Unpin)) -> Option<Turn> {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            Poll::Ready(match future.as_mut().poll(cx) {
                Poll::Ready(turn) => Some(turn),
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn the_lowest_order_goes_first_and_a_full_image_delays_no_other() {
        let turns = Turns::new(2, 1);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = turns.take(&a, 5).await;
        let mut late = Box::pin(turns.take(&a, 2));
        assert!(poll(&mut late).await.is_none(), "the image is at its limit");
        let mut early = Box::pin(turns.take(&a, 1));
        assert!(poll(&mut early).await.is_none());
        let mut gone = Box::pin(turns.take(&a, 0));
        assert!(poll(&mut gone).await.is_none());
        let other = turns.take(&b, 9).await;
        drop(gone);
        drop(first);
        let first = poll(&mut early).await.expect("the lowest order");
        assert!(poll(&mut late).await.is_none());
        drop(first);
        let last = poll(&mut late).await.expect("its turn");
        drop((last, other));
        let state = turns.state.lock();
        assert_eq!((state.taken, state.by_image.len()), (0, 0));
        assert!(state.waiting.is_empty());
    }

    #[tokio::test]
    async fn the_node_has_a_limit_too() {
        let turns = Turns::new(1, 8);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = turns.take(&a, 0).await;
        let mut second = Box::pin(turns.take(&b, 0));
        assert!(poll(&mut second).await.is_none());
        drop(first);
        assert!(poll(&mut second).await.is_some());
    }
}
