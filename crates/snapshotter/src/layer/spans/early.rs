//! Decodes the spans that readers wait for while their bytes arrive.
//!
//! ```text
//! feed ─▶ waiting bytes ─▶ a job of the pool: hash, inflate ─▶ private buffer
//! delivery ─▶ fill ─▶ Early::finish: the rest, the digest ─▶ bytes, or nothing
//! ```
//!
//! Nothing leaves the buffer before the digest agrees. Whatever goes wrong here gives nothing, and
//! [`Spans::fill`] then verifies and decodes the delivery, as if the span had not been followed.

use std::{collections::VecDeque, mem, ops::Range, panic::AssertUnwindSafe};

use bytes::Bytes;
use soci_ztoc::{ArrivingSpan, Compression, SpanId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Spans, fill::LARGE};
use crate::{
    cpu::Lane,
    fetch::{Feed, Watch},
    sync::{Arc, Mutex, Weak},
};

/// Memory of the node for spans that arrive, compressed and decoded: about eight of usual size.
const MEMORY: usize = 40 << 20;
/// Fewer compressed bytes arrive within a few packets, so there is little to gain.
const SMALL: u64 = 256 << 10;
/// A job starts when this many bytes wait. They take about a millisecond, much longer than starting
/// a job.
const BATCH: usize = 64 << 10;
/// If less than this part was decoded when the last byte arrived, the line is faster than this
/// core. Decoding the whole span then takes less time, because decoding in pieces is slower by a
/// fifth.
const WORTH: u64 = 4;

/// The memory of all spans of the node that are decoded while they arrive.
#[derive(Debug)]
pub(in crate::layer) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Room {
        // In KiB.
        Room(Arc::new(Semaphore::new(MEMORY >> 10)))
    }
}

impl Room {
    fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let count = u32::try_from(bytes.div_ceil(1024)).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(count).ok()
    }
}

#[cfg(test)]
impl Room {
    pub(in crate::layer) fn is_unused(&self) -> bool {
        self.0.available_permits() == MEMORY >> 10
    }
}

/// Fills a span, from these bytes if there are any.
type Fill = Box<dyn FnOnce(Option<Vec<u8>>) + Send>;

/// A span that is decoded while it arrives.
pub(super) struct Early {
    span: SpanId,
    /// Its length in compressed bytes.
    length: u64,
    state: Mutex<State>,
    _room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// Compressed bytes that arrived, and those of them that are decoded.
    arrived: u64,
    decoded: u64,
    work: Work,
    /// Whether a job is queued or runs.
    has_job: bool,
    /// Runs at the end of the job.
    fill: Option<Fill>,
}

#[derive(Default)]
enum Work {
    #[default]
    New,
    /// Between two jobs.
    Rests(Box<ArrivingSpan>),
    /// A job has the span.
    Runs,
    /// Given up, or taken by the fill.
    Over,
}

/// How a job ends.
enum Ended {
    /// More bytes are to come.
    Rests,
    /// The fill waits for the result.
    Over(Option<Vec<u8>>),
}

impl Early {
    /// Compressed bytes decoded so far.
    pub(super) fn decoded(&self) -> u64 {
        self.state.lock().decoded
    }

    /// Takes the next bytes. Returns true if the caller must queue a job.
    fn push(&self, bytes: Bytes) -> bool {
        let mut state = self.state.lock();
        state.arrived += bytes.len() as u64;
        if matches!(state.work, Work::Over) {
            return false;
        }
        state.waiting_bytes += bytes.len();
        state.waiting.push_back(bytes);
        let starts = !state.has_job && state.waiting_bytes >= BATCH;
        state.has_job |= starts;
        starts
    }

    /// Decodes what waits. Runs on the pool.
    fn run(&self, spans: &Spans) {
        let work = AssertUnwindSafe(|| self.decode(spans));
        let ended = std::panic::catch_unwind(work).unwrap_or(Ended::Over(None));
        if let Ended::Over(bytes) = ended {
            let fill = self.give_up();
            if let Some(fill) = fill {
                fill(bytes);
            }
        }
    }

    fn decode(&self, spans: &Spans) -> Ended {
        let Some(mut span) = self.begin(spans) else {
            return Ended::Over(None);
        };
        loop {
            let bytes = {
                let mut state = self.state.lock();
                let state = &mut *state;
                match (&state.work, state.waiting.pop_front()) {
                    (Work::Runs, Some(bytes)) => {
                        state.waiting_bytes -= bytes.len();
                        bytes
                    }
                    (Work::Runs, None) if state.fill.is_some() => break,
                    (Work::Runs, None) => {
                        state.work = Work::Rests(span);
                        state.has_job = false;
                        return Ended::Rests;
                    }
                    _ => return Ended::Over(None),
                }
            };
            span.push(&bytes);
            self.state.lock().decoded += bytes.len() as u64;
        }
        Ended::Over(span.finish().ok())
    }

