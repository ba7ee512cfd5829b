//! The fetch scheduler. It turns demands for byte ranges of blobs into a few large requests, and
//! delivers each range whole. It knows nothing about spans or files.
//!
//! ```text
//! demand ─▶ queue (merges equal demands) ─▶ driver: slots, a healthy source ─▶ flight: one range request
//!             ▲ promoted when a reader needs it                                     │ permits, gate, chunks
//!             └──────────────── what a failed flight did not deliver ◀──────────────┴─▶ sink, piece by piece
//! ```
//!
//! * Each class has its own slots and byte permits, so no class waits for a less urgent one. While
//!   a reader or a pull waits, at most one body of class `All` per host is read (`flight`). A request
//!   is always as urgent as its most urgent piece.
//! * Memory is bounded. A piece takes permits with its first bytes; dropping its [`Delivery`]
//!   returns them.
//! * On a slow link, the background has only as many bytes outstanding as arrive soon (`meter`).
//! * A demand can follow its bytes while they arrive ([`Watch`]), if a reader waits for them.
//! * A host cannot use up the capacity of others (`share`), and a failure affects only what
//!   failed (`health`).
//! * Producers bound the queue by what they keep outstanding.

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

pub use demand::{Class, Delivery, Demand, DemandError, Feed, Patience, Sink, Source, Watch};

use driver::Probe;
use health::{Health, Scope};
use meter::Meter;
pub use queue::LOOSE;
use queue::{Key, PieceId, Queue};
use running::{Aloft, Running};
use share::Memory;
use waiter::Waiter;

/// The limits of the scheduler. Counts and bytes apply to the node. One host may use half of what
/// the other hosts leave.
#[derive(Clone, Debug)]
pub struct Options {
    /// Concurrent requests of class `Now`.
    pub now_requests: usize,
    /// Concurrent requests of class `Next`.
    pub next_requests: usize,
    /// Concurrent requests of class `Pull`. One host may use half of what the others leave.
    pub pull_requests: usize,
    /// Concurrent requests of class `Pull`, no matter how many hosts share them
    /// (`max_concurrent_downloads`).
    pub pull_requests_most: usize,
    /// Concurrent requests of class `Pull` for one image (`max_concurrent_downloads_per_image`).
    pub pull_requests_per_image: usize,
    /// Maximum bytes of one request of class `Pull` (`concurrent_download_chunk_size`).
    pub pull_request_bytes: u64,
    /// Concurrent requests of class `All`.
    pub all_requests: usize,
    /// Concurrent requests of class `All` for one image. The reference implementation has the same
    /// default for `max_concurrent_downloads_per_image`.
    pub all_requests_per_image: usize,
    /// Maximum bytes of one request of class `All`, even on the fastest link.
    pub all_request_bytes: u64,
    /// Maximum bytes of one request of class `Now` or `Next`. Larger ranges arrive sooner on two
    /// connections.
    pub urgent_request_bytes: u64,
    /// Bytes of class `Now` in memory.
    pub now_memory: usize,
    /// Bytes of class `Next` in memory.
    pub next_memory: usize,
    /// Bytes of class `Pull` in memory.
    pub pull_memory: usize,
    /// Bytes of class `All` in memory.
    pub all_memory: usize,
    /// How long reads wait during one outage (`[blob] read_budget_sec`).
    pub read_budget: Duration,
    /// Longest wait for the first byte of a request. It exceeds the fetcher's own retries, because
    /// their error messages are more specific.
    pub first_byte: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            now_requests: 32,
            next_requests: 16,
            pull_requests: 12,
            pull_requests_most: usize::MAX,
            pull_requests_per_image: usize::MAX,
            pull_request_bytes: 4 << 20,
            all_requests: 12,
            all_requests_per_image: 3,
            all_request_bytes: 8 << 20,
            urgent_request_bytes: 4 << 20,
            now_memory: 32 << 20,
            next_memory: 8 << 20,
            pull_memory: 12 << 20,
            all_memory: (4 + 4 * cores()).clamp(12, 32) << 20,
            read_budget: Duration::from_secs(300),
            first_byte: FIRST_BYTE,
        }
    }
}

/// The number of cores. `all_memory` is what they can decompress while the next spans arrive. More
/// would only sit in memory.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// How long after the last bytes of a range a source may start another attempt of its own.
pub const ATTEMPTS: Duration = Duration::from_secs(12);
/// [`ATTEMPTS`] plus one final attempt: 3 s to connect and 3 s for the response, rounded up.
const FIRST_BYTE: Duration = Duration::from_secs(20);

struct State {
    queue: Queue<Waiter>,
    health: Health,
    running: Running,
    flights: HashMap<queue::FlightId, Aloft>,
    meter: Meter,
    /// One probe per scope whose budget is spent.
    probes: HashMap<Scope, Probe>,
    /// When parked pieces are checked again.
    unpark_at: Option<Instant>,
    closed: bool,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
    /// Wakes the driver.
    wake: Notify,
    /// A paused body may resume, or a request has become more urgent.
    gate: Notify,
    /// Number of live [`HoldBack`] guards.
    held_back: AtomicUsize,
    memory: [Arc<Memory>; 4],
}

impl Shared {
    fn memory(&self, class: Class) -> &Arc<Memory> {
        let [now, next, pull, all] = &self.memory;
        match class {
            Class::Now => now,
            Class::Next => next,
            Class::Pull => pull,
            Class::All => all,
        }
    }
}

/// The scheduler. Dropping it ends all requests. Pending demands fail with [`DemandError::Closed`].
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
    /// Starts the driver on `runtime`. A single task owns all requests.
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
            memory: [
                options.now_memory,
                options.next_memory,
                options.pull_memory,
                options.all_memory,
            ]
            .map(memory),
            options,
        });
        let driver = runtime
            .spawn(driver::drive(Arc::downgrade(&shared)))
            .abort_handle();
        Arc::new(Scheduler { shared, driver })
    }

    /// Queues a demand. Never blocks. The sink is called later, or immediately if the scheduler is
    /// shut down.
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
            watch,
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
            watch,
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
                // The demand may have joined a piece in flight and made it more urgent.
                self.shared.gate.notify_waiters();
                return;
            }
        }
        (waiter.sink)(Err(DemandError::Closed));
    }

    /// Raises the class of a pending demand for this range. Does nothing if there is no such
    /// demand.
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

    /// Whether a reader or the start of a container waits for bytes.
    pub fn is_urgent(&self) -> bool {
        let running = {
            let state = self.shared.state.lock();
            let mut classes = state.flights.keys().map(|id| state.queue.flight_class(*id));
            classes.any(|class| class == Some(Class::Now))
        };
        running || self.shared.held_back.load(Ordering::Relaxed) > 0
    }

    /// Whether a reader or the start of a container waits for bytes, or did recently. A starting
    /// program usually reads again soon.
    pub fn had_readers(&self) -> bool {
        self.was_urgent(meter::RECENTLY)
    }

    /// Whether a reader or the start of a container waits for bytes, or started to wait within this
    /// time.
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

    /// While the guard lives, bodies of class `All` are read as if a reader were waiting for its
    /// first byte.
    pub fn hold_back(&self) -> HoldBack {
        self.shared.held_back.fetch_add(1, Ordering::Relaxed);
        self.shared.state.lock().meter.reader(Instant::now());
        HoldBack(Arc::clone(&self.shared))
    }

    /// Bytes arrived from a registry without this scheduler. They show how fast the link is.
    pub fn came(&self, bytes: u64) {
        self.shared.state.lock().meter.came(bytes, Instant::now());
    }

    /// Ends every request and fails every pending demand.
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
