//! From compressed bytes to the store: verify, decompress, answer waiters, write, mark. Runs on the
//! pool.
//!
//! The types enforce the order: only a [`VerifiedSpan`] can be decoded, `early` gives only verified
//! bytes, and only decoded bytes are written. Each pool thread has its own decoder buffers, and
//! drops them after it has been idle for a while.

use std::{
    cell::RefCell,
    io,
    ops::{ControlFlow, Range},
    panic::AssertUnwindSafe,
};

use soci_ztoc::{Checkpoint, Decoder, ExtractError, SpanId, VerifiedSpan, VerifyError};

use super::{Early, Effect, Event, Spans, decoded::Decoded};
use crate::{
    cpu::Lane,
    fetch::{Class, Delivery},
    layer::{ReadError, data::Held, passing::KEPT},
    metrics::{self, Purpose},
    store::{ZtocFile, sums::Sum},
    sync::{Arc, atomic::Ordering},
};

thread_local! {
    static SCRATCH: RefCell<Option<Decoder>> = const { RefCell::new(None) };
}

/// Drops this thread's decoder. For the pool's idle hook.
pub fn drop_scratch() {
    SCRATCH.with(|scratch| drop(scratch.borrow_mut().take()));
}

/// Larger spans are written in pieces of at least [`GATHERED`] bytes. By default, spans have 4 MiB.
pub(super) const LARGE: u64 = 16 << 20;
const GATHERED: usize = 1 << 20;

/// The free space that is needed beyond the size of a span before it is requested again after the
/// disk was full.
pub(super) const ROOM: u64 = 16 << 20;

/// A span that arrived.
pub(super) struct Arrived {
    pub(super) delivery: Delivery,
    /// Has decoded a part of the bytes, if they were followed.
    pub(super) early: Option<Arc<Early>>,
}

/// The outcome of filling a span.
enum Filled {
    Stored,
    Wrong(VerifyError),
    Undecodable(String),
    /// The bytes are valid, but the store did not accept them.
    Unstored(Held, io::Error),
    /// The bytes are valid, but the span is being evicted.
    Leaves(Held),
}

impl Spans {
    /// The bytes of a span arrived. Called on a thread of the network runtime.
    pub(super) fn delivered(self: &Arc<Self>, span: u32, came: Arrived) {
        let delivery = &came.delivery;
        // Locked until the bytes are in the map, so that a reader that arrives meanwhile finds
        // them.
        let mut arrived = self.arrived.lock();
        if !matches!(self.step(span, Event::Delivered), Effect::Fill) {
            return;
        }
        let (counter, purpose, lane) = match delivery.class {
            Class::All => (
                &self.tally.background,
                Purpose::Background,
                Lane::ComputeBehind,
            ),
            Class::Now => (&self.tally.on_demand, Purpose::OnDemand, Lane::Compute),
            Class::Next | Class::Pull => (
                &self.tally.on_demand,
                Purpose::OnDemand,
                Lane::ComputeBehind,
            ),
        };
        let bytes = delivery.bytes.len() as u64;
        counter.add(bytes);
        metrics::global().fetched.add(purpose, bytes);
        self.data.count(|series| match delivery.class {
            Class::All => series.background.inc(),
            Class::Now => series.on_demand.inc(),
            Class::Next | Class::Pull => {}
        });
        let early_bytes = came.early.as_ref().map_or(0, |early| early.decoded());
        self.times.delivered(span, delivery.asked, early_bytes);
        // A reader may have joined after this demand.
        let waited = self.states.lock().is_waited_for(span);
        let lane = if waited { Lane::Compute } else { lane };
        let may_wait = delivery.may_wait && !waited;
        arrived.insert(span, came);
        drop(arrived);
        if may_wait {
            return self.fill_in_turn(span, lane);
        }
        let spans = Arc::clone(self);
        self.context.cpu.spawn(lane, move || spans.fill(span));
    }

    /// A reader waits for a span whose bytes have arrived. The first of the two jobs fills it.
    pub(super) fn hurry(self: &Arc<Self>, span: u32) {
        if self.arrived.lock().contains_key(&span) {
            let (cpu, spans) = (&self.context.cpu, Arc::clone(self));
            cpu.spawn(Lane::Compute, move || spans.fill(span));
        }
    }

