//! Everything else of a layer, in the background, and what makes it last.
//!
//! Completion keeps a window of spans asked for with class `All`, in the order of the tar, and tops it up when half of it
//! has come, so that neighbours travel together. Any failure makes it pause; a full disk makes it wait for room. When every
//! span is there and every header agreed, the bytes are synced, the marks made durable, and the layer is complete.

use std::{io, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{Context, data::Data, passing::Passing, spans::Spans, trouble::Trouble};
use crate::{
    cpu::Lane,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

mod prove;

pub use prove::ProveError;

/// Compressed bytes asked for at once: several requests for each connection. Not memory: the scheduler bounds that.
const WINDOW: u64 = 64 << 20;
/// Less room than this is none: a window of spans is under way.
const MARGIN: u64 = 8 << 20;
/// How often a full disk is looked at.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(2);
/// A safety net: completion looks again even if nobody told it to.
const LOOK: Duration = Duration::from_secs(30);
/// How long after its completion a layer's bytes are kept in the page cache for who has not read them yet.
const SETTLE: Duration = Duration::from_secs(20);

/// Whether anything is left to do for one layer, and who does it.
pub(super) struct Completion {
    context: Arc<Context>,
    data: Arc<Data>,
    trouble: Arc<Trouble>,
    passing: Arc<Passing>,
    spans: Arc<Spans>,
    complete: watch::Sender<bool>,
    runs: AtomicBool,
    /// Nothing uses the layer, and room is wanted: it is not fetched behind.
    rests: AtomicBool,
    /// When its bytes need not be kept warm any more; none if it was complete when it was opened.
    settles: Mutex<Option<Instant>>,
}

impl Completion {
    pub(super) fn new(
        context: Arc<Context>,
        data: Arc<Data>,
        trouble: Arc<Trouble>,
        passing: Arc<Passing>,
        spans: Arc<Spans>,
    ) -> Completion {
        Completion {
            complete: watch::Sender::new(data.files.present.is_complete()),
            runs: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            settles: Mutex::default(),
            context,
            data,
            trouble,
            passing,
            spans,
        }
    }

    /// Every span is in `data` for good and every header agreed.
    pub(super) fn is_complete(&self) -> bool {
        *self.complete.borrow()
    }

    /// Becomes true when the layer is complete.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// Whether it has been complete for so long that its start is over.
    pub(super) fn has_settled(&self) -> bool {
        self.is_complete() && self.settles.lock().is_none_or(|at| at <= Instant::now())
    }

    /// Waits until the layer is complete, and fetches whatever is missing in the background if it `fetches`. Runs until then,
    /// or until the layer is removed; a second call while it runs does nothing. To be spawned by who owns the layer's tasks.
    pub(super) async fn run(self: Arc<Self>, fetches: bool) {
        if self.runs.swap(true, Ordering::AcqRel) {
            return;
        }
        while !self.is_complete() && !self.spans.is_closed() {
            let fetches = fetches && !self.rests.load(Ordering::Acquire);
            let until = if fetches || self.data.misses_no_content() {
                self.top_up()
            } else {
                Instant::now() + LOOK
            };
            if self.data.has_all() && self.try_to_finish().await {
                break;
            }
            let wait = tokio::time::timeout_at(until, self.spans.changed());
            // Either way it is time to look again.
            drop(wait.await);
        }
        self.runs.store(false, Ordering::Release);
    }

    /// Fetches nothing behind until the layer is used again.
    pub(super) fn rest(&self) {
        self.rests.store(true, Ordering::Release);
    }

    /// The layer is used.
    pub(super) fn wake(&self) {
        if self.rests.swap(false, Ordering::AcqRel) {
            self.spans.look_again();
        }
    }

    /// Asks for what is missing, as far as the window goes. Returns when to look again at the latest.
    fn top_up(&self) -> Instant {
        // One statvfs: no I/O.
        let free = || self.context.store.disk().ok().map(|disk| disk.free);
        if let Some(until) = self.trouble.held_until(free, LOOK_FOR_ROOM) {
            return until;
        }
        let now = Instant::now();
        let room = self.room();
        if room == 0 {
            let until = now + LOOK_FOR_ROOM;
            self.trouble.hold_until(until);
            return until;
        }
        self.spans.store_kept();
        for span in self.spans.next_absent(WINDOW, room) {
            self.spans.want(span);
        }
        now + LOOK
    }

    /// Bytes that may be brought without a reader; says once when there is no room, and when there is again.
    fn room(&self) -> u64 {
        let Context {
            store,
            options,
            used,
            ..
        } = &*self.context;
        let Ok(disk) = store.disk() else {
            return u64::MAX;
        };
        let room = options.limits.room(disk, used.load(Ordering::Relaxed));
        // What others have under way comes too.
        let room = if room < MARGIN { 0 } else { room / 4 };
        if self.trouble.note_low(room == 0) {
            let layer = self.data.digest().to_string();
            let (free, kept) = (disk.free, options.limits.floor(disk));
            if room == 0 {
                tracing::warn!(
                    layer,
                    free,
                    kept,
                    "the disk is nearly full: only what is read is fetched until there is room; see [cache] min_free_bytes and max_bytes"
                );
            } else {
                tracing::info!(layer, free, "there is room again: the rest is fetched");
            }
        }
        room
    }

    /// All spans are there: checks what headers are left, syncs, marks. True if nothing is left to do here, for better
    /// (complete) or for worse (a header disagrees, which does not change any more).
    async fn try_to_finish(self: &Arc<Self>) -> bool {
        let (cpu, data) = (&self.context.cpu, Arc::clone(&self.data));
        let checked = cpu.run(Lane::ComputeBehind, move || data.check_all_headers());
        if !matches!(checked.await, Ok(true)) {
            if self.data.any_header_disagrees() {
                self.prove_false().await;
                return true;
            }
            // A header could not be read.
            self.pause(io::ErrorKind::Other.into());
            return false;
        }
        self.context.wait_for_pause().await;
        self.context.settle().await;
        let of = Arc::clone(self);
        let synced = cpu.run(Lane::FilesBehind, move || of.sync_and_finish());
        match synced.await {
            Ok(Ok(complete)) => complete,
            Ok(Err(error)) => {
                self.pause(error);
                false
            }
            Err(lost) => {
                tracing::error!(layer = %self.data.digest(), error = %lost, "completion");
                true
            }
        }
    }

    fn pause(&self, error: io::Error) {
        self.trouble.pause(&self.data.store_error(error));
    }

    /// True if it is complete now.
    fn sync_and_finish(&self) -> io::Result<bool> {
        self.sync()?;
        let present = &self.data.files.present;
        if !self.data.has_all() || !present.volatile().is_empty() {
            return Ok(false);
        }
        present.set_complete()?;
        if let Some(ztoc) = self.data.ztoc() {
            ztoc.release();
        }
        *self.settles.lock() = Some(Instant::now() + SETTLE);
        self.complete.send_replace(true);
        if !present.is_complete() {
            // A scrub came between.
            self.complete.send_replace(false);
            return Ok(false);
        }
        let (layer, image) = (self.data.digest(), self.data.image());
        tracing::info!(layer = %layer, image = &*image, "layer is complete");
        Ok(true)
    }

    /// Makes what was written durable. Blocks on the disk. After a failure what was not durable is absent again.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn sync(&self) -> io::Result<()> {
        let present = &self.data.files.present;
        let written = present.volatile();
        if written.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.data.complete_sums(&written) {
            // Without their sums spans are not durable, and there all the same.
            tracing::warn!(layer = %self.data.digest(), error = %error, "the sums of written spans are not noted; tried again");
            return Err(error);
        }
        match self.data.sync_bytes() {
            Ok(()) => {
                self.trouble.synced();
                present.durable(&written)
            }
            Err(error) => {
                self.spans.lose(&present.forget_volatile());
                self.sync_failed(&error);
                Err(error)
            }
        }
    }

    fn sync_failed(&self, error: &io::Error) {
        let times = self.trouble.sync_failed();
        // Completion waits by what was true before.
        self.spans.look_again();
        let layer = self.data.digest().to_string();
        if times == 1 {
            tracing::error!(
                layer,
                error = %error,
                "written spans are lost and fetched again later; check the disk of the state root"
            );
        } else {
            tracing::debug!(layer, times, error = %error, "written spans are lost again");
        }
    }

    /// The layer does not count as complete from now on. True if it did. Blocks on the disk.
    ///
    /// # Errors
    /// The system's; it does not count as complete in this process all the same.
    pub(super) fn doubt(&self) -> io::Result<bool> {
        let cleared = self.data.files.present.clear_complete();
        self.complete.send_replace(false);
        cleared
    }
}
