//! A layer: ensure a range of its `data`, read it. It knows neither files of an image nor FUSE nor mount points.
//!
//! ```text
//! read(range of data)
//!   places: which bytes of the tar, and the tar headers of the files it touches that nobody has checked yet
//!   spans:  which spans hold them; all present ─▶ bytes at once
//!           else the read becomes a waiter of each missing span, and the span a demand
//!   fill:   compressed bytes ─▶ digest ─▶ inflate ─▶ data, heads ─▶ present ─▶ waiters go on (all on the pool)
//!   finish: headers agree ─▶ bytes
//! ```
//!
//! What must stay true:
//! * Nothing gets into `data` or to a reader whose span's digest did not match the zTOC.
//! * No byte of a file is given out before its tar header agreed with the zTOC's entry; a file that disagrees is an
//!   error for every read, and its layer is never complete.
//! * A read is answered exactly once; it waits for the network as a value, never as a thread.
//! * A failed span is absent again: nothing wrong is remembered, the next read tries anew.

use std::{collections::HashMap, fmt, io, path::PathBuf};

use bytes::Bytes;
use soci_oci::Digest;
use soci_ztoc::SpanId;
use tokio::sync::{Notify, watch};

use crate::{
    cpu::Cpu,
    fetch::{
        Class, Delivery, Demand, DemandError, Patience, Scheduler, Source, readahead::Readahead,
    },
    places::Places,
    store::{
        LayerFiles, LayerKey, LayerNumber, LayerStore, ZtocFile, sources::Sources, space::Limits,
    },
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

mod check;
mod complete;
mod entries;
mod error;
mod expected;
mod fill;
mod headers;
mod layers;
mod named;
mod prove;
mod read;
mod scrub;
mod spans;
mod spare;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;
mod trace;
mod trouble;
mod upkeep;

pub use entries::Entries;
pub use error::{ReadError, Subject};
pub use expected::Expected;
pub use fill::drop_scratch;
pub use layers::{Layers, Lazy, OpenError, Whole};
pub use prove::ProveError;
pub use scrub::{Pace, Repairs, Scrubbed};
pub use stream::StreamError;
pub use trace::{ReadWait, SpanWait};

use headers::Headers;
use named::Named;
use read::Read;
use spans::{Demander, Effect, Event, Span};
use trouble::Trouble;

/// Takes the outcome of one read. Called once, on any thread; it must not block.
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>;

/// A layer's `data` as the node's device sees it.
pub trait DeviceFile: Send + Sync {
    /// The layer's number in the store: at least 2, never used for another layer.
    fn number(&self) -> u64;

    /// Bytes of the file.
    fn size(&self) -> u64;

    /// Brings `len` bytes from `offset` on, all inside the file, and calls `done` once, from any thread, with exactly
    /// these bytes or an error. Does not wait for the network.
    fn read(self: Arc<Self>, offset: u64, len: u32, done: ReadDone);
}

/// How layers behave, for the node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tar headers are not checked (`disable_verification`). Span digests always are.
    pub trust_headers: bool,
    /// Fetches of a span in all before wrong bytes become an error; at least 2 are made: bytes may be
    /// damaged on the way once. (`max_span_verification_retries` + 1)
    pub span_fetches: u32,
    /// How long completion pauses after a failure at first, and at most.
    pub pause: (std::time::Duration, std::time::Duration),
    /// How often written spans are made durable.
    pub sync_every: std::time::Duration,
    /// How much may be fetched that nobody has asked for.
    pub limits: Limits,
    /// The page cache of `data` is dropped again and again: mounts read through it and keep a copy of their own.
    pub drops_copies: bool,
}

impl Default for Options {
    fn default() -> Options {
        let seconds = std::time::Duration::from_secs;
        Options {
            trust_headers: false,
            span_fetches: 2,
            pause: (seconds(1), seconds(60)),
            sync_every: seconds(10),
            limits: Limits::default(),
            drops_copies: false,
        }
    }
}

/// What layers share.
#[derive(Debug)]
struct Context {
    cpu: Arc<Cpu>,
    fetch: Arc<Scheduler>,
    store: Arc<LayerStore>,
    options: Options,
    /// Turns of passes over whole layers.
    passes: tokio::sync::Semaphore,
    /// Whose turn it is to be held against its tar.
    proving: tokio::sync::Semaphore,
    /// Spans that the disk did not take.
    spare: spare::Spare,
    /// Reads that waited.
    waits: trace::Waits,
    /// Bytes on disk of all layers, where that is limited; looked at again now and then.
    used: AtomicU64,
}

/// How far a layer is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Spans in the store.
    pub spans_present: usize,
    /// Spans of the layer.
    pub spans_total: usize,
    /// Compressed bytes fetched because a reader waited or soon would.
    pub bytes_fetched_on_demand: u64,
    /// Compressed bytes fetched by completion, or by pulling the layer whole.
    pub bytes_fetched_background: u64,
    /// Compressed bytes of the layer.
    pub bytes_total: u64,
    /// Spans that were guessed ahead of readers and then read; and those that were not.
    pub guesses: (u64, u64),
    /// Every span is durable and every header agreed.
    pub complete: bool,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

