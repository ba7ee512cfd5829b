//! The spans of a layer on their way to the store: who waits for which, what was asked for, what came.
//!
//! ```text
//! read    the spans that a read needs; those that are missing are asked for, and it becomes a waiter of each
//! demand  a span becomes a demand of the scheduler, and its bytes come back
//! fill    compressed bytes ─▶ digest ─▶ inflate ─▶ waiters, from memory ─▶ data, heads ─▶ mark ─▶ waiters
//! window  the next spans that nobody has asked for, for the background
//! ```
//!
//! [`state`] has one span's states. A failed span is absent again: nothing wrong is remembered, the next read tries anew.

use std::{collections::HashMap, io};

use tokio::sync::Notify;

use super::{Context, ReadError, data::Data, named::Named, passing::Passing, trouble::Trouble};
use crate::{
    fetch::{Class, Delivery, readahead::Readahead},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

mod demand;
mod fill;
mod kept;
mod leave;
mod read;
mod spare;
mod state;
#[cfg(test)]
mod state_tests;
mod states;
mod trace;
mod turn;
mod window;

pub use fill::drop_scratch;
pub(super) use spare::Spare;
pub(super) use trace::Waits;
pub use trace::{ReadWait, SpanWait};

use read::Read;
use state::{Demander, Effect, Event, Span};
use states::States;
use trace::Times;

/// Bytes that readahead may ask for beyond a reader: two requests' worth.
const AHEAD: u64 = 8 << 20;

/// The spans of one layer. Parked reads and jobs of the pool hold it; demands hold it weakly.
pub(super) struct Spans {
    context: Arc<Context>,
    data: Arc<Data>,
    named: Arc<Named>,
    trouble: Arc<Trouble>,
    passing: Arc<Passing>,
    states: Mutex<States<Arc<Read>>>,
    /// Bytes that came and wait for the pool, by span. Bounded by the scheduler's permits.
    arrived: Mutex<HashMap<u32, Delivery>>,
    /// How far each span is that is under way.
    times: Times,
    ahead: Mutex<Readahead>,
    fetched: Fetched,
    /// A span changed, a source came, the layer closed: completion looks again.
    changed: Notify,
    leaving: Mutex<leave::LeavingSpans>,
    closed: AtomicBool,
}

/// Compressed bytes that came, by why they were asked for.
#[derive(Debug, Default)]
struct Fetched {
    on_demand: AtomicU64,
    background: AtomicU64,
}

impl Spans {
    pub(super) fn new(
        context: Arc<Context>,
        data: Arc<Data>,
        named: Arc<Named>,
        trouble: Arc<Trouble>,
        passing: Arc<Passing>,
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
            times: Times::default(),
            ahead: Mutex::new(Readahead::new(ahead)),
            fetched: Fetched::default(),
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

    /// Compressed bytes fetched because a reader waited or soon would, and those fetched in the background.
    pub(super) fn bytes_fetched(&self) -> (u64, u64) {
        let Fetched {
            on_demand,
            background,
        } = &self.fetched;
        (
            on_demand.load(Ordering::Relaxed),
            background.load(Ordering::Relaxed),
        )
    }

    /// Spans that were guessed ahead of readers and then read; and those that were not.
    pub(super) fn guesses(&self) -> (u64, u64) {
        let ahead = self.ahead.lock();
        (ahead.paid(), ahead.wasted())
    }

    /// Asks for a span in the background; one that is under way or there is left as it is.
    pub(super) fn want(self: &Arc<Self>, span: u32) {
        self.step(span, Event::Want(Class::All, None));
    }

    /// What was in the store of these spans is gone: their marks say so already.
    pub(super) fn lose(self: &Arc<Self>, spans: &[u32]) {
        for &span in spans {
            self.step(span, Event::Lost);
        }
    }

    /// Takes spans out; they are to be fetched again. Blocks on the disk.
    ///
    /// # Errors
    /// The system's; they are absent in this process all the same.
    pub(super) fn take_out(self: &Arc<Self>, spans: &[u32]) -> io::Result<()> {
        let taken = self.data.files.present.take_out(spans);
        for &span in spans {
            self.step(span, Event::Lost);
            self.data.clear_padding(span);
        }
        self.look_again();
        taken
    }

    /// Waits for a reason to look again at what is missing.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Something is to be looked at again.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// The layer is removed: what waits is answered, nothing more is asked for.
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

    /// Spans that were demanded and are not settled.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        let mut states = self.states.lock();
        let unsettled = states.missing().filter(|(_, span)| !span.is_absent());
        unsettled.count().max(self.times.under_way())
    }

    fn removed(&self) -> ReadError {
        ReadError::Removed {
            subject: self.data.subject(None),
        }
    }

    /// One step of one span; effects that need the scheduler are carried out, the others returned.
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

/// Spans without a byte of the archive (behind its end, say) need nothing.
fn mark_empty_spans(data: &Data) {
    let Some(ztoc) = data.ztoc() else { return };
    for id in ztoc.spans().ids() {
        let empty = ztoc.spans().uncompressed(id).is_empty();
        if empty && !data.files.present.has(id.0) {
            data.mark_written(id.0);
        }
    }
}
