//! Everything else of a layer, in the background, and what makes it last.
//!
//! Completion keeps a window of spans asked for with class `All`, in the order of the tar, and tops it up when half of it
//! has come, so that neighbours travel together. Any failure makes it pause; a full disk makes it wait for room. When every
//! span is there and every header agreed, the bytes are synced, the marks made durable, and the layer is complete.

use std::{io, ops::Range, time::Duration};

use soci_ztoc::SpanId;
use tokio::time::Instant;

use super::{Class, Event, Layer, ReadError, Span};
use crate::{
    cpu::Lane,
    sync::{Arc, atomic::Ordering},
};

/// Compressed bytes asked for at once: several requests for each connection. Not memory: the scheduler bounds that.
const WINDOW: u64 = 64 << 20;
/// What must be free beyond a span's size before it is asked for again after the disk was full.
const ROOM: u64 = 16 << 20;
/// How often a full disk is looked at.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(2);
/// A safety net: completion looks again even if nobody told it to.
const LOOK: Duration = Duration::from_secs(30);

/// How long after its completion a layer's bytes are kept in the page cache for who has not read them yet.
const SETTLE: Duration = Duration::from_secs(20);

/// Why completion is not asking now.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// Do not ask before.
    until: Option<Instant>,
    /// How long the next pause is.
    pause: Option<Duration>,
    /// The disk is full: ask when so many bytes are free.
    need: Option<u64>,
}

impl Layer {
    /// Fetches whatever is missing, in the background, until the layer is complete. Runs until then, or until the layer is
    /// removed; a second call while it runs does nothing. To be spawned by who owns the layer's tasks.
    pub(super) async fn run_completion(self: Arc<Self>) {
        if self.completing.swap(true, Ordering::AcqRel) {
            return;
        }
        while !self.is_complete() && !self.is_closed() {
            let until = self.top_up();
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
        {
            let mut trouble = self.trouble.lock();
            if let Some(until) = trouble.until.filter(|until| *until > now) {
                return until;
            }
            if let Some(need) = trouble.need {
                // One statvfs: no I/O.
                if self.context.store.free().is_ok_and(|free| free < need) {
                    let until = now + LOOK_FOR_ROOM;
                    trouble.until = Some(until);
                    return until;
                }
                trouble.need = None;
            }
            trouble.until = None;
        }
        for span in self.absent_in_window() {
            self.step(span, Event::Want(Class::All, None));
        }
        now + LOOK
    }

    /// The next absent spans, if less than half of the window is under way.
    fn absent_in_window(&self) -> Vec<u32> {
        let Some(ztoc) = self.ztoc() else {
            return Vec::new();
        };
        let (mut under_way, mut room, mut absent) = (0, WINDOW, Vec::new());
        let spans = self.spans.lock();
        for (id, span) in (0_u32..).zip(spans.iter()) {
            if matches!(span, Span::Present) {
                continue;
            }
            let Range { start, end } = ztoc.spans().compressed(SpanId(id));
            let size = end - start;
            if span.is_absent() {
                absent.push(id);
            } else {
                under_way += size;
            }
            if under_way > WINDOW / 2 {
                return Vec::new();
            }
            room = room.saturating_sub(size);
            if room == 0 {
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
            .run(Lane::Background, move || layer.check_all_headers())
            .await;
        if !matches!(checked, Ok(true)) {
            tracing::error!(layer = %self.files.key.layer, "every byte is there, but the layer is not what its index says; it stays on the device");
            return true;
        }
        let layer = Arc::clone(self);
        let synced = self
            .context
            .cpu
            .run(Lane::Disk, move || layer.sync_and_finish())
            .await;
        match synced {
            Ok(Ok(complete)) => complete,
            Ok(Err(error)) => {
                let error = self.store_error(error);
                self.troubled(&error);
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
        match self
            .files
            .data
            .sync_data()
            .and_then(|()| self.files.heads.sync_data())
        {
            Ok(()) => self.files.present.durable(&written),
            Err(error) => {
                for span in self.files.present.forget_volatile() {
                    self.step(span, Event::Lost);
                }
                tracing::error!(layer = %self.files.key.layer, error = %error, "written spans are lost");
                Err(error)
            }
        }
    }

    /// Something failed in the background: pause, longer each time.
    pub(super) fn troubled(&self, error: &ReadError) {
        self.note_error(error);
        let (first, longest) = self.context.options.pause;
        let mut trouble = self.trouble.lock();
        let now = Instant::now();
        if trouble.until.is_some_and(|until| until > now) {
            return;
        }
        let pause = trouble
            .pause
            .map_or(first, |pause| (pause * 2).min(longest));
        trouble.pause = Some(pause);
        trouble.until = Some(now + pause);
    }

    /// A span was stored: the next failure pauses for the shortest time again.
    pub(super) fn recovered(&self) {
        let mut trouble = self.trouble.lock();
        trouble.pause = None;
        trouble.need = None;
    }

    /// The store did not take a span.
    pub(super) fn no_room(self: &Arc<Self>, span: u32, full: bool, error: io::Error) {
        let size = self.ztoc().map_or(0, |ztoc| {
            let range = ztoc.spans().uncompressed(SpanId(span));
            range.end - range.start
        });
        let first = self.trouble.lock().need.is_none();
        if first {
            tracing::error!(
                layer = %self.files.key.layer,
                image = &*self.image(),
                span,
                error = %error,
                "the store takes no more; reads are served from memory"
            );
        }
        let error = self.store_error(error);
        self.troubled(&error);
        if full {
            self.trouble.lock().need = Some(size + ROOM);
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
