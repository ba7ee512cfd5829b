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
//! * A reader (`Now`) never waits behind `All` or `Next`: its slots and its byte permits are its own, and while its bytes
//!   arrive the bodies of `All` are not read (back-pressure slows their senders); while it waits for its first byte one of
//!   each host is. A request is as urgent as its most urgent piece, from the moment on that it becomes so.
//! * Bytes in memory are bounded: permits are taken when a piece's first bytes are there and go back when the sink has
//!   dropped its [`Delivery`].
//! * On a slow line the background has not more on its way than that brings soon ([`meter`]), so that a reader's bytes come
//!   soon. A fast one is kept busy.
//! * No host takes what the readers of another need: slots and permits are shared ([`share`]), requests have deadlines
//!   ([`flight`]).
//! * One failure is not the others': it is kept with what failed ([`health`]), and a piece asks the next source that is well.
//!   What fails has one clock; reads wait as long as it has budget, then fail at once until a probe succeeds.
//! * The queue's length is what its users keep outstanding; completion and whole layers keep a window.

use std::{collections::HashMap, fmt, ops::Range, time::Duration};

use soci_oci::Digest;
use tokio::{sync::Notify, time::Instant};

use crate::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

mod demand;
mod driver;
mod flight;
mod health;
mod line;
mod meter;
mod queue;
pub mod readahead;
mod running;
mod share;
mod waiter;

pub use demand::{Class, Delivery, Demand, DemandError, Patience, Sink, Source};

use driver::Probe;
use health::{Health, Scope};
use meter::Meter;
use queue::{Key, PieceId, Queue};
use running::{Aloft, Running};
use share::Memory;
use waiter::Waiter;

/// The scheduler's limits. Counts and bytes are for the node; one host may have half of what the others leave.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests of class `Now` at once.
    pub now_requests: usize,
    /// Requests of class `Next` at once.
    pub next_requests: usize,
    /// Requests of class `All` at once.
    pub all_requests: usize,
    /// The same for one image. Reference default of `max_concurrent_downloads_per_image`.
    pub all_requests_per_image: usize,
    /// Most bytes of one request of class `All`, also on the fastest line.
    pub all_request_bytes: u64,
    /// Most bytes of one request of the other classes: what is larger arrives sooner by two connections.
    pub urgent_request_bytes: u64,
    /// Bytes of class `Now` in memory.
    pub now_memory: usize,
    /// Bytes of class `Next` in memory.
    pub next_memory: usize,
    /// Bytes of class `All` in memory.
    pub all_memory: usize,
    /// How long reads wait through one outage (`[blob] read_budget_sec`).
    pub read_budget: Duration,
    /// Longest wait for the first byte of a request: longer than a fetcher's own attempts, whose reasons say more.
    pub first_byte: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            now_requests: 32,
            next_requests: 16,
            all_requests: 12,
            all_requests_per_image: 3,
            all_request_bytes: 8 << 20,
            urgent_request_bytes: 4 << 20,
            now_memory: 32 << 20,
            next_memory: 8 << 20,
            all_memory: (4 + 4 * cores()).clamp(12, 32) << 20,
            read_budget: Duration::from_secs(300),
            first_byte: FIRST_BYTE,
        }
    }
}

/// What one core inflates while the next spans come is enough: more only waits in memory.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// How long after the last bytes of a range a source's own attempts at it may begin.
pub const ATTEMPTS: Duration = Duration::from_secs(12);
/// That, and a last attempt of the usual patience: 3 s for a connection, 3 s for its answer.
const FIRST_BYTE: Duration = Duration::from_secs(20);

struct State {
    queue: Queue<Waiter>,
    health: Health,
    running: Running,
    flights: HashMap<queue::FlightId, Aloft>,
    meter: Meter,
    /// A probe for each scope whose budget is spent.
    probes: HashMap<Scope, Probe>,
    /// When parked pieces are looked at again.
    unpark_at: Option<Instant>,
    closed: bool,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
    /// The driver has something to look at.
    wake: Notify,
    /// A paused body may go on, or a request has become more urgent.
    gate: Notify,
    /// Guards that are out.
    held_back: AtomicUsize,
    memory: [Arc<Memory>; 3],
}

impl Shared {
    fn memory(&self, class: Class) -> &Arc<Memory> {
        let [now, next, all] = &self.memory;
        match class {
            Class::Now => now,
            Class::Next => next,
            Class::All => all,
        }
    }
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
        let memory = |bytes: usize| Memory::new(flight::kib(bytes as u64));
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Queue::default(),
                health: Health::new(options.read_budget),
                running: Running::new(&options),
                flights: HashMap::new(),
                meter: Meter::new(Instant::now()),
                probes: HashMap::new(),
                unpark_at: None,
                closed: false,
            }),
            wake: Notify::new(),
            gate: Notify::new(),
            held_back: AtomicUsize::new(0),
            memory: [options.now_memory, options.next_memory, options.all_memory].map(memory),
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
            waited: Duration::ZERO,
            waits: None,
            sink,
            refused: Vec::new(),
        };
        {
            let mut state = self.shared.state.lock();
            if !state.closed {
                if class == Class::Now {
                    state.meter.reader(Instant::now());
                }
                state.queue.push(key, class, order, &image, waiter);
                drop(state);
                self.shared.wake.notify_one();
                // It may have joined a piece in the air, and made it more urgent.
                self.shared.gate.notify_waiters();
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
            let mut classes = state.flights.keys().map(|id| state.queue.flight_class(*id));
            classes.any(|class| class == Some(Class::Now))
        };
        running || self.shared.held_back.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody waits for bytes now, or did a moment ago: programs that start come again.
    pub fn had_readers(&self) -> bool {
        self.was_urgent(meter::RECENTLY)
    }

    /// Whether somebody waits for bytes now, or began to not longer ago than this.
    pub fn was_urgent(&self, within: Duration) -> bool {
        let came = || {
            self.shared
                .state
                .lock()
                .meter
                .had_reader(within, Instant::now())
        };
        self.is_urgent() || came()
    }

    /// While the guard lives, bodies of class `All` are read as if a reader waited for its first byte.
    pub fn hold_back(&self) -> HoldBack {
        self.shared.held_back.fetch_add(1, Ordering::Relaxed);
        self.shared.state.lock().meter.reader(Instant::now());
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
