//! One read: what it needs, its wait, its answer.

use std::{io, io::IoSliceMut, ops::Range, os::unix::fs::FileExt};

use bytes::Bytes;
use rustix::io::ReadWriteFlags;
use soci_ztoc::{HeaderMismatch, SpanId};
use tokio::time::Instant;

use super::{
    Class, Layer, ReadDone, ReadError, SpanWait,
    headers::{MAX_HEADER, Mark},
    spans::{Effect, Event},
};
use crate::{
    cpu::{Cpu, Lane},
    places::Piece,
    sync::{Arc, Mutex},
};

/// Bytes of the tar in memory, for reads that do not wait for the disk.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) tar: Range<u64>,
    pub(super) bytes: Arc<Vec<u8>>,
}

impl Held {
    /// The bytes from `at` on, as far as they are here.
    fn from(&self, at: u64, len: u64) -> Option<&[u8]> {
        let start = at.checked_sub(self.tar.start)?;
        let end = len.min(self.tar.end.checked_sub(at)?);
        let start = usize::try_from(start).ok()?;
        let taken = self.bytes.get(start..)?;
        let taken = taken.get(..usize::try_from(end).ok()?)?;
        (!taken.is_empty()).then_some(taken)
    }
}

struct Wait {
    missing: usize,
    held: Vec<Held>,
    spans: Vec<SpanWait>,
    done: Option<ReadDone>,
}

/// A read that waits for spans.
pub(super) struct Read {
    layer: Arc<Layer>,
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
    /// One of its spans is there, in the store or `held`.
    pub(super) fn arrived(self: Arc<Self>, held: Option<Held>, span: Option<SpanWait>) {
        let ready = {
            let mut wait = self.wait.lock();
            wait.missing = wait.missing.saturating_sub(1);
            wait.held.extend(held);
            wait.spans.extend(span);
            if wait.missing == 0 { wait.take() } else { None }
        };
        if let Some((done, held, spans)) = ready {
            let answer = self.layer.finish(&self.range, &held);
            let error = answer.as_ref().err().cloned();
            done(answer);
            self.layer
                .note_wait(&self.range, self.began, spans, error.as_ref());
        }
    }

    pub(super) fn failed(&self, error: &ReadError) {
        let done = self.wait.lock().take();
        if let Some((done, _, spans)) = done {
            done(Err(error.clone()));
            self.layer
                .note_wait(&self.range, self.began, spans, Some(error));
        }
    }
}

impl Wait {
    fn take(&mut self) -> Option<(ReadDone, Vec<Held>, Vec<SpanWait>)> {
        let (held, spans) = (
            std::mem::take(&mut self.held),
            std::mem::take(&mut self.spans),
        );
        Some((self.done.take()?, held, spans))
    }
}

/// Lets reads go on: the first here (this is a thread of the pool), the others beside it.
pub(super) fn wake_all(cpu: &Cpu, waiters: Vec<Arc<Read>>, held: Option<&Held>, span: &SpanWait) {
    let mut waiters = waiters.into_iter();
    let first = waiters.next();
    for waiter in waiters {
        let (held, span) = (held.cloned(), span.clone());
        cpu.spawn(Lane::Compute, move || waiter.arrived(held, Some(span)));
    }
    if let Some(first) = first {
        first.arrived(held.cloned(), Some(span.clone()));
    }
}

/// Tells reads an error, on the pool.
pub(super) fn fail_all(cpu: &Cpu, waiters: Vec<Arc<Read>>, error: ReadError) {
    if waiters.is_empty() {
        return;
    }
    tracing::warn!(
        layer = %error.subject().layer,
        error = &error as &dyn std::error::Error,
        reads = waiters.len(),
        "reads fail"
    );
    cpu.spawn(Lane::Compute, move || {
        for waiter in waiters {
            waiter.failed(&error);
        }
    });
}

