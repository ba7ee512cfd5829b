//! From compressed bytes to the store: digest, inflate, vectored writes, mark, waiters. On the pool.
//!
//! The order is in the types: only a [`VerifiedSpan`] can be decoded, and only what was decoded is written. The decoder's
//! buffers belong to the pool's threads and are dropped when a thread has had nothing to do for a while.

use std::{
    borrow::Cow, cell::RefCell, fs::File, io, io::IoSlice, ops::ControlFlow,
    panic::AssertUnwindSafe,
};

use sha2::{Digest as _, Sha256};
use soci_ztoc::{Checkpoint, Decoder, ExtractError, SpanId, VerifiedSpan, VerifyError};

use super::{
    Effect, Event, Layer, ReadError, prove,
    read::{self, Held},
    sparse,
};
use crate::{
    cpu::Lane,
    fetch::{Class, Delivery},
    places::{BLOCK, Piece},
    store::{
        ZtocFile,
        sums::{Sum, sum_from, sum_of},
    },
    sync::{Arc, atomic::Ordering},
};

thread_local! {
    static SCRATCH: RefCell<Option<Decoder>> = const { RefCell::new(None) };
}

/// Drops what this thread keeps for decoding: for the pool's idle hook.
pub fn drop_scratch() {
    SCRATCH.with(|scratch| drop(scratch.borrow_mut().take()));
}

/// Larger spans are written in pieces of at least [`GATHERED`] bytes. Spans have 4 MiB unless told otherwise.
const LARGE: u64 = 16 << 20;
const GATHERED: usize = 1 << 20;

/// Kernel limit of the slices of one vectored write.
const MAX_SLICES: usize = 1024;

/// As long as [`BLOCK`].
static ZEROS: [u8; 4096] = [0; 4096];

/// What became of a span's bytes.
enum Filled {
    Stored,
    Wrong(VerifyError),
    Undecodable(String),
    /// Right, but the store did not take them.
    Unstored(Held, io::Error),
}

impl Layer {
    /// The bytes of a span came. On a thread of the network runtime.
    pub(super) fn delivered(self: &Arc<Self>, span: u32, delivery: Delivery) {
        // Until the bytes are in the list, so that a reader that comes between finds them there.
        let mut arrived = self.arrived.lock();
        if !matches!(self.step(span, Event::Delivered), Effect::Fill) {
            return;
        }
        let (counter, lane) = match delivery.class {
            Class::All => (&self.counters.background, Lane::ComputeBehind),
            Class::Now => (&self.counters.on_demand, Lane::Compute),
            Class::Next => (&self.counters.on_demand, Lane::ComputeBehind),
        };
        counter.fetch_add(delivery.bytes.len() as u64, Ordering::Relaxed);
        self.times.delivered(span, delivery.asked);
        arrived.insert(span, delivery);
        drop(arrived);
        let layer = Arc::clone(self);
        self.context.cpu.spawn(lane, move || layer.fill(span));
    }

    /// A reader waits for a span whose bytes came: whichever job is first fills it.
    pub(super) fn hurry(self: &Arc<Self>, span: u32) {
        if self.arrived.lock().contains_key(&span) {
            let layer = Arc::clone(self);
            self.context
                .cpu
                .spawn(Lane::Compute, move || layer.fill(span));
        }
    }

    fn fill(self: &Arc<Self>, span: u32) {
        let Some(delivery) = self.arrived.lock().remove(&span) else {
            return;
        };
        self.times.begun(span);
        let source = Arc::clone(&delivery.source);
        let work = AssertUnwindSafe(|| self.verify_and_store(span, delivery));
        let filled = std::panic::catch_unwind(work)
            .unwrap_or_else(|_| Filled::Undecodable("the decoder panicked".to_owned()));
        match filled {
            Filled::Stored => self.times.forget(span),
            Filled::Wrong(error) => self.wrong(span, error, source),
            Filled::Undecodable(reason) => {
                let subject = self.subject(Some(span));
                let error = ReadError::Undecodable {
                    subject,
                    reason: reason.into(),
                };
                if self.trouble.bad_span(span, &error) {
                    tracing::error!(
                        layer = %self.files.key.layer,
                        error = &error as &dyn std::error::Error,
                        "a span cannot be used"
                    );
                }
                if let Effect::Fail(waiters) = self.step(span, Event::Broken) {
                    read::fail_all(&self.context.cpu, waiters, error);
                }
            }
            Filled::Unstored(held, error) => self.unstored(span, &held, error),
        }
        self.changed.notify_one();
    }

