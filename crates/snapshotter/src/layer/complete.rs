//! Everything else of a layer, in the background, and what makes it last.
//!
//! Completion keeps a window of spans asked for with class `All`, in the order of the tar, and tops it up when half of it
//! has come, so that neighbours travel together. Any failure makes it pause; a full disk makes it wait for room. When every
//! span is there and every header agreed, the bytes are synced, the marks made durable, and the layer is complete.

use std::{io, ops::Range, time::Duration};

use soci_ztoc::SpanId;
use tokio::time::Instant;

use super::{Class, Context, Event, Layer, Span};
use crate::{
    cpu::Lane,
    places::Piece,
    sync::{Arc, atomic::Ordering},
};

/// Compressed bytes asked for at once: several requests for each connection. Not memory: the scheduler bounds that.
const WINDOW: u64 = 64 << 20;
/// What must be free beyond a span's size before it is asked for again after the disk was full.
const ROOM: u64 = 16 << 20;
/// Less room than this is none: a window of spans is under way.
const MARGIN: u64 = 8 << 20;
/// How often a full disk is looked at.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(2);
/// A safety net: completion looks again even if nobody told it to.
const LOOK: Duration = Duration::from_secs(30);

/// How long after its completion a layer's bytes are kept in the page cache for who has not read them yet.
const SETTLE: Duration = Duration::from_secs(20);

impl Layer {
    /// Waits until the layer is complete, and fetches whatever is missing in the background if it `fetches`. Runs until then,
    /// or until the layer is removed; a second call while it runs does nothing. To be spawned by who owns the layer's tasks.
    pub(super) async fn run_completion(self: Arc<Self>, fetches: bool) {
        if self.completing.swap(true, Ordering::AcqRel) {
            return;
        }
        while !self.is_complete() && !self.is_closed() {
            let until = if fetches || self.misses_no_content() {
                self.top_up()
            } else {
                Instant::now() + LOOK
            };
            if self.files.present.count() == self.files.present.len() && self.try_to_finish().await
            {
                break;
            }
            let wait = tokio::time::timeout_at(until, self.changed.notified());
            // Either way it is time to look again.
            drop(wait.await);
        }
        self.completing.store(false, Ordering::Release);
    }

    /// Asks for what is missing, as far as the window goes. Returns when to look again at the latest.
    fn top_up(self: &Arc<Self>) -> Instant {
        let now = Instant::now();
        // One statvfs: no I/O.
        let free = || self.context.store.disk().ok().map(|disk| disk.free);
        if let Some(until) = self.trouble.waits(free, LOOK_FOR_ROOM) {
            return until;
        }
        let room = self.room();
        if room == 0 {
            self.trouble.wait_until(now + LOOK_FOR_ROOM);
            return now + LOOK_FOR_ROOM;
        }
        for span in self.absent_in_window(room) {
            self.step(span, Event::Want(Class::All, None));
        }
        now + LOOK
    }