impl Layer {
    /// Bytes of `data`. `done` is called exactly once: before this returns, on this thread, if everything is in memory and
    /// checked; else later, on the pool. Waits neither for the network nor for the disk. Head and tail of `data` are always
    /// there.
    pub fn read(self: &Arc<Self>, range: Range<u64>, done: ReadDone) {
        if range.start > range.end || range.end > self.data_size() {
            let (start, end) = (range.start, range.end);
            return done(Err(ReadError::Outside {
                subject: self.subject(None),
                start,
                end,
            }));
        }
        if self.ztoc().is_none() || self.is_complete() {
            return self.answer(range, done);
        }
        let (mut missing, checked) = match self.needs(&range) {
            Ok(needs) => needs,
            Err(entry) => return done(Err(self.header_error(entry, None))),
        };
        if missing.is_empty() && checked {
            return self.answer(range, done);
        }
        if self.is_closed() {
            return done(Err(ReadError::Removed {
                subject: self.subject(None),
            }));
        }
        let mut held = Vec::new();
        missing.retain(
            |span| match self.context.spare.get(self.files.number, *span) {
                Some(spare) => {
                    held.push(spare);
                    false
                }
                None => true,
            },
        );
        let wait = Wait {
            missing: 0,
            held,
            spans: Vec::new(),
            done: Some(done),
        };
        let read = Arc::new(Read {
            layer: Arc::clone(self),
            range,
            began: Instant::now(),
            wait: Mutex::new(wait),
        });
        self.park(&read, &missing);
    }

    /// Makes a read a waiter of each missing span, and asks for those nobody has asked for.
    fn park(self: &Arc<Self>, read: &Arc<Read>, missing: &[u32]) {
        let mut effects = Vec::with_capacity(missing.len());
        let waits = {
            let mut spans = self.spans.lock();
            for &id in missing {
                let Some(span) = spans.get_mut(id as usize) else {
                    continue;
                };
                match span.step(Event::Want(Class::Now, Some(Arc::clone(read)))) {
                    Effect::Ready(_) => {}
                    effect => effects.push((id, effect)),
                }
            }
            // Waiters leave a span under the lock only: none has gone on yet.
            read.wait.lock().missing = effects.len();
            effects.len()
        };
        if waits == 0 {
            let read = Arc::clone(read);
            return self
                .context
                .cpu
                .spawn(Lane::Compute, move || read.arrived(None, None));
        }
        for (id, effect) in effects {
            self.carry_out(id, effect);
        }
        if self.is_closed() {
            self.close();
        }
    }

    /// The spans a range of `data` needs that are not there, and whether all headers it needs are known to agree. The error
    /// is an entry whose header disagrees.
    fn needs(self: &Arc<Self>, range: &Range<u64>) -> Result<(Vec<u32>, bool), usize> {
        let Some(ztoc) = self.ztoc() else {
            return Ok((Vec::new(), true));
        };
        let (mut missing, mut checked) = (Vec::new(), true);
        let mut touched: Option<Range<u32>> = None;
        let mut need = |tar: Range<u64>| {
            let ids = ztoc.spans().covering(tar);
            missing.extend(ids.clone().filter(|id| !self.files.present.has(*id)));
            ids
        };
        for (index, tar) in self.files.places.tar_of_data(range.clone()) {
            let Some(file) = self.files.places.file(index) else {
                continue;
            };
            let entry = file.entry as usize;
            match self.headers.mark(entry) {
                Mark::Agreed => {}
                Mark::Disagreed => return Err(entry),
                Mark::Unknown => {
                    checked = false;
                    let header = self.files.places.header(entry).unwrap_or(0..0);
                    // A larger one is refused without a look at it.
                    if header.end - header.start <= MAX_HEADER {
                        need(header);
                    }
                }
            }
            let ids = need(tar);
            let start = touched
                .as_ref()
                .map_or(ids.start, |seen| seen.start.min(ids.start));
            let end = touched
                .as_ref()
                .map_or(ids.end, |seen| seen.end.max(ids.end));
            touched = Some(start..end);
        }
        missing.sort_unstable();
        missing.dedup();
        if let Some(touched) = touched {
            self.guess(touched);
        }
        Ok((missing, checked))
    }