    fn verify_and_store(self: &Arc<Self>, span: u32, delivery: Delivery) -> Filled {
        let Some(ztoc) = self.ztoc() else {
            return Filled::Undecodable("the layer has no zTOC".to_owned());
        };
        let verified = match VerifiedSpan::verify(SpanId(span), &delivery.bytes, ztoc.spans()) {
            Ok(verified) => verified,
            Err(error) => return Filled::Wrong(error),
        };
        SCRATCH.with(|scratch| {
            let mut scratch = scratch.borrow_mut();
            let decoder = scratch.get_or_insert_with(Decoder::new);
            let view = ztoc.view();
            let checkpoint = view.checkpoint(SpanId(span));
            let tar = ztoc.spans().uncompressed(SpanId(span));
            if tar.end - tar.start > LARGE {
                let pieces = self.store_in_pieces(decoder, &verified, &checkpoint, ztoc);
                if let Some(filled) = pieces {
                    return filled;
                }
            }
            let last = span as usize + 1 == ztoc.spans().len();
            let decoded = if last {
                self.decode_last(decoder, &verified, &checkpoint, ztoc)
            } else {
                decoder
                    .decode(&verified, &checkpoint, ztoc.spans())
                    .map(Cow::Borrowed)
            };
            match decoded {
                Ok(bytes) => self.store(ztoc, span, &bytes, delivery.class),
                Err(error) => Filled::Undecodable(error.to_string()),
            }
        })
    }

    /// Decodes a large span and writes it in pieces: memory does not grow with it. None if it could not be written.
    fn store_in_pieces(
        self: &Arc<Self>,
        decoder: &mut Decoder,
        span: &VerifiedSpan<'_>,
        at: &Checkpoint<'_>,
        ztoc: &ZtocFile,
    ) -> Option<Filled> {
        let tar = ztoc.spans().uncompressed(span.id());
        let (mut hash, mut gathered) = (Sha256::new(), Vec::with_capacity(2 * GATHERED));
        let (mut place, mut written) = (tar.start, Ok(()));
        let decoded = decoder.decode_in_pieces(span, at, ztoc.spans(), |piece| {
            hash.update(piece);
            gathered.extend_from_slice(piece);
            if gathered.len() >= GATHERED && written.is_ok() {
                written = self.write(place, &gathered);
                place += gathered.len() as u64;
                gathered.clear();
            }
        });
        if let Err(error) = decoded {
            return Some(Filled::Undecodable(error.to_string()));
        }
        written.and_then(|()| self.write(place, &gathered)).ok()?;
        self.stored(span.id().0, || sum_from(hash));
        for entry in self.files.places.headers_in(tar.clone()) {
            let header = self.files.places.header(entry);
            if header.is_some_and(|header| self.has_tar(header)) {
                // As in `check_headers_of`.
                drop(self.check_header(entry, &[]));
            }
        }
        Some(Filled::Stored)
    }

    /// A span's bytes are in the store: marks it, lets its waiters go on.
    fn stored(self: &Arc<Self>, span: u32, sum: impl FnOnce() -> Sum) {
        if let Err(error) = self.files.present.written(span) {
            tracing::warn!(layer = %self.files.key.layer, span, error = %error, "a mark is not written");
        }
        if let Effect::Wake(waiters) = self.step(span, Event::Filled) {
            read::wake_all(&self.context.cpu, waiters, None, &self.times.wait(span));
        }
        self.recovered(span);
        // Behind the readers: only a scrub needs it, and a sync makes up for one that is lost.
        if let Err(error) = self.files.sums.set(span, &sum()) {
            tracing::debug!(layer = %self.files.key.layer, span, error = %error, "a sum is not written");
        }
    }

