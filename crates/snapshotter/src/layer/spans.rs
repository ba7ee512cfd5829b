//! The spans of a layer on their way to the store: which reads wait for them, what was requested,
//! and what arrived.
//!
//! ```text
//! read finds the spans that a read needs, requests missing ones, and makes the read a waiter of
//! each
//! demand  turns a span into a demand of the scheduler and receives its bytes
//! fill compressed bytes ─▶ digest ─▶ decompress ─▶ waiters, from memory ─▶ data, heads ─▶ mark ─▶
//! waiters
//! early hashes and decompresses the spans of readers while they arrive, ahead of fill
//! window  selects the next spans for the background
//! ```
//!
//! [`state`] defines the states of one span. A failed span is absent again, so the next read
//! retries it.

use std::{collections::HashMap, io};

use tokio::sync::Notify;

use super::{
    Context, ReadError, data::Data, named::Named, passing::Passing, starts::Starts, tally::Tally,
    trouble::Trouble,
};
use crate::{
    fetch::{Class, readahead::Readahead},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

mod decoded;
mod demand;
mod early;
mod fill;
mod first;
mod kept;
mod leave;
mod read;
mod replay;
mod spare;
mod state;
#[cfg(test)]
mod state_tests;
mod states;
mod trace;
mod turn;
mod window;

pub(super) use early::Room;
pub use fill::drop_scratch;
pub use replay::Replayed;
pub(super) use replay::in_order;
pub(super) use spare::Spare;
pub use trace::{ReadWait, SpanWait};
pub(super) use trace::{Waits, now_ms};

use early::Early;
use fill::Arrived;
use first::First;
use read::Read;
use replay::Replay;
use state::{Demander, Effect, Event, Span};
use states::States;
use trace::Times;

/// Maximum bytes that readahead requests beyond a reader: as much as two requests.
const AHEAD: u64 = 8 << 20;

/// The spans of one layer. Parked reads and pool jobs hold a strong reference, demands a weak one.
pub(super) struct Spans {
    context: Arc<Context>,
    data: Arc<Data>,
    named: Arc<Named>,
    trouble: Arc<Trouble>,
    passing: Arc<Passing>,
    states: Mutex<States<Arc<Read>>>,
    /// Bytes that arrived and wait for the pool, by span. Bounded by the scheduler's permits.
    arrived: Mutex<HashMap<u32, Arrived>>,
    /// Spans that are decoded while they arrive. Bounded by [`Room`].
    early: Mutex<HashMap<u32, Arc<Early>>>,
    /// Timestamps of spans in progress.
    times: Times,
    ahead: Mutex<Readahead>,
    /// The last span that a reader waited for.
    last_read: AtomicU32,
    first: Mutex<First>,
    replay: Mutex<Replay>,
    starts: Arc<Starts>,
    tally: Arc<Tally>,
    /// Wakes completion: a span changed, a source was added, or the layer was closed.
    changed: Notify,
    leaving: Mutex<leave::LeavingSpans>,
    closed: AtomicBool,
}

impl Spans {
    pub(super) fn new(
        context: Arc<Context>,
        data: Arc<Data>,
        named: Arc<Named>,
        trouble: Arc<Trouble>,
        passing: Arc<Passing>,
        starts: Arc<Starts>,
    ) -> Spans {
        mark_empty_spans(&data);
        let state = |span| {
            if data.files.present.has(span) {
                Span::Present
            } else {
                Span::Absent
            }
        };
        let states = States::new((0..data.span_count()).map(state));
        let average = data.files.sources.layer.size / u64::from(data.span_count()).max(1);
        let ahead = u32::try_from(AHEAD / average.max(1))
            .unwrap_or(16)
            .clamp(1, 16);
        Spans {
            states: Mutex::new(states),
            arrived: Mutex::default(),
            early: Mutex::default(),
            times: Times::default(),
            ahead: Mutex::new(Readahead::new(ahead)),
            last_read: AtomicU32::new(0),
            first: Mutex::default(),
            replay: Mutex::default(),
            starts,
            tally: context.tallies.of(data.files.number),
            changed: Notify::new(),
            leaving: Mutex::default(),
            closed: AtomicBool::new(false),
            context,
            data,
            named,
            trouble,
            passing,
        }
    }

    /// What was downloaded, and how long readers waited.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Spans that readahead requested and that were then read, and those that were not.
    pub(super) fn guesses(&self) -> (u64, u64) {
        let ahead = self.ahead.lock();
        (ahead.paid(), ahead.wasted())
    }

    /// Requests a span in the background, unless it is present or in progress.
    pub(super) fn want(self: &Arc<Self>, span: u32) {
        self.step(span, Event::Want(Class::All, None));
    }

    /// The stored bytes of these spans are lost. The caller has already cleared their marks.
    pub(super) fn lose(self: &Arc<Self>, spans: &[u32]) {
        for &span in spans {
            self.step(span, Event::Lost);
        }
    }

    /// Removes spans, so that they are downloaded again. Blocks on the disk.
    ///
    /// # Errors
    /// The system's. In this process the spans are absent in any case.
    pub(super) fn take_out(self: &Arc<Self>, spans: &[u32]) -> io::Result<()> {
        let taken = self.data.files.present.take_out(spans);
        for &span in spans {
            self.step(span, Event::Lost);
            self.data.clear_padding(span);
        }
        self.look_again();
        taken
    }

    /// Waits for a reason to check for missing spans again.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes completion check again.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// The layer is being removed: fails waiting reads and requests nothing more.
    pub(super) fn close(self: &Arc<Self>) {
        self.closed.store(true, Ordering::Release);
        self.context.spare.forget(self.data.files.number);
        for span in 0..self.data.span_count() {
            for demander in [Demander::Patient, Demander::Urgent] {
                if let Effect::Fail(waiters) = self.step(span, Event::Failed(demander)) {
                    self.fail_all(waiters, self.removed());
                }
            }
        }
        self.look_again();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The number of spans in progress.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        let mut states = self.states.lock();
        let unsettled = states.missing().filter(|(_, span)| !span.is_absent());
        unsettled.count().max(self.times.under_way())
    }

    /// Compressed bytes of a span that is arriving that are decoded already.
    #[cfg(test)]
    pub(super) fn decoded_early(&self, span: u32) -> u64 {
        let all = self.early.lock();
        all.get(&span).map_or(0, |early| early.decoded())
    }

    fn removed(&self) -> ReadError {
        ReadError::Removed {
            subject: self.data.subject(None),
        }
    }

    /// Applies an event to a span. Carries out effects that concern the scheduler and returns the
    /// others.
    fn step(self: &Arc<Self>, span: u32, event: Event<Arc<Read>>) -> Effect<Arc<Read>> {
        let effect = self.states.lock().step(span, event);
        self.carry_out(span, effect)
    }

    fn carry_out(self: &Arc<Self>, span: u32, effect: Effect<Arc<Read>>) -> Effect<Arc<Read>> {
        match effect {
            Effect::Demand(class) => self.demand(span, class, None),
            Effect::Promote => self.promote(span),
            Effect::Hurry => self.hurry(span),
            other => return other,
        }
        Effect::None
    }
}

/// Marks spans that contain no byte of the archive (such as those after its end) as present.
fn mark_empty_spans(data: &Data) {
    let Some(ztoc) = data.ztoc() else { return };
    for id in ztoc.spans().ids() {
        let empty = ztoc.spans().uncompressed(id).is_empty();
        if empty && !data.files.present.has(id.0) {
            data.mark_written(id.0);
        }
    }
}
