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
    task::JoinSet,
    time::Instant,
};

use crate::sync::{Arc, Mutex, Weak};

mod flight;
mod outage;
mod queue;
pub mod readahead;

use outage::{Health, Outages};
use queue::{Fit, Key, PieceId, Queue, Request};

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
            urgent_requests: 32,
            all_request_bytes: 8 << 20,
            urgent_request_bytes: 4 << 20,
            all_memory: 16 << 20,
            urgent_memory: 24 << 20,
            read_budget: Duration::from_secs(300),
        }
    }
}

/// A source that refused is asked again for a patient demand after this long.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);

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
            all_memory: permits(options.all_memory),
            urgent_memory: permits(options.urgent_memory),
            options,
        });
        let driver = runtime
            .spawn(drive(Arc::downgrade(&shared), JoinSet::new()))
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

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the driver found to do.
#[derive(Default)]
struct Round {
    start: Vec<(Request, Source)>,
    probe: Vec<Source>,
    fail: Vec<(Waiter, DemandError)>,
    wake_at: Option<Instant>,
}

/// Owns the requests: starts what fits, waits for a wish, an end or a time, and looks again.
async fn drive(shared: Weak<Shared>, mut flights: JoinSet<()>) {
    loop {
        let Some(strong) = shared.upgrade() else {
            return;
        };
        let round = strong.round(Instant::now());
        for (waiter, error) in round.fail {
            (waiter.sink)(Err(error));
        }
        for (request, source) in round.start {
            flights.spawn(flight::fly(Arc::clone(&strong), request, source));
        }
        for source in round.probe {
            flights.spawn(flight::probe(Arc::clone(&strong), source));
        }
        let tick = Duration::from_secs(60);
        let until = round.wake_at.unwrap_or_else(|| Instant::now() + tick);
        tokio::select! {
            () = strong.wake.notified() => {}
            Some(ended) = flights.join_next(), if !flights.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(error = %error, "a request panicked");
                }
            }
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

fn sooner(first: Option<Instant>, second: Instant) -> Option<Instant> {
    Some(first.map_or(second, |first| first.min(second)))
}

/// What can be done about the first piece of a request.
enum Verdict {
    Ask(Source),
    Wait(Instant),
    /// Nobody waits any more: all waiters were answered.
    Nobody,
}

impl Shared {
    fn round(&self, now: Instant) -> Round {
        let mut round = Round::default();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.outages.forget_unwanted(now);
        if state.unpark_at.is_some_and(|at| at <= now) {
            state.unpark_at = None;
            state.queue.unpark();
        }
        let limit = |class| match class {
            Class::All => self.options.all_request_bytes,
            Class::Now | Class::Next => self.options.urgent_request_bytes,
        };
        loop {
            let running = &state.running;
            let fits = |piece: &queue::Piece<Waiter>| {
                running.fit(&self.options, piece.class, &piece.image)
            };
            let Some(request) = state.queue.take(fits, limit) else {
                break;
            };
            let Some(&(first, _)) = request.pieces.first() else {
                break;
            };
            match state.judge(first, now, &mut round) {
                Verdict::Ask(source) => {
                    state.running.start(request.class, &request.image);
                    state.received.insert(request.flight, None);
                    round.start.push((request, source));
                }
                Verdict::Wait(until) => {
                    state.queue.give_back(request.flight);
                    state.queue.park(first);
                    state.unpark_at = sooner(state.unpark_at, until);
                }
                Verdict::Nobody => {
                    state.queue.remove(first);
                    state.queue.give_back(request.flight);
                }
            }
        }
        round.wake_at = state.unpark_at;
        state.due_probes(now, &mut round);
        round
    }
}

impl State {
    /// Answers the waiters of a piece that have nothing to hope for, and finds a source for the others.
    fn judge(&mut self, id: PieceId, now: Instant, round: &mut Round) -> Verdict {
        let State {
            queue,
            outages,
            probes,
            ..
        } = self;
        let Some(piece) = queue.get_mut(id) else {
            return Verdict::Nobody;
        };
        let (mut ask, mut wait): (Option<Source>, Option<Instant>) = (None, None);
        let mut left = Vec::with_capacity(piece.waiters.len());
        for mut waiter in std::mem::take(&mut piece.waiters) {
            if waiter.patience == Patience::Forever {
                waiter
                    .refused
                    .retain(|(_, _, at)| now.saturating_duration_since(*at) < REFUSAL_LASTS);
            }
            match waiter.hope(outages, probes, now) {
                Hope::Ask(source) => ask = ask.or(Some(source)),
                Hope::Wait(until) => wait = sooner(wait, until),
                Hope::None(error) => {
                    round.fail.push((waiter, error));
                    continue;
                }
            }
            left.push(waiter);
        }
        piece.waiters = left;
        match (ask, wait) {
            (Some(source), _) if outages.take_turn(&source.name, now) => Verdict::Ask(source),
            (Some(_), _) => Verdict::Wait(now + Duration::from_millis(50)),
            (None, Some(until)) => Verdict::Wait(until.max(now + Duration::from_millis(1))),
            (None, None) => Verdict::Nobody,
        }
    }

    fn due_probes(&mut self, now: Instant, round: &mut Round) {
        let State {
            outages, probes, ..
        } = self;
        probes.retain(|name, _| outages.knows(name));
        for (source, at) in probes.values_mut() {
            if *at <= now && outages.take_turn(&source.name, now) {
                round.probe.push(source.clone());
                *at = now + Duration::from_secs(3);
            }
            round.wake_at = sooner(round.wake_at, *at);
        }
    }
}

/// What one waiter may hope for.
enum Hope {
    Ask(Source),
    Wait(Instant),
    None(DemandError),
}

impl Waiter {
    fn hope(
        &self,
        outages: &mut Outages,
        probes: &mut HashMap<Arc<str>, (Source, Instant)>,
        now: Instant,
    ) -> Hope {
        let mut wait: Option<Instant> = None;
        let mut spent = None;
        let avoided = |source: &&Source| self.avoid.as_ref() == Some(&source.name);
        let preferred = self.sources.iter().filter(|source| !avoided(source));
        for source in preferred.chain(self.sources.iter().filter(avoided)) {
            if self.refused.iter().any(|(name, _, _)| *name == source.name) {
                continue;
            }
            match outages.health(&source.name, now) {
                Health::Well => return Hope::Ask(source.clone()),
                Health::Failing(until) if until <= now => return Hope::Ask(source.clone()),
                Health::Failing(until) => wait = sooner(wait, until),
                Health::Spent {
                    lasted,
                    probe_at,
                    last,
                } => {
                    let probe = || (source.clone(), probe_at);
                    let (_, at) = probes.entry(Arc::clone(&source.name)).or_insert_with(probe);
                    let source_name = Arc::clone(&source.name);
                    spent = Some((
                        *at,
                        DemandError::OutOfTime {
                            source_name,
                            lasted,
                            error: last,
                        },
                    ));
                }
            }
        }
        match (wait, spent, self.refused.last()) {
            (Some(until), _, _) => Hope::Wait(until),
            (None, Some((at, _)), _) if self.patience == Patience::Forever => Hope::Wait(at),
            (None, Some((_, error)), _) => Hope::None(error),
            (None, None, Some((_, _, at))) if self.patience == Patience::Forever => {
                Hope::Wait(*at + REFUSAL_LASTS)
            }
            (None, None, Some((name, error, _))) => Hope::None(DemandError::Refused {
                source_name: Arc::clone(name),
                error: error.clone(),
            }),
            (None, None, None) => Hope::None(DemandError::NoSource),
        }
    }
}

#[cfg(test)]
mod tests;