    pub(super) fn fill(self: &Arc<Self>, span: u32) {
        let Some(Arrived { delivery, early }) = self.arrived.lock().remove(&span) else {
            return;
        };
        self.times.begun(span);
        match early {
            None => self.fill_from(span, delivery, None),
            Some(early) => {
                let spans = Arc::clone(self);
                early.finish(Box::new(move |bytes| {
                    spans.fill_from(span, delivery, bytes)
                }));
            }
        }
    }

    /// Fills a span from bytes that were decoded while it arrived, otherwise from the delivery.
    fn fill_from(self: &Arc<Self>, span: u32, delivery: Delivery, early: Option<Vec<u8>>) {
        let source = Arc::clone(&delivery.source);
        let work = AssertUnwindSafe(|| self.verify_and_store(span, delivery, early));
        let filled = std::panic::catch_unwind(work)
            .unwrap_or_else(|_| Filled::Undecodable("the decoder panicked".to_owned()));
        match filled {
            Filled::Stored => self.times.forget(span),
            Filled::Wrong(error) => self.wrong(span, error, source),
            Filled::Undecodable(reason) => self.undecodable(span, reason),
            Filled::Unstored(held, error) => self.unstored(span, held, error),
            Filled::Leaves(held) => self.serve_only(span, &held),
        }
        self.look_again();
    }

