//! Background downloads at a fixed pace (`[background_fetch] mode = "paced"`), as the reference
//! implementation makes them: one span per period for the whole node, the layers of a bounded queue
//! in turn, and silence after the first mount of an image.
//!
//! A span that is present takes no turn. A layer that cannot be fetched now lets the others go first.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::{self, NodeEvent};
use crate::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

/// Which layer a full queue loses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drops {
    /// The one that comes.
    #[default]
    Newest,
    /// The one that is next.
    Oldest,
}

/// The pace of background downloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paced {
    /// Time between two spans.
    pub period: Duration,
    /// Time without downloads after the first mount of an image.
    pub silence: Duration,
    /// Maximum number of layers in the queue; `None` means no limit.
    pub queue: Option<usize>,
    /// What to do if it is full.
    pub drops: Drops,
}

/// A layer in the queue.
pub(super) trait Fetches: Send + Sync {
    /// Requests the next missing span in the background.
    fn fetch_next(&self) -> Next;
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A span was requested.
    Requested,
    /// Nothing can be requested now.
    Later,
    /// The layer is complete or closed, or is not downloaded until it is used again.
    Over,
}

/// The queue. [`Queue::run`] works on it.
pub(super) struct Queue<T> {
    pace: Paced,
    waiting: Mutex<VecDeque<Arc<T>>>,
    came: Notify,
    /// An image was mounted, and the silence has not begun.
    silent: AtomicBool,
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("pace", &self.pace)
            .finish_non_exhaustive()
    }
}

impl<T: Fetches> Queue<T> {
    pub(super) fn new(pace: Paced) -> Self {
        Self {
            pace,
            waiting: Mutex::default(),
            came: Notify::new(),
            silent: AtomicBool::new(false),
        }
    }

    /// Adds a layer at the end, or drops one.
    pub(super) fn add(&self, layer: Arc<T>) {
        {
            let mut waiting = self.waiting.lock();
            if waiting.iter().any(|other| Arc::ptr_eq(other, &layer)) {
                return;
            }
            let is_full = self.pace.queue.is_some_and(|most| waiting.len() >= most);
            if is_full {
                let operations = &metrics::global().operations;
                operations.node_event(NodeEvent::BackgroundEvicted);
                if self.pace.drops == Drops::Newest || waiting.pop_front().is_none() {
                    return;
                }
            }
            waiting.push_back(layer);
        }
        self.came.notify_one();
    }

    /// An image was mounted for the first time: its container needs the network.
    pub(super) fn be_silent(&self) {
        self.silent.store(true, Ordering::Release);
    }

    /// Number of layers in the queue.
    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    fn pop(&self) -> Option<Arc<T>> {
        self.waiting.lock().pop_front()
    }

    /// Fetches for as long as it is polled.
    pub(super) async fn run(&self) {
        let mut pace = interval(self.pace.period.max(Duration::from_millis(1)));
        // After silence, the next spans keep their distance.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Layers in a row that could not be fetched.
        let mut later = 0;
        loop {
            if self.silent.swap(false, Ordering::AcqRel) {
                tracing::debug!(
                    "new image mounted, pausing the background fetcher for silence period"
                );
                tokio::time::sleep(self.pace.silence).await;
                continue;
            }
            let Some(layer) = self.pop() else {
                self.came.notified().await;
                continue;
            };
            match layer.fetch_next() {
                Next::Over => continue,
                Next::Requested => self.add(layer),
                Next::Later => {
                    self.add(layer);
                    later += 1;
                    // The turn is the next layer's, unless each has declined it.
                    if later < self.len() {
                        continue;
                    }
                }
            }
            later = 0;
            pace.tick().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// A layer with this many spans that logs when they are requested.
    struct Layer {
        name: u8,
        left: Mutex<u32>,
        /// Time before which nothing can be requested.
        from: u128,
        log: Arc<Mutex<Vec<(u8, u128)>>>,
        start: Instant,
    }

    impl Fetches for Layer {
        fn fetch_next(&self) -> Next {
            let mut left = self.left.lock();
            if *left == 0 {
                return Next::Over;
            }
            let at = self.start.elapsed().as_millis();
            if at < self.from {
                return Next::Later;
            }
            *left -= 1;
            self.log.lock().push((self.name, at));
            Next::Requested
        }
    }

    struct Fixture {
        queue: Arc<Queue<Layer>>,
        log: Arc<Mutex<Vec<(u8, u128)>>>,
        start: Instant,
    }

    impl Fixture {
        fn new(queue: Option<usize>, drops: Drops) -> Self {
            let pace = Paced {
                period: Duration::from_millis(500),
                silence: Duration::from_secs(30),
                queue,
                drops,
            };
            Self {
                queue: Arc::new(Queue::new(pace)),
                log: Arc::default(),
                start: Instant::now(),
            }
        }

        fn add(&self, name: u8, spans: u32) {
            self.add_from(0, name, spans);
        }

        fn add_from(&self, from: u128, name: u8, spans: u32) {
            self.queue.add(Arc::new(Layer {
                name,
                left: Mutex::new(spans),
                from,
                log: Arc::clone(&self.log),
                start: self.start,
            }));
        }

        async fn run(&self, time: Duration) -> Vec<(u8, u128)> {
            // The queue runs until the time is over.
            let _ = tokio::time::timeout(time, self.queue.run()).await;
            self.log.lock().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn layers_take_turns_and_one_span_is_requested_in_a_period() {
        let fixture = Fixture::new(None, Drops::Newest);
        fixture.add(1, 3);
        fixture.add(2, 2);
        let log = fixture.run(Duration::from_secs(10)).await;
        assert_eq!(log, [(1, 0), (2, 0), (1, 500), (2, 1000), (1, 1500)]);
        assert_eq!(fixture.queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn layers_that_must_wait_take_no_time_from_others() {
        let fixture = Fixture::new(None, Drops::Newest);
        for _ in 0..2 {
            fixture.add_from(1200, 1, 1);
        }
        fixture.add(3, 3);
        let log = fixture.run(Duration::from_secs(10)).await;
        assert_eq!(log, [(3, 0), (3, 0), (3, 500), (1, 1500), (1, 2000)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_image_brings_silence_once() {
        let fixture = Fixture::new(None, Drops::Newest);
        fixture.add(1, 3);
        // Signals that come together are one.
        fixture.queue.be_silent();
        fixture.queue.be_silent();
        let log = fixture.run(Duration::from_secs(60)).await;
        let times: Vec<_> = log.iter().map(|(_, at)| *at).collect();
        assert_eq!(times, [30_000, 30_000, 30_500]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_the_newest_or_the_oldest() {
        for (drops, kept) in [(Drops::Newest, [1, 2]), (Drops::Oldest, [2, 3])] {
            let fixture = Fixture::new(Some(2), drops);
            for name in 1..=3 {
                fixture.add(name, 1);
            }
            let log = fixture.run(Duration::from_secs(5)).await;
            let names: Vec<_> = log.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, kept, "{drops:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_layer_that_comes_later_wakes_an_idle_queue() {
        let fixture = Fixture::new(Some(1), Drops::Newest);
        fixture.add(1, 1);
        fixture.run(Duration::from_secs(5)).await;
        fixture.add(2, 1);
        assert_eq!(fixture.run(Duration::from_secs(5)).await.len(), 2);
    }
}
