//! The scheduler: wishes for ranges of blobs become few, large requests. It knows ranges and reasons, not spans or files.
//!
//! A [`Demand`] says which bytes, how urgently ([`Class`]), for which image, from which [`Source`]s, and where they go.
//! The flow:
//!
//! ```text
//! demand ─▶ queue (equal wishes merge) ─▶ driver: slots, a source that answers ─▶ flight: one ranged request
//!             ▲ promoted when a reader needs it                                     │ permits, gate, chunks
//!             └──────────────── what a broken flight did not deliver ◀──────────────┴─▶ sink, piece by piece
//! ```
//!
//! Rules that must stay true:
//! * A reader (`Now`) never waits behind `All`: its slots and its byte permits are its own, and while its bytes arrive the
//!   bodies of `All` are not read (back-pressure slows their senders); while it waits for its first byte one of them is.
//! * Bytes in memory are bounded: permits are taken before a piece's bytes are asked for and go back when the sink has
//!   dropped its [`Delivery`].
//! * One source's failure is not the others': a piece asks the next source that answers. A source that fails has one clock
//!   ([`outage`]); reads wait as long as it has budget, then fail at once until a probe succeeds.
//! * The queue's length is what its users keep outstanding; completion and whole layers keep a window.

use std::{collections::HashMap, fmt, ops::Range, time::Duration};

use bytes::Bytes;
use soci_oci::{
    Digest,
    fetch::{FetchError, Fetcher},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

mod driver;
mod flight;
mod outage;
mod queue;
pub mod readahead;

use outage::Outages;
use queue::{Fit, Key, PieceId, Queue};

/// How urgent a demand is. Smaller is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits.
    Now,
    /// Likely soon.
    Next,
    /// Everything, in order.
    All,
}

/// One place a blob can be had from. The name is what an outage is about: a registry host, say.
#[derive(Clone)]
pub struct Source {
    /// Equal for sources that fail together.
    pub name: Arc<str>,
    /// Reads the blob there.
    pub fetcher: Arc<dyn Fetcher>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How long a demand waits for sources that do not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as the read budget lasts; a refusal by every source fails it.
    Budget,
    /// For ever; a source that refused is asked again after a minute.
    Forever,
}

/// Where the bytes go. Called once, on a thread of the network runtime: it must not block.
pub type Sink = Box<dyn FnOnce(Result<Delivery, DemandError>) + Send>;

/// A wish for one range of a blob, delivered whole.
pub struct Demand {
    /// The blob.
    pub blob: Digest,
    /// Which bytes; not empty.
    pub range: Range<u64>,
    /// How urgent.
    pub class: Class,
    /// Who is charged: limits are per image.
    pub image: Arc<str>,
    /// Among demands of one class the smallest goes first, then the oldest.
    pub order: u64,
    /// Where to ask, in this order.
    pub sources: Arc<[Source]>,
    /// A source that gave wrong bytes for this range: asked only if there is no other.
    pub avoid: Option<Arc<str>>,
    /// How long to wait.
    pub patience: Patience,
    /// Where the bytes go.
    pub sink: Sink,
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Demand")
            .field("blob", &self.blob)
            .field("range", &self.range)
            .field("class", &self.class)
            .finish_non_exhaustive()
    }
}

/// The bytes of a demand. Dropping it gives their permits back.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Exactly the range's bytes; unverified.
    pub bytes: Bytes,
    /// The name of the source they came from.
    pub source: Arc<str>,
    /// How urgent the piece was at the end: a reader may have joined.
    pub class: Class,
    /// Held for its drop.
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Delivery {
    /// For who bounds its memory in another way.
    #[must_use]
    pub fn without_permit(self) -> Delivery {
        Delivery {
            _permit: None,
            ..self
        }
    }
}