    /// Whether every file was read whole: what is missing is headers and the end of the archive.
    fn misses_no_content(&self) -> bool {
        const FEW: usize = 16;
        let Some(ztoc) = self.ztoc() else {
            return true;
        };
        let present = &self.files.present;
        if present.len() - present.count() > FEW {
            return false;
        }
        let holds_content = |span| {
            let pieces = self.files.places.pieces(ztoc.spans().uncompressed(span));
            pieces
                .into_iter()
                .any(|piece| matches!(piece, Piece::Data { .. }))
        };
        let mut missing = ztoc.spans().ids().filter(|span| !present.has(span.0));
        !missing.any(holds_content)
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
        if self.trouble.is_low(room == 0) {
            let layer = self.files.key.layer.to_string();
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

    /// The next absent spans that `room` has room for, if less than half of the window is under way.
    fn absent_in_window(&self, mut space: u64) -> Vec<u32> {
        let Some(ztoc) = self.ztoc() else {
            return Vec::new();
        };
        let (mut under_way, mut room, mut absent) = (0, WINDOW, Vec::new());
        let bad = self.trouble.bad_for_now();
        let spans = self.spans.lock();
        for (id, span) in (0_u32..).zip(spans.iter()) {
            if matches!(span, Span::Present) || (span.is_absent() && bad.contains(&id)) {
                continue;
            }
            let Range { start, end } = ztoc.spans().compressed(SpanId(id));
            let size = end - start;
            let tar = ztoc.spans().uncompressed(SpanId(id));
            space = space.saturating_sub(tar.end - tar.start);
            if span.is_absent() {
                absent.push(id);
            } else {
                under_way += size;
            }
            if under_way > WINDOW / 2 {
                return Vec::new();
            }
            room = room.saturating_sub(size);
            if room == 0 || space == 0 {
                break;
            }
        }
        absent
    }

    /// All spans are there: checks what headers are left, syncs, marks. True if nothing is left to do here, for better
    /// (complete) or for worse (a header disagrees, which does not change any more).
    async fn try_to_finish(self: &Arc<Self>) -> bool {
        let layer = Arc::clone(self);
        let checked = self
            .context
            .cpu
            .run(Lane::ComputeBehind, move || layer.check_all_headers())
            .await;
        if !matches!(checked, Ok(true)) {
            if self.headers.any_disagreed() {
                self.prove_false().await;
                return true;
            }
            // A header could not be read.
            self.trouble
                .pause(&self.store_error(io::ErrorKind::Other.into()));
            return false;
        }
        let layer = Arc::clone(self);
        let synced = self
            .context
            .cpu
            .run(Lane::FilesBehind, move || layer.sync_and_finish())
            .await;
        match synced {
            Ok(Ok(complete)) => complete,
            Ok(Err(error)) => {
                let error = self.store_error(error);
                self.trouble.pause(&error);
                false
            }
            Err(lost) => {
                tracing::error!(layer = %self.files.key.layer, error = %lost, "completion");
                true
            }
        }
    }

    fn check_all_headers(&self) -> bool {
        if !self.headers.all_known() {
            for entry in 0..self.files.places.entries() {
                // What disagrees is remembered and logged there.
                drop(self.check_header(entry, &[]));
            }
        }
        self.headers.all_agreed()
    }

    /// True if it is complete now.
    fn sync_and_finish(self: &Arc<Self>) -> io::Result<bool> {
        self.sync()?;
        let all = self.files.present.count() == self.files.present.len();
        if !all || !self.files.present.volatile().is_empty() {
            return Ok(false);
        }
        self.files.present.set_complete()?;
        if let Some(ztoc) = self.ztoc() {
            ztoc.release();
        }
        *self.settles.lock() = Some(Instant::now() + SETTLE);
        self.complete.send_replace(true);
        if !self.files.present.is_complete() {
            // A scrub came between.
            self.complete.send_replace(false);
            return Ok(false);
        }
        tracing::info!(layer = %self.files.key.layer, image = &*self.image(), "layer is complete");
        Ok(true)
    }

    /// Makes what was written durable. Blocks on the disk. After a failure what was not durable is absent again.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn sync(self: &Arc<Self>) -> io::Result<()> {
        let written = self.files.present.volatile();
        if written.is_empty() {
            return Ok(());
        }
        let sync = || {
            self.complete_sums(&written)?;
            self.files.data.sync_data()?;
            self.files.heads.sync_data()
        };
        match sync() {
            Ok(()) => {
                self.trouble.synced();
                self.files.present.durable(&written)
            }
            Err(error) => {
                for span in self.files.present.forget_volatile() {
                    self.step(span, Event::Lost);
                }
                self.sync_failed(&error);
                Err(error)
            }
        }
    }

    fn sync_failed(&self, error: &io::Error) {
        let times = self.trouble.sync_failed();
        // Completion waits by what was true before.
        self.changed.notify_one();
        let layer = self.files.key.layer.to_string();
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

    /// A span was stored.
    pub(super) fn recovered(&self, span: u32) {
        if self.trouble.recovered(span) {
            self.context.spare.forget(self.files.number);
        }
    }

    /// The store did not take a span.
    pub(super) fn no_room(&self, span: u32, full: bool, error: io::Error) {
        let size = self.ztoc().map_or(0, |ztoc| {
            let range = ztoc.spans().uncompressed(SpanId(span));
            range.end - range.start
        });
        let error = self.store_error(error);
        if self.trouble.no_room(full.then_some(size + ROOM), &error) {
            tracing::error!(
                layer = %self.files.key.layer,
                image = &*self.image(),
                span,
                error = &error as &dyn std::error::Error,
                "the store takes no more; reads are served from memory"
            );
        }
    }

    /// Lets the page cache forget the second copy of what mounts have read: EROFS has its own. Not soon after completion:
    /// what a start has not read yet is wanted warm. Blocks on the disk.
    pub(super) fn drop_second_copy(&self) {
        for file in [&self.files.data, &self.files.heads] {
            if let Err(error) = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed) {
                tracing::debug!(layer = %self.files.key.layer, error = %error, "page cache");
            }
        }
    }

    /// Whether it has been complete for so long that its start is over.
    pub(super) fn has_settled(&self) -> bool {
        self.is_complete() && self.settles.lock().is_none_or(|at| at <= Instant::now())
    }
}