#[derive(Debug, Default)]
struct Counters {
    on_demand: AtomicU64,
    background: AtomicU64,
}

/// One layer of the store, open. Shared by all images and mounts that have it.
pub struct Layer {
    context: Arc<Context>,
    files: LayerFiles,
    headers: Headers,
    spans: Mutex<Vec<Span<Arc<Read>>>>,
    /// Bytes that came and wait for the pool, by span. Bounded by the scheduler's permits.
    arrived: Mutex<HashMap<u32, Delivery>>,
    /// How far each span is that is under way.
    times: trace::Times,
    ahead: Mutex<Readahead>,
    image: Arc<str>,
    named: Named,
    trouble: Trouble,
    counters: Counters,
    complete: watch::Sender<bool>,
    /// A span changed, a source came, the layer closed: completion looks again.
    changed: Notify,
    completing: AtomicBool,
    /// How far its tar was hashed; taken out by who hashes.
    passing: Mutex<Option<Box<prove::Passing>>>,
    /// What the stream has behind the archive, if it is known.
    behind: Mutex<Option<Vec<u8>>>,
    /// When its bytes need not be kept warm any more; none if it was complete when it was opened.
    settles: Mutex<Option<tokio::time::Instant>>,
    closed: AtomicBool,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer")
            .field("number", &self.files.number)
            .field("key", &self.files.key)
            .finish_non_exhaustive()
    }
}

/// Bytes that readahead may ask for beyond a reader: two requests' worth.
const AHEAD: u64 = 8 << 20;

impl Layer {
    fn new(context: Arc<Context>, files: LayerFiles) -> Arc<Layer> {
        let total = files.present.len();
        let state = |id| {
            if files.present.has(id) {
                Span::Present
            } else {
                Span::Absent
            }
        };
        let spans: Vec<_> = (0..u32::try_from(total).unwrap_or(u32::MAX))
            .map(state)
            .collect();
        let known = context.options.trust_headers || files.present.is_complete();
        let headers = Headers::new(files.places.entries(), known);
        let average = files.sources.layer.size / (total as u64).max(1);
        let ahead = u32::try_from(AHEAD / average.max(1))
            .unwrap_or(16)
            .clamp(1, 16);
        let layer = Layer {
            complete: watch::Sender::new(files.present.is_complete()),
            headers,
            spans: Mutex::new(spans),
            arrived: Mutex::default(),
            times: trace::Times::default(),
            ahead: Mutex::new(Readahead::new(ahead)),
            image: Arc::from(files.sources.image()),
            named: Named::new(files.sources.clone()),
            trouble: Trouble::new(context.options.pause),
            counters: Counters::default(),
            changed: Notify::new(),
            completing: AtomicBool::new(false),
            passing: Mutex::new((!files.present.is_complete()).then(prove::Passing::new)),
            behind: Mutex::default(),
            settles: Mutex::default(),
            closed: AtomicBool::new(false),
            context,
            files,
        };
        layer.mark_empty_spans();
        Arc::new(layer)
    }

    /// Spans without a byte of the archive (behind its end, say) need nothing.
    fn mark_empty_spans(&self) {
        let Some(ztoc) = &self.files.ztoc else { return };
        let mut spans = self.spans.lock();
        for id in ztoc.spans().ids() {
            let empty = ztoc.spans().uncompressed(id).is_empty();
            let Some(span) = spans.get_mut(id.0 as usize) else {
                continue;
            };
            if empty && span.is_absent() {
                *span = Span::Present;
                if let Err(error) = self.files.present.written(id.0) {
                    tracing::warn!(layer = %self.files.key.layer, error = %error, "a mark is not written");
                }
            }
        }
    }

    /// Its stable number in the store.
    pub fn number(&self) -> LayerNumber {
        self.files.number
    }

    /// What it is known by.
    pub fn key(&self) -> LayerKey {
        self.files.key
    }

    /// Digest of the compressed layer.
    pub fn digest(&self) -> &Digest {
        &self.files.key.layer
    }

    /// Size of `data` in bytes, a multiple of 4 KiB.
    pub fn data_size(&self) -> u64 {
        self.files.places.data_size()
    }

    /// The file that a complete layer's mounts use directly.
    pub fn data_path(&self) -> PathBuf {
        self.files.data_path()
    }

    /// Where every file's content is in `data`: `places().data_of(entry ordinal)`.
    pub fn places(&self) -> &Places {
        &self.files.places
    }