    /// Takes the span. The first job starts it, because that may read the zTOC from disk.
    fn begin(&self, spans: &Spans) -> Option<Box<ArrivingSpan>> {
        let mut state = self.state.lock();
        match mem::replace(&mut state.work, Work::Runs) {
            Work::Rests(span) => return Some(span),
            Work::New => {}
            other => {
                state.work = other;
                return None;
            }
        }
        drop(state);
        let ztoc = spans.data.ztoc()?;
        let view = ztoc.view();
        ArrivingSpan::new(self.span, &view.checkpoint(self.span), ztoc.spans()).map(Box::new)
    }

    /// Decodes nothing more. Returns the fill if one waits for the job.
    fn give_up(&self) -> Option<Fill> {
        let mut state = self.state.lock();
        state.work = Work::Over;
        state.waiting.clear();
        state.fill.take()
    }

    /// The whole span arrived: decodes the rest, and passes the bytes to `fill` if they agree with
    /// the zTOC. If a job is at work, it does this when it ends.
    pub(super) fn finish(&self, fill: Fill) {
        let (work, waiting) = {
            let mut state = self.state.lock();
            let is_whole = state.arrived == self.length;
            let worth = is_whole && state.decoded >= self.length / WORTH;
            if worth && matches!(state.work, Work::Runs) {
                state.fill = Some(fill);
                return;
            }
            let work = mem::replace(&mut state.work, Work::Over);
            (worth.then_some(work), mem::take(&mut state.waiting))
        };
        let rest = AssertUnwindSafe(|| match work {
            Some(Work::Rests(mut span)) => {
                waiting.iter().for_each(|bytes| span.push(bytes));
                span.finish().ok()
            }
            _ => None,
        });
        fill(std::panic::catch_unwind(rest).unwrap_or(None));
    }
}

/// The feed of a span. The span is forgotten if it does not arrive whole.
struct Feeding {
    early: Arc<Early>,
    spans: Weak<Spans>,
}

impl Feeding {
    fn push(&self, bytes: Bytes) {
        if !self.early.push(bytes) {
            return;
        }
        match self.spans.upgrade() {
            Some(spans) => {
                let (early, cpu) = (Arc::clone(&self.early), Arc::clone(&spans.context.cpu));
                cpu.spawn(Lane::Compute, move || early.run(&spans));
            }
            None => drop(self.early.give_up()),
        }
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        if self.early.state.lock().arrived == self.early.length {
            return;
        }
        drop(self.early.give_up());
        if let Some(spans) = self.spans.upgrade() {
            let mut all = spans.early.lock();
            let span = self.early.span.0;
            if all
                .get(&span)
                .is_some_and(|early| Arc::ptr_eq(early, &self.early))
            {
                all.remove(&span);
            }
        }
    }
}

impl Spans {
    /// Follows the bytes of a span, if that can be worth it.
    pub(super) fn watch(self: &Arc<Self>, span: u32) -> Option<Watch> {
        let ztoc = self.data.ztoc()?;
        let is_last = span as usize + 1 >= ztoc.spans().len();
        let length = |range: Range<u64>| range.end - range.start;
        let compressed = length(ztoc.spans().compressed(SpanId(span)));
        let decoded = length(ztoc.spans().uncompressed(SpanId(span)));
        // The last span is also decoded behind the archive. Large ones are written in pieces.
        let follows = ztoc.view().compression() == Compression::Gzip
            && !is_last
            && compressed >= SMALL
            && decoded <= LARGE;
        let spans = Arc::downgrade(self);
        let watch = move || spans.upgrade()?.feed(span, compressed, decoded);
        follows.then(|| Box::new(watch) as Watch)
    }

    /// Starts to follow a span, unless another demand for it does, or memory is short.
    fn feed(self: &Arc<Self>, span: u32, compressed: u64, decoded: u64) -> Option<Feed> {
        let mut all = self.early.lock();
        if all.contains_key(&span) {
            return None;
        }
        let early = Arc::new(Early {
            span: SpanId(span),
            length: compressed,
            state: Mutex::default(),
            _room: self.context.early.take(compressed + decoded)?,
        });
        all.insert(span, Arc::clone(&early));
        drop(all);
        let spans = Arc::downgrade(self);
        let feeding = Feeding { early, spans };
        Some(Box::new(move |bytes| feeding.push(bytes)))
    }
}