    /// Decodes the last span, and keeps what its stream has behind the archive: the layer's digest counts it.
    fn decode_last<'d>(
        &self,
        decoder: &'d mut Decoder,
        span: &VerifiedSpan<'d>,
        at: &Checkpoint<'_>,
        ztoc: &ZtocFile,
    ) -> Result<Cow<'d, [u8]>, ExtractError> {
        let archive = ztoc.spans().uncompressed(span.id());
        if archive.is_empty() {
            return Ok(Cow::default());
        }
        let len = usize::try_from(archive.end - archive.start).unwrap_or(usize::MAX);
        let most = len.saturating_add(prove::KEPT);
        let mut stream = Vec::new();
        let ended = decoder.decode_to_end(span, at, ztoc.spans(), |piece| {
            stream.extend_from_slice(piece);
            if stream.len() > most {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if stream.len() < len {
            // Its own account of what is wrong.
            return decoder.decode(span, at, ztoc.spans()).map(Cow::Borrowed);
        }
        let behind = stream.split_off(len);
        self.keep_behind((ended.is_ok() && behind.len() <= prove::KEPT).then_some(behind));
        Ok(Cow::Owned(stream))
    }

    /// Writes decoded bytes, marks the span, lets its waiters go on, checks the headers that are there now.
    fn store(self: &Arc<Self>, ztoc: &ZtocFile, span: u32, bytes: &[u8], class: Class) -> Filled {
        let tar = ztoc.spans().uncompressed(SpanId(span));
        let held = || Held {
            tar: tar.clone(),
            bytes: Arc::new(bytes.to_vec()),
        };
        // Readers do not wait for the disk, which may be slow for all that the background writes.
        let mut served = None;
        if let Effect::Serve(waiters) = self.step(span, Event::Decoded) {
            self.times.decoded(span);
            let held = served.insert(held());
            read::wake_all(
                &self.context.cpu,
                waiters,
                Some(held),
                &self.times.wait(span),
            );
        }
        if let Err(error) = self.write(tar.start, bytes) {
            return Filled::Unstored(served.unwrap_or_else(held), error);
        }
        drop(served);
        let used = &self.context.used;
        used.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.stored(span, || sum_of(bytes));
        self.check_headers_of(tar.clone(), bytes);
        // While readers wait the cores are theirs: what is left out now is read again behind a later span.
        if class == Class::All && !self.context.fetch.is_urgent() {
            self.pass_on(ztoc, &tar, bytes);
        }
        Filled::Stored
    }

    fn wrong(self: &Arc<Self>, span: u32, source: VerifyError, from: Arc<str>) {
        let error = ReadError::Corrupt {
            subject: self.subject(Some(span)),
            source: Arc::new(source),
        };
        let cause = &error as &dyn std::error::Error;
        if self.trouble.is_bad(span) {
            tracing::debug!(
                error = cause,
                source = &*from,
                "span digests still do not match"
            );
        } else {
            tracing::error!(layer = %self.files.key.layer, error = cause, source = &*from, "span digests do not match");
        }
        self.trouble.note(&error);
        let most = self.context.options.span_fetches.max(2);
        let effect = {
            let mut spans = self.spans.lock();
            let Some(state) = spans.get_mut(span as usize) else {
                return;
            };
            state.step(Event::Wrong { most })
        };
        match effect {
            Effect::Demand(class) => self.demand(span, class, Some(from)),
            Effect::Fail(waiters) => {
                self.trouble.bad_span(span, &error);
                read::fail_all(&self.context.cpu, waiters, error);
            }
            _ => {}
        }
    }

    fn unstored(self: &Arc<Self>, span: u32, held: &Held, error: io::Error) {
        let full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        self.no_room(span, full, error);
        self.context
            .spare
            .keep(self.files.number, span, held.clone());
        if let Effect::Serve(waiters) = self.step(span, Event::NoRoom) {
            read::wake_all(
                &self.context.cpu,
                waiters,
                Some(held),
                &self.times.wait(span),
            );
        }
        self.times.forget(span);
    }

    /// Writes a contiguous range of the tar, in as few calls as the kernel allows.
    fn write(&self, tar_start: u64, bytes: &[u8]) -> io::Result<()> {
        let mut data = Run::new(&self.files.data);
        let mut heads = Run::new(&self.files.heads);
        let tar_end = tar_start + bytes.len() as u64;
        for piece in self.files.places.pieces(tar_start..tar_end) {
            let (run, tar, place, len) = match piece {
                Piece::Data {
                    tar,
                    data: place,
                    len,
                } => (&mut data, tar, place, len),
                Piece::Heads {
                    tar,
                    heads: place,
                    len,
                } => (&mut heads, tar, place, len),
            };
            let at = usize::try_from(tar - tar_start).unwrap_or(usize::MAX);
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let part = bytes.get(at..at.saturating_add(len)).unwrap_or_default();
            run.push(place, part)?;
        }
        data.flush()?;
        heads.flush()
    }

    /// Checks the headers that became whole with these bytes. Those inside them need no read.
    fn check_headers_of(self: &Arc<Self>, tar: std::ops::Range<u64>, bytes: &[u8]) {
        if self.headers.all_known() {
            return;
        }
        for entry in self.files.places.headers_in(tar.clone()) {
            let Some(header) = self.files.places.header(entry) else {
                continue;
            };
            if header.start >= tar.start && header.end <= tar.end {
                let at = usize::try_from(header.start - tar.start).unwrap_or(usize::MAX);
                let end = usize::try_from(header.end - tar.start).unwrap_or(usize::MAX);
                // As below.
                drop(self.check_header_bytes(entry, bytes.get(at..end).unwrap_or_default()));
            } else if self.has_tar(header) {
                // What disagrees is remembered and logged there; completion looks at the marks.
                drop(self.check_header(entry, &[]));
            }
        }
    }
}

/// Slices that follow each other in one file, gathered for one call. Gaps (the zeros behind a file's end) are written too:
/// they are shorter than a block and cheaper than another call.
struct Run<'a> {
    file: &'a File,
    start: u64,
    end: u64,
    slices: Vec<&'a [u8]>,
}

