//! Downloads the rest of a layer in the background and makes it durable.
//!
//! Completion keeps a window of spans requested with class `All`, in tar order from the last read on,
//! and refills it when half of it has arrived, so that neighboring spans share requests. After a
//! failure it pauses. When the disk is full it waits for space. When every span is stored and every header matches,
//! the bytes are synced, the marks are made durable, and the layer is complete.

use std::{io, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    Context,
    data::Data,
    paced::{Fetches, Next},
    passing::Passing,
    spans::Spans,
    trouble::Trouble,
};
use crate::{
    cpu::Lane,
    metrics::{self, Timed},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

mod prove;

pub use prove::ProveError;

/// Compressed bytes requested at a time: several requests per connection. The scheduler bounds
/// their memory.
const WINDOW: u64 = 64 << 20;
/// Less free space than this counts as none, because a window of spans is already requested.
const MARGIN: u64 = 8 << 20;
/// How often a full disk is checked.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(2);
/// How often completion checks again even without a notification, as a safety net.
const LOOK: Duration = Duration::from_secs(30);
/// How long a layer's bytes stay in the page cache after completion, for readers that have not read
/// them yet.
const SETTLE: Duration = Duration::from_secs(20);

/// The completion of one layer.
pub(super) struct Completion {
    context: Arc<Context>,
    data: Arc<Data>,
    trouble: Arc<Trouble>,
    passing: Arc<Passing>,
    spans: Arc<Spans>,
    complete: watch::Sender<bool>,
    runs: AtomicBool,
    /// Everything is downloaded, not only what is listed.
    fetches: AtomicBool,
    /// The layer is unused and space is needed, so it is not downloaded in the background.
    rests: AtomicBool,
    /// The queue of the paced downloads has it, or gets it when it no longer rests.
    queued: AtomicBool,
    /// When its bytes may leave the page cache. `None` if it was already complete when it was
    /// opened.
    settles: Mutex<Option<Instant>>,
    /// When the background requested the first span since the layer was last complete.
    begun: Mutex<Option<Instant>>,
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
            fetches: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            settles: Mutex::default(),
            begun: Mutex::default(),
            context,
            data,
            trouble,
            passing,
            spans,
        }
    }

    /// Whether every span is durable and every header matched.
    pub(super) fn is_complete(&self) -> bool {
        *self.complete.borrow()
    }

    /// Becomes true when the layer is complete.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// Whether it has been complete for long enough that container starts are over.
    pub(super) fn has_settled(&self) -> bool {
        self.is_complete() && self.settles.lock().is_none_or(|at| at <= Instant::now())
    }

    /// Waits until the layer is complete. If `fetches`, also downloads what is missing in the
    /// background. Ends when the layer is complete or removed. A second call while it runs only sets
    /// `fetches`. The owner of the layer's tasks must spawn it.
    pub(super) async fn run(self: Arc<Self>, fetches: bool) {
        if fetches {
            self.fetches.store(true, Ordering::SeqCst);
        }
        if self.runs.swap(true, Ordering::AcqRel) {
            self.spans.look_again();
            return;
        }
        while !self.is_complete() && !self.spans.is_closed() {
            let fetches = self.fetches.load(Ordering::SeqCst) && !self.rests();
            let downloads = fetches || self.data.misses_no_content();
            let replays = self.spans.has_replay() && !self.rests();
            let until = if downloads || self.spans.has_first() || replays {
                self.top_up(downloads)
            } else {
                Instant::now() + LOOK
            };
            if self.data.has_all() && self.try_to_finish().await {
                break;
            }
            let wait = tokio::time::timeout_at(until, self.spans.changed());
            // A timeout and a change both mean checking again.
            drop(wait.await);
        }
        self.runs.store(false, Ordering::Release);
    }

    /// Whether background downloads are stopped until the layer is used again.
    pub(super) fn rests(&self) -> bool {
        self.rests.load(Ordering::SeqCst)
    }

    /// Stops background downloads until the layer is used again.
    pub(super) fn rest(&self) {
        self.rests.store(true, Ordering::SeqCst);
    }

    /// Resumes background downloads, because the layer is used. Returns whether they were stopped.
    pub(super) fn wake(&self) -> bool {
        let rested = self.rests.swap(false, Ordering::SeqCst);
        if rested {
            self.spans.look_again();
        }
        rested
    }

    /// Notes that the layer belongs in the queue of the paced downloads. Returns whether to add it
    /// now, because it does not rest.
    pub(super) fn enqueue(&self) -> bool {
        // In one total order with `wake`: one of the two sees what the other did, and adds it.
        self.queued.store(true, Ordering::SeqCst);
        !self.rests()
    }

    /// Like [`Completion::wake`]. Returns whether to add the layer to the queue again.
    pub(super) fn wake_queued(&self) -> bool {
        self.wake() && self.queued.load(Ordering::SeqCst)
    }

    /// Requests missing spans up to the window: those of prefetch artifacts first, and all if
    /// `downloads`. Returns when to check again at the latest.
    fn top_up(&self, downloads: bool) -> Instant {
        let now = Instant::now();
        let room = match self.room_now() {
            Ok(room) => room,
            Err(until) => return until,
        };
        self.spans.store_kept();
        self.spans.want_first();
        let mut has_listed = self.spans.has_first();
        if !self.rests() {
            self.spans.want_replay(room);
            has_listed |= self.spans.has_replay_waiting();
        }
        if downloads && !has_listed {
            for span in self.spans.next_absent(WINDOW, room) {
                self.begun.lock().get_or_insert(now);
                self.spans.want(span);
            }
        }
        now + LOOK
    }

    /// Bytes that the background may request now, or when to check again.
    fn room_now(&self) -> Result<u64, Instant> {
        // statvfs does no I/O.
        let free = || self.context.store.disk().ok().map(|disk| disk.free);
        if let Some(until) = self.trouble.held_until(free, LOOK_FOR_ROOM) {
            return Err(until);
        }
        let room = self.room();
        if room == 0 {
            let until = Instant::now() + LOOK_FOR_ROOM;
            self.trouble.hold_until(until);
            return Err(until);
        }
        Ok(room)
    }

    /// Bytes that the background may still download. Logs once when there is no space, and once
    /// when there is again.
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
        // Other layers may have downloads in progress too.
        let room = if room < MARGIN { 0 } else { room / 4 };
        if self.trouble.note_low(room == 0) {
            let layer = self.data.digest().to_string();
            let (free, kept) = (disk.free, options.limits.floor(disk));
            if room == 0 {
                tracing::warn!(
                    layer,
                    free,
                    kept,
                    "the disk is nearly full; background downloads are paused and only data that is read is downloaded; free disk space, or see [cache] min_free_bytes and max_bytes"
                );
            } else {
                tracing::info!(
                    layer,
                    free,
                    "disk space is available again; background downloads resume"
                );
            }
        }
        room
    }

    /// All spans are stored: checks the remaining headers, syncs, and marks the layer complete.
    /// Returns true if nothing is left to do, because the layer is complete or because a header
    /// does not match, which is permanent.
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
                tracing::error!(layer = %self.data.digest(), error = %lost, "completing a layer failed");
                true
            }
        }
    }

    fn pause(&self, error: io::Error) {
        self.trouble.pause(&self.data.store_error(error));
    }

    /// Completes a layer whose bytes are all written and verified, headers included. Blocks on the
    /// disk. Returns whether it is complete.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn finish_at_once(&self) -> io::Result<bool> {
        if self.spans.is_closed() {
            return Ok(false);
        }
        self.sync_and_finish()
    }

    /// Returns true if the layer is complete now.
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
            // A scrub cleared the mark meanwhile.
            self.complete.send_replace(false);
            return Ok(false);
        }
        let (layer, image) = (self.data.digest(), self.data.image());
        tracing::info!(layer = %layer, image = &*image, "layer is complete");
        if let Some(begun) = self.begun.lock().take() {
            let operations = &metrics::global().operations;
            operations.took(Timed::BackgroundFetch, layer, begun.elapsed());
        }
        Ok(true)
    }

    /// Makes written spans durable. Blocks on the disk. After a failure, spans that were not
    /// durable are absent again.
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
            // Without checksums the spans are not durable, but they are still present.
            tracing::warn!(layer = %self.data.digest(), error = %error, "cannot record the checksums of written spans; trying again");
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
        // The completion task must check again, because spans became absent.
        self.spans.look_again();
        let layer = self.data.digest().to_string();
        if times == 1 {
            tracing::error!(
                layer,
                error = %error,
                "written spans are lost and will be downloaded again; check the disk of the state root"
            );
        } else {
            tracing::debug!(layer, times, error = %error, "written spans are lost once more");
        }
    }

    /// Marks the layer as not complete. Returns whether it was complete. Blocks on the disk.
    ///
    /// # Errors
    /// The system's. In this process the layer counts as not complete in any case.
    pub(super) fn doubt(&self) -> io::Result<bool> {
        let cleared = self.data.files.present.clear_complete();
        self.complete.send_replace(false);
        cleared
    }
}

impl Fetches for Completion {
    fn fetch_next(&self) -> Next {
        // A resting layer comes back when it is used.
        if self.is_complete() || self.spans.is_closed() || self.rests() {
            return Next::Over;
        }
        if self.data.has_all() {
            // The sync can fail, and then spans are absent again. A false layer stays as it is.
            return match self.data.any_header_disagrees() {
                true => Next::Over,
                false => Next::Later,
            };
        }
        // The spans of prefetch artifacts are requested without the pace.
        let has_listed = self.spans.has_first() || self.spans.has_replay();
        if has_listed || self.room_now().is_err() {
            return Next::Later;
        }
        let Some(span) = self.spans.first_absent() else {
            return Next::Later;
        };
        self.begun.lock().get_or_insert_with(Instant::now);
        self.spans.want(span);
        Next::Requested
    }
}
