//! A read that finds bytes missing. It waits as a value, never as a thread, and is answered exactly
//! once.

use std::ops::Range;

use soci_ztoc::SpanId;
use tokio::time::Instant;

use super::{
    Effect, Event, Spans,
    trace::{self, ReadWait, SpanWait},
};
use crate::{
    cpu::Lane,
    fetch::Class,
    layer::{
        Pause, ReadDone, ReadError,
        data::{Held, Needs},
    },
    sync::{Arc, Mutex, atomic::Ordering},
};

/// Files up to this size are downloaded whole when a reader waits for a part of them.
const SMALL_FILE: u64 = 16 << 20;

struct Wait {
    missing: usize,
    held: Vec<Held>,
    waits: Vec<SpanWait>,
    done: Option<ReadDone>,
}

/// A read that waits for spans.
pub(super) struct Read {
    spans: Arc<Spans>,
    range: Range<u64>,
    began: Instant,
    wait: Mutex<Wait>,
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Read")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl Read {
    /// One of its spans is available, in the store or in `held`.
    pub(super) fn arrived(self: Arc<Self>, held: Option<Held>, span: Option<SpanWait>) {
        let ready = {
            let mut wait = self.wait.lock();
            wait.missing = wait.missing.saturating_sub(1);
            wait.held.extend(held);
            wait.waits.extend(span);
            if wait.missing == 0 { wait.take() } else { None }
        };
        if let Some((done, held, waits)) = ready {
            let answer = self.spans.data.checked_bytes(&self.range, &held);
            let error = answer.as_ref().err().cloned();
            done(answer);
            self.note(waits, error.as_ref());
        }
    }

    pub(super) fn failed(&self, error: &ReadError) {
        let done = self.wait.lock().take();
        if let Some((done, _, waits)) = done {
            done(Err(error.clone()));
            self.note(waits, Some(error));
        }
    }

    /// Records the read and its waits after it was answered.
    fn note(&self, waits: Vec<SpanWait>, error: Option<&ReadError>) {
        let data = &self.spans.data;
        let took_us = trace::micros(self.began.elapsed());
        self.spans.tally.waited(took_us);
        self.spans.context.waits.keep(ReadWait {
            at_ms: trace::now_ms(),
            image: data.image().to_string(),
            layer: data.digest().to_string(),
            number: data.files.number.0,
            offset: self.range.start,
            bytes: self.range.end - self.range.start,
            took_us,
            spans: waits,
            error: error.map(ToString::to_string),
        });
    }
}

impl Wait {
    fn take(&mut self) -> Option<(ReadDone, Vec<Held>, Vec<SpanWait>)> {
        let done = self.done.take()?;
        let (held, waits) = (&mut self.held, &mut self.waits);
        Some((done, std::mem::take(held), std::mem::take(waits)))
    }
}

impl Spans {
    /// Reads bytes of `data` of a layer with a zTOC. See `Layer::read`, which checks the range.
    pub(in crate::layer) fn read(self: &Arc<Self>, range: Range<u64>, done: ReadDone) {
        let Needs {
            mut missing,
            touched,
            checked,
        } = match self.data.needs(&range) {
            Ok(needs) => needs,
            Err(error) => return done(Err(error)),
        };
        self.note_start(&range, touched.clone().unwrap_or_default(), &missing);
        if let Some(touched) = touched {
            self.guess(touched);
        }
        if missing.is_empty() && checked {
            return self.data.answer(range, done);
        }
        if self.is_closed() {
            return done(Err(self.removed()));
        }
        let mut held = Vec::new();
        missing.retain(|span| {
            let spare = self.context.spare.get(self.data.files.number, *span);
            let fetch = spare.is_none();
            if let Some(spare) = spare {
                self.store_if_room(*span, &spare);
                held.push(spare);
            }
            fetch
        });
        let wait = Wait {
            missing: 0,
            held,
            waits: Vec::new(),
            done: Some(done),
        };
        let read = Arc::new(Read {
            spans: Arc::clone(self),
            range: range.clone(),
            began: Instant::now(),
            wait: Mutex::new(wait),
        });
        self.park(&read, &missing);
        if !missing.is_empty() {
            self.want_rest_of_file(range.end);
        }
    }