    /// Asks for what a sequential reader will want next.
    fn guess(self: &Arc<Self>, touched: Range<u32>) {
        let ahead = self.ahead.lock().read(touched);
        let end = u32::try_from(self.files.present.len()).unwrap_or(u32::MAX);
        for id in ahead.start..ahead.end.min(end) {
            if !self.files.present.has(id) && !self.context.spare.has(self.files.number, id) {
                self.step(id, Event::Want(Class::Next, None));
            }
        }
    }

    /// Every span is there or held: checks the headers, then takes the bytes. On the pool.
    fn finish(self: &Arc<Self>, range: &Range<u64>, held: &[Held]) -> Result<Bytes, ReadError> {
        for index in self.files.places.files_in(range.clone()) {
            let Some(file) = self.files.places.file(index) else {
                continue;
            };
            if file.data >= range.end || file.data + file.size <= range.start {
                continue;
            }
            self.check_header(file.entry as usize, held)?;
        }
        self.bytes_of(range, held)
    }

    /// Checks the header of one entry unless that was done. Its bytes must be there.
    pub(super) fn check_header(&self, entry: usize, held: &[Held]) -> Result<(), ReadError> {
        match self.headers.mark(entry) {
            Mark::Agreed => return Ok(()),
            Mark::Disagreed => return Err(self.header_error(entry, None)),
            Mark::Unknown => {}
        }
        let range = self.files.places.header(entry).unwrap_or(0..0);
        let header = if range.end - range.start > MAX_HEADER {
            Vec::new()
        } else {
            self.tar_bytes(range, held)
                .map_err(|source| self.store_error(source))?
        };
        self.check_header_bytes(entry, &header)
    }

    /// Settles one header from its bytes.
    pub(super) fn check_header_bytes(&self, entry: usize, header: &[u8]) -> Result<(), ReadError> {
        let Some(ztoc) = self.ztoc() else {
            return Ok(());
        };
        let view = ztoc.view();
        let Some(stated) = view.entry(entry) else {
            return Ok(());
        };
        match self.headers.check(entry, &stated, header) {
            (_, Ok(())) => Ok(()),
            (first, Err(mismatch)) => {
                let error = self.header_error(entry, Some(mismatch));
                if first {
                    tracing::error!(
                        layer = %self.files.key.layer,
                        error = &error as &dyn std::error::Error,
                        "a file is not what its index says; it is not shown"
                    );
                    self.trouble.note(&error);
                }
                Err(error)
            }
        }
    }

    fn header_error(&self, entry: usize, mismatch: Option<HeaderMismatch>) -> ReadError {
        let range = self.files.places.header(entry).unwrap_or(0..0);
        let (mut file, mut span) = (Arc::from(""), 0);
        if let Some(ztoc) = self.ztoc() {
            span = ztoc
                .spans()
                .covering(range.start..range.end.max(range.start + 1))
                .start;
            if let Some(entry) = ztoc.view().entry(entry) {
                file = Arc::from(String::from_utf8_lossy(entry.name));
            }
        }
        let source = mismatch.unwrap_or(HeaderMismatch::Field("header, as found before"));
        ReadError::Header {
            subject: self.subject(Some(span)),
            file,
            source: Arc::new(source),
        }
    }

    pub(super) fn store_error(&self, source: io::Error) -> ReadError {
        let error = ReadError::Store {
            subject: self.subject(None),
            source: Arc::new(source),
        };
        self.trouble.note(&error);
        error
    }

    /// Answers with bytes that are all there: at once if they are in the page cache, else on the pool. The caller's thread
    /// serves every layer of the node, and never waits for the disk.
    fn answer(self: &Arc<Self>, range: Range<u64>, done: ReadDone) {
        if let Some(bytes) = self.cached(&range) {
            return done(Ok(bytes));
        }
        let layer = Arc::clone(self);
        self.context.cpu.spawn(Lane::Compute, move || {
            done(layer.bytes_of(&range, &[]));
        });
    }