/// Why a demand was not met. Cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DemandError {
    /// The demand brought no source.
    #[error("no source to fetch from")]
    NoSource,
    /// Every source refused; this is the last one's reason.
    #[error("{source_name} refused")]
    Refused {
        /// The source.
        source_name: Arc<str>,
        /// Its reason.
        #[source]
        error: FetchError,
    },
    /// No source has answered for longer than the read budget.
    #[error("{source_name} has not answered for {} s", lasted.as_secs())]
    OutOfTime {
        /// The source.
        source_name: Arc<str>,
        /// How long its outage has lasted.
        lasted: Duration,
        /// Its last failure.
        #[source]
        error: FetchError,
    },
    /// The scheduler is shut down.
    #[error("fetching is shut down")]
    Closed,
}

/// The scheduler's limits. Bytes and counts for the node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests of class `All` at once.
    pub all_requests: usize,
    /// The same for one image. Reference default of `max_concurrent_downloads_per_image`.
    pub all_requests_per_image: usize,
    /// Requests of class `Now` and `Next` at once; `Next` may have half of them.
    pub urgent_requests: usize,
    /// Most bytes of one request of class `All`: at 90 MB/s a connection, about five round trips of 20 ms.
    pub all_request_bytes: u64,
    /// Most bytes of one request of the other classes: what is larger arrives sooner by two connections.
    pub urgent_request_bytes: u64,
    /// Bytes of class `All` in memory.
    pub all_memory: usize,
    /// Bytes of the other classes in memory.
    pub urgent_memory: usize,
    /// How long reads wait through one outage of one source (`[blob] read_budget_sec`).
    pub read_budget: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            all_requests: 6,
            all_requests_per_image: 3,
            urgent_requests: 16,
            all_request_bytes: 8 << 20,
            urgent_request_bytes: 4 << 20,
            all_memory: 16 << 20,
            urgent_memory: 24 << 20,
            read_budget: Duration::from_secs(300),
        }
    }
}

struct Waiter {
    sources: Arc<[Source]>,
    avoid: Option<Arc<str>>,
    patience: Patience,
    sink: Sink,
    refused: Vec<(Arc<str>, FetchError, Instant)>,
}

/// What is running now, counted against the limits.
#[derive(Default)]
struct Running {
    all: usize,
    all_of_image: HashMap<Arc<str>, usize>,
    urgent: usize,
    next: usize,
}

impl Running {
    fn fit(&self, options: &Options, class: Class, image: &Arc<str>) -> Fit {
        match class {
            Class::Now if self.urgent >= options.urgent_requests => Fit::No,
            Class::Next if self.urgent >= options.urgent_requests => Fit::No,
            Class::Next if self.next >= options.urgent_requests.div_ceil(2) => Fit::No,
            Class::Now | Class::Next => Fit::Yes,
            Class::All if self.all >= options.all_requests => Fit::Full,
            Class::All => {
                let running = self.all_of_image.get(image).copied().unwrap_or(0);
                if running < options.all_requests_per_image {
                    Fit::Yes
                } else {
                    Fit::No
                }
            }
        }
    }

    fn start(&mut self, class: Class, image: &Arc<str>) {
        match class {
            Class::All => {
                self.all += 1;
                *self.all_of_image.entry(Arc::clone(image)).or_default() += 1;
            }
            Class::Now => self.urgent += 1,
            Class::Next => {
                self.urgent += 1;
                self.next += 1;
            }
        }
    }

    fn end(&mut self, class: Class, image: &Arc<str>) {
        match class {
            Class::All => {
                self.all -= 1;
                if let Some(running) = self.all_of_image.get_mut(image) {
                    *running -= 1;
                    if *running == 0 {
                        self.all_of_image.remove(image);
                    }
                }
            }
            Class::Now => self.urgent -= 1,
            Class::Next => {
                self.urgent -= 1;
                self.next -= 1;
            }
        }
    }
}