    fn verify_and_store(
        self: &Arc<Self>,
        span: u32,
        delivery: Delivery,
        early: Option<Vec<u8>>,
    ) -> Filled {
        let Some(ztoc) = self.data.ztoc() else {
            return Filled::Undecodable("the layer has no zTOC".to_owned());
        };
        if let Some(bytes) = early {
            let bytes = Decoded::Own(Arc::new(bytes));
            return self.store(ztoc, span, &bytes, delivery.class);
        }
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
            if tar.end - tar.start > LARGE && !self.is_leaving(span) {
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
                    .map(Decoded::Buffer)
            };
            match decoded {
                Ok(bytes) => self.store(ztoc, span, &bytes, delivery.class),
                Err(error) => Filled::Undecodable(error.to_string()),
            }
        })
    }

    /// Decodes a large span and writes it in pieces, to bound memory. `None` if it could not be
    /// written.
    fn store_in_pieces(
        self: &Arc<Self>,
        decoder: &mut Decoder,
        span: &VerifiedSpan<'_>,
        at: &Checkpoint<'_>,
        ztoc: &ZtocFile,
    ) -> Option<Filled> {
        let tar = ztoc.spans().uncompressed(span.id());
        let mut sum = self.data.files.sums.summing();
        let mut gathered = Vec::with_capacity(2 * GATHERED);
        let (mut place, mut written) = (tar.start, Ok(()));
        let decoded = decoder.decode_in_pieces(span, at, ztoc.spans(), |piece| {
            sum.update(piece);
            gathered.extend_from_slice(piece);
            if gathered.len() >= GATHERED && written.is_ok() {
                written = self.data.write(place, &gathered);
                place += gathered.len() as u64;
                gathered.clear();
            }
        });
        if let Err(error) = decoded {
            return Some(Filled::Undecodable(error.to_string()));
        }
        written
            .and_then(|()| self.data.write(place, &gathered))
            .ok()?;
        self.context.wrote(&self.data, tar.clone());
        self.stored(span.id().0, || sum.finish());
        self.data.check_headers_in(tar, None);
        Some(Filled::Stored)
    }

    /// Marks a span whose bytes are stored, and wakes its waiters.
    fn stored(self: &Arc<Self>, span: u32, sum: impl FnOnce() -> Sum) {
        self.data.mark_written(span);
        tracing::debug!(layer = %self.data.digest(), number = self.data.files.number.0, span, "stored a span");
        if let Effect::Wake(waiters) = self.step(span, Event::Filled) {
            self.wake_all(span, waiters, None);
        }
        if self.trouble.recovered(span) {
            self.store_kept();
        }
        // After the readers were answered.
        self.data.note_sum(span, &sum());
    }

    /// Decodes the last span and keeps the part of its stream after the archive, which counts for
    /// the digest of the tar.
    fn decode_last<'d>(
        &self,
        decoder: &'d mut Decoder,
        span: &VerifiedSpan<'d>,
        at: &Checkpoint<'_>,
        ztoc: &ZtocFile,
    ) -> Result<Decoded<'d>, ExtractError> {
        let archive = ztoc.spans().uncompressed(span.id());
        if archive.is_empty() {
            return Ok(Decoded::Buffer(&[]));
        }
        let len = usize::try_from(archive.end - archive.start).unwrap_or(usize::MAX);
        let most = len.saturating_add(KEPT);
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
            // Decode again to get the decoder's specific error.
            return decoder.decode(span, at, ztoc.spans()).map(Decoded::Buffer);
        }
        let behind = stream.split_off(len);
        self.passing
            .keep_behind((ended.is_ok() && behind.len() <= KEPT).then_some(behind));
        Ok(Decoded::Own(Arc::new(stream)))
    }

    /// Writes decoded bytes, marks the span, wakes its waiters, and checks headers that are now
    /// complete.
    fn store(
        self: &Arc<Self>,
        ztoc: &ZtocFile,
        span: u32,
        bytes: &Decoded<'_>,
        class: Class,
    ) -> Filled {
        let tar = ztoc.spans().uncompressed(SpanId(span));
        let held = || Held {
            tar: tar.clone(),
            bytes: bytes.share(),
        };
        // Serve readers before writing, because the disk may be slowed down by background writes.
        let mut served = None;
        if let Effect::Serve(waiters) = self.step(span, Event::Decoded) {
            self.times.decoded(span);
            self.wake_all(span, waiters, Some(served.insert(held())));
        }
        if self.is_leaving(span) {
            return Filled::Leaves(served.unwrap_or_else(held));
        }
        if let Err(error) = self.data.write(tar.start, bytes) {
            return Filled::Unstored(served.unwrap_or_else(held), error);
        }
        drop(served);
        self.written(span, &tar, bytes);
        // While a program starts, leave the cores to it. Skipped spans are read again after a later
        // span.
        if class == Class::All && !self.context.fetch.had_readers() {
            self.passing.pass_on(ztoc, &tar, bytes);
        }
        Filled::Stored
    }

    /// Bookkeeping after a whole span was written at once.
    pub(super) fn written(self: &Arc<Self>, span: u32, tar: &Range<u64>, bytes: &[u8]) {
        self.context.wrote(&self.data, tar.clone());
        self.context
            .used
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.stored(span, || self.data.files.sums.of(bytes));
        self.data.check_headers_in(tar.clone(), Some(bytes));
    }

    fn wrong(self: &Arc<Self>, span: u32, source: VerifyError, from: Arc<str>) {
        let error = ReadError::Corrupt {
            subject: self.data.subject(Some(span)),
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
            tracing::error!(layer = %self.data.digest(), error = cause, source = &*from, "span digests do not match");
        }
        let most = self.context.options.span_fetches.max(2);
        let effect = self.states.lock().step(span, Event::Wrong { most });
        if let Effect::Fail(waiters) = effect {
            self.trouble.bad_span(span, &error);
            return self.fail_all(waiters, error);
        }
        self.trouble.note(&error);
        let sources = self.named.sources();
        if let Some(source) = sources.iter().find(|source| source.name == from) {
            source.fetcher.distrust();
        }
        if let Effect::Demand(class) = effect {
            self.demand(span, class, Some(from));
        }
    }

    fn undecodable(self: &Arc<Self>, span: u32, reason: String) {
        let error = ReadError::Undecodable {
            subject: self.data.subject(Some(span)),
            reason: reason.into(),
        };
        if self.trouble.bad_span(span, &error) {
            tracing::error!(
                layer = %self.data.digest(),
                error = &error as &dyn std::error::Error,
                "a span cannot be decompressed; reads of it fail"
            );
        }
        if let Effect::Fail(waiters) = self.step(span, Event::Broken) {
            self.fail_all(waiters, error);
        }
    }

    /// The store did not accept a span with valid bytes.
    pub(super) fn unstored(self: &Arc<Self>, span: u32, held: Held, error: io::Error) {
        let full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        let need = full.then_some(held.tar.end - held.tar.start + ROOM);
        let error = self.data.store_error(error);
        if self.trouble.no_room(need, &error) {
            tracing::error!(
                layer = %self.data.digest(),
                image = &*self.data.image(),
                span,
                error = &error as &dyn std::error::Error,
                "the store does not accept data; reads are served from memory; check the disk of the state root"
            );
        }
        let spare = &self.context.spare;
        spare.keep(self.data.files.number, span, held.clone());
        self.serve_only(span, &held);
    }

    /// Answers the waiters of a span that is not stored, from memory.
    pub(super) fn serve_only(self: &Arc<Self>, span: u32, held: &Held) {
        if let Effect::Serve(waiters) = self.step(span, Event::NoRoom) {
            self.wake_all(span, waiters, Some(held));
        }
        self.times.forget(span);
    }
}