impl<'a> Run<'a> {
    fn new(file: &'a File) -> Run<'a> {
        Run {
            file,
            start: 0,
            end: 0,
            slices: Vec::new(),
        }
    }

    /// The next part; zeros in a hole are there already.
    fn push(&mut self, mut place: u64, part: &'a [u8]) -> io::Result<()> {
        for (stretch, is_zero) in sparse::stretches(part, place) {
            if !is_zero || !sparse::is_hole(self.file, place, stretch.len()) {
                self.gather(place, stretch)?;
            }
            place += stretch.len() as u64;
        }
        Ok(())
    }

    fn gather(&mut self, place: u64, part: &'a [u8]) -> io::Result<()> {
        let gap = place.checked_sub(self.end).filter(|gap| *gap < BLOCK);
        let room = self.slices.len() + 2 <= MAX_SLICES;
        match gap {
            Some(gap) if room && !self.slices.is_empty() => {
                if gap > 0 {
                    let gap = usize::try_from(gap).unwrap_or(0);
                    self.slices.push(&ZEROS[..gap.min(ZEROS.len())]);
                }
            }
            _ => {
                self.flush()?;
                self.start = place;
            }
        }
        self.slices.push(part);
        self.end = place + part.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> =
            self.slices.iter().map(|part| IoSlice::new(part)).collect();
        let mut slices = slices.as_mut_slice();
        let mut at = self.start;
        while !slices.is_empty() {
            match rustix::io::pwritev(self.file, slices, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.slices.clear();
        Ok(())
    }
}