struct State {
    queue: Queue<Waiter>,
    outages: Outages,
    running: Running,
    /// When each running request last got bytes; `None` before its first.
    received: HashMap<queue::FlightId, Option<Instant>>,
    /// A probe for each source whose budget is spent.
    probes: HashMap<Arc<str>, (Source, Instant)>,
    /// When parked pieces are looked at again.
    unpark_at: Option<Instant>,
    closed: bool,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
    /// The driver has something to look at.
    wake: Notify,
    /// A paused body may go on.
    gate: Notify,
    /// Guards that are out.
    held_back: AtomicUsize,
    all_memory: Arc<Semaphore>,
    urgent_memory: Arc<Semaphore>,
}

/// The scheduler. Dropping it ends all requests; demands that wait then fail with [`DemandError::Closed`].
pub struct Scheduler {
    shared: Arc<Shared>,
    driver: tokio::task::AbortHandle,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Starts the driver on `runtime`. One task owns all requests.
    pub fn start(options: Options, runtime: &tokio::runtime::Handle) -> Arc<Scheduler> {
        let permits = |bytes: usize| Arc::new(Semaphore::new(flight::kib(bytes as u64) as usize));
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Queue::default(),
                outages: Outages::new(options.read_budget),
                running: Running::default(),
                received: HashMap::new(),
                probes: HashMap::new(),
                unpark_at: None,
                closed: false,
            }),
            wake: Notify::new(),
            gate: Notify::new(),
            held_back: AtomicUsize::new(0),
            all_memory: permits(options.all_memory),
            urgent_memory: permits(options.urgent_memory),
            options,
        });
        let driver = runtime
            .spawn(driver::drive(Arc::downgrade(&shared)))
            .abort_handle();
        Arc::new(Scheduler { shared, driver })
    }

    /// Queues a wish. Never blocks; the sink hears of it later, and at once if the scheduler is shut down.
    pub fn demand(&self, demand: Demand) {
        let Demand {
            blob,
            range,
            class,
            image,
            order,
            sources,
            avoid,
            patience,
            sink,
        } = demand;
        let key = Key {
            blob,
            start: range.start,
            end: range.end,
        };
        let waiter = Waiter {
            sources,
            avoid,
            patience,
            sink,
            refused: Vec::new(),
        };
        {
            let mut state = self.shared.state.lock();
            if !state.closed {
                state.queue.push(key, class, order, &image, waiter);
                drop(state);
                self.shared.wake.notify_one();
                return;
            }
        }
        (waiter.sink)(Err(DemandError::Closed));
    }

    /// A range that is already demanded has become more urgent. Without such a demand nothing happens.
    pub fn promote(&self, blob: &Digest, range: Range<u64>, class: Class) {
        let key = Key {
            blob: *blob,
            start: range.start,
            end: range.end,
        };
        let known = self.shared.state.lock().queue.promote(&key, class);
        if known {
            self.shared.wake.notify_one();
            self.shared.gate.notify_waiters();
        }
    }

    /// Whether somebody waits for bytes now: a reader, or the start of a container.
    pub fn is_urgent(&self) -> bool {
        let running = {
            let state = self.shared.state.lock();
            state.running.urgent > state.running.next
        };
        running || self.shared.held_back.load(Ordering::Relaxed) > 0
    }

    /// While the guard lives, bodies of class `All` are read as if a reader waited for its first byte.
    pub fn hold_back(&self) -> HoldBack {
        self.shared.held_back.fetch_add(1, Ordering::Relaxed);
        HoldBack(Arc::clone(&self.shared))
    }

    /// Ends every request and fails what waits.
    pub fn close(&self) {
        self.driver.abort();
        let left: Vec<_> = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            let ids = state.queue.ids();
            ids.into_iter()
                .filter_map(|id| state.queue.remove(id))
                .collect()
        };
        for waiter in left.into_iter().flat_map(|piece| piece.waiters) {
            (waiter.sink)(Err(DemandError::Closed));
        }
    }
}

/// See [`Scheduler::hold_back`].
pub struct HoldBack(Arc<Shared>);

impl fmt::Debug for HoldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HoldBack")
    }
}

impl Drop for HoldBack {
    fn drop(&mut self) {
        self.0.held_back.fetch_sub(1, Ordering::Relaxed);
        self.0.gate.notify_waiters();
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