    /// Bytes of `data` that need no I/O.
    fn cached(&self, range: &Range<u64>) -> Option<Bytes> {
        let mut buffer = vec![0; usize::try_from(range.end - range.start).ok()?];
        let contents = self.files.places.contents();
        let (from, to) = (range.start.max(contents.start), range.end.min(contents.end));
        if from < to {
            let place = |at| usize::try_from(at - range.start).ok();
            let part = buffer.get_mut(place(from)?..place(to)?)?;
            let (wanted, flags) = (part.len(), ReadWriteFlags::NOWAIT);
            let mut slices = [IoSliceMut::new(part)];
            let read = rustix::io::preadv2(&self.files.data, &mut slices, from, flags);
            // A part of it is as good as nothing: what is missing is read with the rest.
            read.ok().filter(|read| *read == wanted)?;
        }
        Some(Bytes::from(buffer))
    }

    fn bytes_of(&self, range: &Range<u64>, held: &[Held]) -> Result<Bytes, ReadError> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut buffer = vec![0; length];
        let read = if held.is_empty() {
            self.contents_of(range, &mut buffer)
        } else {
            self.patchwork(range, &mut buffer, held)
        };
        read.map_err(|source| self.store_error(source))?;
        Ok(Bytes::from(buffer))
    }

    /// Bytes of `data` into a buffer of zeros. Head and tail are zeros whatever the disk says: nothing is read there.
    fn contents_of(&self, range: &Range<u64>, buffer: &mut [u8]) -> io::Result<()> {
        let contents = self.files.places.contents();
        let from = range.start.max(contents.start);
        let to = range.end.min(contents.end);
        if from >= to {
            return Ok(());
        }
        let place = |at| usize::try_from(at - range.start).unwrap_or(usize::MAX);
        match buffer.get_mut(place(from)..place(to)) {
            Some(part) => self.files.data.read_exact_at(part, from),
            None => Ok(()),
        }
    }

    /// Bytes of `data` when some of them are only in memory.
    fn patchwork(&self, range: &Range<u64>, buffer: &mut [u8], held: &[Held]) -> io::Result<()> {
        for (index, tar) in self.files.places.tar_of_data(range.clone()) {
            let Some(file) = self.files.places.file(index) else {
                continue;
            };
            let at = file.data + (tar.start - file.tar) - range.start;
            let content = self.tar_bytes(tar, held)?;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(part) = buffer.get_mut(at..at.saturating_add(content.len())) {
                part.copy_from_slice(&content);
            }
        }
        Ok(())
    }

    /// Bytes of the tar: from memory where they are held, else from `data` and `heads`.
    pub(super) fn tar_bytes(&self, tar: Range<u64>, held: &[Held]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(usize::try_from(tar.end - tar.start).unwrap_or(0));
        for piece in self.files.places.pieces(tar) {
            let (file, mut at, mut place, mut len) = match piece {
                Piece::Data { tar, data, len } => (&self.files.data, tar, data, len),
                Piece::Heads { tar, heads, len } => (&self.files.heads, tar, heads, len),
            };
            while len > 0 {
                if let Some(part) = held.iter().find_map(|held| held.from(at, len)) {
                    out.extend_from_slice(part);
                    let taken = part.len() as u64;
                    (at, place, len) = (at + taken, place + taken, len - taken);
                    continue;
                }
                let next = held
                    .iter()
                    .map(|held| held.tar.start)
                    .filter(|start| *start > at)
                    .min();
                let run = next.map_or(len, |next| len.min(next - at));
                let from = out.len();
                out.resize(from + usize::try_from(run).unwrap_or(usize::MAX), 0);
                file.read_exact_at(&mut out[from..], place)?;
                (at, place, len) = (at + run, place + run, len - run);
            }
        }
        Ok(out)
    }

    /// Whether all spans that hold a range of the tar are there.
    pub(super) fn has_tar(&self, tar: Range<u64>) -> bool {
        self.ztoc().is_none_or(|ztoc| {
            ztoc.spans()
                .covering(tar)
                .all(|id| self.files.present.has(SpanId(id).0))
        })
    }
}