    /// Requests the rest of a file that a reader waits for, if the file is small. Programs and
    /// libraries are read in several places of the file, one after another.
    fn want_rest_of_file(self: &Arc<Self>, end: u64) {
        let places = &self.data.files.places;
        let file = places.files_in(end.saturating_sub(1)..end).next_back();
        let file = file.and_then(|index| places.file(index));
        let Some((file, ztoc)) = file.zip(self.data.ztoc()) else {
            return;
        };
        // Without space, only what is read is downloaded.
        if self.trouble.paused() == Some(Pause::Disk) {
            return;
        }
        let rest = file.tar + end.saturating_sub(file.data).min(file.size)..file.tar + file.size;
        if file.size > SMALL_FILE || rest.is_empty() {
            return;
        }
        self.want_next(ztoc.spans().covering(rest));
    }

    /// Notes which files the spans of a read are wanted for, if they are read for the first time.
    fn note_start(&self, range: &Range<u64>, touched: Range<u32>, missing: &[u32]) {
        for &span in missing {
            self.starts.waited(span);
            if !touched.contains(&span) && self.starts.read(span) {
                // The header of a file.
                self.starts.note(span, None, 0);
            }
        }
        let news = touched.filter(|span| self.starts.read(*span)).count();
        let Some(ztoc) = self.data.ztoc().filter(|_| news > 0) else {
            return;
        };
        for (index, tar) in self.data.files.places.tar_of_data(range.clone()) {
            let (Some(file), Ok(number)) =
                (self.data.files.places.file(index), u32::try_from(index))
            else {
                continue;
            };
            for span in ztoc.spans().covering(tar.clone()) {
                let from = ztoc.spans().uncompressed(SpanId(span)).start.max(tar.start);
                self.starts
                    .note(span, Some(number), from.saturating_sub(file.tar));
            }
        }
    }

    /// Makes a read a waiter of each missing span, and requests spans that are not requested yet.
    fn park(self: &Arc<Self>, read: &Arc<Read>, missing: &[u32]) {
        let mut effects = Vec::with_capacity(missing.len());
        if let Some(&last) = missing.last() {
            self.last_read.store(last, Ordering::Relaxed);
        }
        {
            let mut states = self.states.lock();
            for &span in missing {
                let wants = Event::Want(Class::Now, Some(Arc::clone(read)));
                match states.step(span, wants) {
                    Effect::Ready(_) => {}
                    effect => effects.push((span, effect)),
                }
            }
            // Waiters are answered only after this lock is released, so `missing` is set in time.
            read.wait.lock().missing = effects.len();
        }
        if effects.is_empty() {
            let read = Arc::clone(read);
            let cpu = &self.context.cpu;
            return cpu.spawn(Lane::Compute, move || read.arrived(None, None));
        }
        for (span, effect) in effects {
            self.carry_out(span, effect);
        }
        if self.is_closed() {
            self.close();
        }
    }

    /// Requests the spans that a sequential reader will need next.
    fn guess(self: &Arc<Self>, touched: Range<u32>) {
        let ahead = self.ahead.lock().read(touched);
        self.want_next(ahead.start..ahead.end.min(self.data.span_count()));
    }

    /// Requests those of these spans that are absent.
    fn want_next(self: &Arc<Self>, spans: impl Iterator<Item = u32>) {
        let (present, spare) = (&self.data.files.present, &self.context.spare);
        // In this order, because most reads find everything present.
        for span in spans {
            if !present.has(span)
                && !spare.has(self.data.files.number, span)
                && !self.trouble.is_bad_for_now(span)
            {
                self.step(span, Event::Want(Class::Next, None));
            }
        }
    }

    /// Wakes reads that waited for a span: the first on this pool thread, the others in their own
    /// jobs.
    pub(super) fn wake_all(&self, span: u32, waiters: Vec<Arc<Read>>, held: Option<&Held>) {
        if waiters.is_empty() {
            return;
        }
        let wait = self.times.wait(span);
        let mut waiters = waiters.into_iter();
        let first = waiters.next();
        for waiter in waiters {
            let (held, wait) = (held.cloned(), wait.clone());
            let cpu = &self.context.cpu;
            cpu.spawn(Lane::Compute, move || waiter.arrived(held, Some(wait)));
        }
        if let Some(first) = first {
            first.arrived(held.cloned(), Some(wait));
        }
    }

    /// Fails reads, on the pool.
    pub(super) fn fail_all(&self, waiters: Vec<Arc<Read>>, error: ReadError) {
        if waiters.is_empty() {
            return;
        }
        tracing::warn!(
            layer = %error.subject().layer,
            error = &error as &dyn std::error::Error,
            reads = waiters.len(),
            "reads fail"
        );
        self.context.cpu.spawn(Lane::Compute, move || {
            for waiter in waiters {
                waiter.failed(&error);
            }
        });
    }
}