    /// The EROFS image for a patch (letters and digits; empty: unpatched), if it is there and whole. Blocks on the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn meta(&self, patch: &str) -> io::Result<Option<PathBuf>> {
        self.files.meta(patch)
    }

    /// Writes the EROFS image for a patch; one that a power loss tears is made again. Blocks on the disk.
    ///
    /// # Errors
    /// The system's and the writer's.
    pub fn write_meta(
        &self,
        patch: &str,
        content: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        self.files.write_meta(patch, content)
    }

    /// Every span is in `data` for good and every header agreed: mounts may use `data` directly.
    pub fn is_complete(&self) -> bool {
        *self.complete.borrow()
    }

    /// Becomes true when the layer is complete. The receiver outlives nothing: it may be dropped at any time.
    pub fn completion(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let guesses = {
            let ahead = self.ahead.lock();
            (ahead.paid(), ahead.wasted())
        };
        Progress {
            spans_present: self.files.present.count(),
            spans_total: self.files.present.len(),
            bytes_fetched_on_demand: self.counters.on_demand.load(Ordering::Relaxed),
            bytes_fetched_background: self.counters.background.load(Ordering::Relaxed),
            bytes_total: self.files.sources.layer.size,
            guesses,
            complete: self.is_complete(),
            last_error: self.trouble.last_error(),
        }
    }

    /// What the store knows about it.
    pub fn record(&self) -> Sources {
        self.named.record()
    }

    /// Whether it has a source to fetch from.
    pub fn has_source(&self) -> bool {
        !self.named.sources().is_empty()
    }

    /// One more place to fetch from, before the others; what was known of the same repository is replaced. What waits for a
    /// source goes on.
    pub fn add_source(&self, source: Source) {
        self.named.add_source(source);
        self.trouble.start_over();
        self.changed.notify_one();
    }

    fn subject(&self, span: Option<u32>) -> Arc<Subject> {
        Arc::new(Subject {
            image: self.image(),
            layer: self.files.key.layer,
            span,
        })
    }

    fn image(&self) -> Arc<str> {
        Arc::clone(&self.image)
    }

    fn ztoc(&self) -> Option<&ZtocFile> {
        self.files.ztoc.as_ref()
    }

    /// Hands a demand for one span to the scheduler.
    fn demand(self: &Arc<Self>, span: u32, class: Class, avoid: Option<Arc<str>>) {
        let Some(ztoc) = self.ztoc() else { return };
        self.times.demanded(span);
        let sources = self.named.sources();
        let (demander, patience, order) = match class {
            Class::All => (Demander::Patient, Patience::Forever, self.files.number.0),
            Class::Now | Class::Next => (Demander::Urgent, Patience::Budget, 0),
        };
        let layer: Weak<Layer> = Arc::downgrade(self);
        let asked = Arc::clone(&sources);
        self.context.fetch.demand(Demand {
            blob: self.files.key.layer,
            range: ztoc.spans().compressed(SpanId(span)),
            class,
            image: self.image(),
            order,
            sources,
            avoid,
            patience,
            sink: Box::new(move |outcome| {
                let Some(layer) = layer.upgrade() else { return };
                match outcome {
                    Ok(delivery) => layer.delivered(span, delivery),
                    // The demand is older than the sources: who has joined it since deserves the new ones.
                    Err(_) if layer.has_other_sources(&asked) => layer.demand(span, class, None),
                    Err(error) => layer.not_delivered(span, demander, error),
                }
            }),
        });
    }

    fn has_other_sources(&self, asked: &Arc<[Source]>) -> bool {
        !self.is_closed() && !Arc::ptr_eq(&self.named.sources(), asked)
    }

    /// One step of one span; effects that need the scheduler are carried out, the others returned.
    fn step(self: &Arc<Self>, span: u32, event: Event<Arc<Read>>) -> Effect<Arc<Read>> {
        let effect = {
            let mut spans = self.spans.lock();
            let Some(state) = spans.get_mut(span as usize) else {
                return Effect::None;
            };
            state.step(event)
        };
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

    fn promote(&self, span: u32) {
        if let Some(ztoc) = self.ztoc() {
            let range = ztoc.spans().compressed(SpanId(span));
            self.context
                .fetch
                .promote(&self.files.key.layer, range, Class::Now);
        }
    }

    fn not_delivered(self: &Arc<Self>, span: u32, demander: Demander, error: DemandError) {
        let error = ReadError::Fetch {
            subject: self.subject(Some(span)),
            source: Arc::new(error),
        };
        if demander == Demander::Patient {
            self.trouble.pause(&error);
        } else {
            self.trouble.note(&error);
        }
        if let Effect::Fail(waiters) = self.step(span, Event::Failed(demander)) {
            read::fail_all(&self.context.cpu, waiters, error);
            self.times.forget(span);
        }
        self.changed.notify_one();
    }

    /// The layer is removed: what waits is answered, nothing more is asked for.
    fn close(self: &Arc<Self>) {
        self.closed.store(true, Ordering::Release);
        self.context.spare.forget(self.files.number);
        let count = self.files.present.len();
        for span in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            for demander in [Demander::Patient, Demander::Urgent] {
                if let Effect::Fail(waiters) = self.step(span, Event::Failed(demander)) {
                    let error = ReadError::Removed {
                        subject: self.subject(None),
                    };
                    read::fail_all(&self.context.cpu, waiters, error);
                }
            }
        }
        self.changed.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl DeviceFile for Layer {
    fn number(&self) -> u64 {
        self.files.number.0
    }

    fn size(&self) -> u64 {
        self.data_size()
    }

    fn read(self: Arc<Self>, offset: u64, len: u32, done: ReadDone) {
        let end = offset.saturating_add(u64::from(len));
        Layer::read(&self, offset..end, done);
    }
}
