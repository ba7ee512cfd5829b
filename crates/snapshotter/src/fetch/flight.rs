//! One request in the air: its bytes are cut into pieces and handed over, piece by piece, as they complete.
//!
//! It has deadlines ([`Line`]): for its first byte, then for each few kilobytes. Time in which it does not read, because it is
//! paused or waits for memory, counts neither against it nor against its source.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use soci_oci::{
    Digest,
    fetch::{Concern, FetchError},
};
use tokio::time::{Instant, timeout};

use super::{
    Class, Delivery, PieceId, Shared, Source,
    line::Line,
    queue::{FlightId, Request},
    share::Held,
};
use crate::sync::{Arc, atomic::Ordering};

/// Reader bytes that came this recently: the line is theirs.
const ARRIVING: Duration = Duration::from_millis(200);
/// A paused body looks again this often, in case the reader's request stalls.
const PAUSE: Duration = Duration::from_millis(100);
/// Permits are counted in KiB, rounded up.
pub(super) fn kib(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX >> 4)
}

/// Gives back, however the request ends, what it holds: its slot and the pieces that it did not deliver.
struct Flight {
    shared: Arc<Shared>,
    request: Request,
    source: Source,
    /// When it was asked for.
    asked: Instant,
    /// When it last got a byte, at first when it began to wait.
    since: Instant,
    failure: Option<FetchError>,
    done: bool,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let now = Instant::now();
        {
            let mut state = self.shared.state.lock();
            let state = &mut *state;
            let Request {
                class,
                image,
                flight,
                blob,
                ..
            } = &self.request;
            state.running.end(*class, image, &self.source.host);
            state.flights.remove(flight);
            let left = state.queue.give_back(*flight);
            let failure = self.failure.take().or_else(|| {
                // Dropped in the middle of a panic: treated as an outage so that it is not repeated at once.
                let range = self.request.range();
                let (start, end) = (range.start, range.end);
                (!self.done && std::thread::panicking()).then_some(FetchError::OutsideBlob {
                    start,
                    end,
                    size: 0,
                })
            });
            match failure {
                Some(error) if error.is_transient() || !self.done && std::thread::panicking() => {
                    state
                        .health
                        .failed(&self.source, *blob, self.since, now, error);
                    // Who is parked may have waited for the outcome.
                    state.unpark_at = Some(now);
                }
                Some(error) => {
                    tracing::warn!(
                        source = &*self.source.name,
                        blob = %blob,
                        error = %error,
                        "a source refuses a range"
                    );
                    let concern = error.concern();
                    state.health.answered_before(&self.source, *blob, concern);
                    state.health.release(&self.source, *blob, now);
                    for id in left {
                        let Some(piece) = state.queue.get_mut(id) else {
                            continue;
                        };
                        for waiter in &mut piece.waiters {
                            waiter.refused_by(&self.source, &error, now);
                        }
                    }
                }
                None => state.health.release(&self.source, *blob, now),
            }
        }
        self.shared.gate.notify_waiters();
        self.shared.wake.notify_one();
    }
}

/// Makes the request and delivers its pieces. What is left at the end goes back to the queue.
pub(super) async fn fly(shared: Arc<Shared>, request: Request, source: Source) {
    let since = Instant::now();
    let begun = shared
        .state
        .lock()
        .flights
        .get(&request.flight)
        .map(|aloft| aloft.begun);
    let mut flight = Flight {
        shared,
        request,
        source,
        asked: begun.unwrap_or(since),
        since,
        failure: None,
        done: false,
    };
    match flight.run().await {
        Ok(()) => {}
        Err(error) => flight.failure = Some(error),
    }
    flight.done = true;
}

impl Flight {
    async fn run(&mut self) -> Result<(), FetchError> {
        let pieces = self.request.pieces.clone();
        let mut at = self.request.range().start;
        let mut line = self.open(at).await?;
        let mut chunk = Bytes::new();
        // The byte in front of `chunk`: neighbours may share one.
        let mut before: Option<u8> = None;
        for (id, range) in pieces {
            let mut buffer: Option<(BytesMut, Option<Held>)> = None;
            while at < range.end {
                if chunk.is_empty() {
                    if self.class().is_none() {
                        return Ok(());
                    }
                    line = self.pass_gate(line, at).await?;
                    chunk = match line.next().await? {
                        Some(chunk) => chunk,
                        None => return Ok(()),
                    };
                    self.arrived(at, chunk.len() as u64, &line);
                }
                let wanted = self.carries(id);
                if wanted && buffer.is_none() {
                    // Only now: a source that says nothing holds no memory.
                    let waits = Instant::now();
                    let permit = self.permit(range.end - range.start).await;
                    if waits.elapsed() > PAUSE {
                        line.resumed();
                    }
                    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                    let mut bytes = BytesMut::with_capacity(length);
                    if range.start + 1 == at {
                        bytes.extend_from_slice(before.as_slice());
                    }
                    buffer = Some((bytes, permit));
                }
                let here = usize::try_from(range.end - at)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                let part = chunk.split_to(here);
                at += part.len() as u64;
                before = part.last().copied();
                match &mut buffer {
                    Some((bytes, _)) if wanted => bytes.extend_from_slice(&part),
                    _ => buffer = None,
                }
            }
            if let Some((bytes, permit)) = buffer {
                self.deliver(id, bytes.freeze(), permit);
            }
        }
        Ok(())
    }

    /// How urgent it is now; `None` when nobody wants what it has left.
    fn class(&self) -> Option<Class> {
        let state = self.shared.state.lock();
        state.queue.flight_class(self.request.flight)
    }

    fn carries(&self, id: PieceId) -> bool {
        let state = self.shared.state.lock();
        state.queue.carries(self.request.flight, id)
    }

    /// Memory of the class that the request has now, even if that changes while it waits.
    async fn permit(&mut self, bytes: u64) -> Option<Held> {
        let shared = Arc::clone(&self.shared);
        let permit = 'class: loop {
            let class = self.class().unwrap_or(self.request.class);
            let memory = shared.memory(class);
            let mut taking = std::pin::pin!(memory.take(&self.source.host, kib(bytes)));
            loop {
                let mut changed = std::pin::pin!(shared.gate.notified());
                // Registered before looking, or a change in between would be missed.
                changed.as_mut().enable();
                if self.class().unwrap_or(class) != class {
                    continue 'class;
                }
                tokio::select! {
                    biased;
                    permit = &mut taking => break 'class permit,
                    () = changed => {}
                }
            }
        };
        self.since = Instant::now();
        permit
    }

    /// A body from this byte on.
    async fn open(&self, at: u64) -> Result<Line, FetchError> {
        let background = self.class().unwrap_or(self.request.class) == Class::All;
        let range = at..self.request.range().end;
        Line::open(
            &self.source,
            range,
            background,
            self.shared.options.first_byte,
        )
        .await
    }

    /// Waits until a body of this class may be read. See the rules of [`super`]. One that would fill the line meanwhile is
    /// closed, and asked for again from this byte on.
    async fn pass_gate(&mut self, line: Line, at: u64) -> Result<Line, FetchError> {
        if self.shared.may_read(self.request.flight, Instant::now()) {
            return Ok(line);
        }
        let rest = self.request.range().end - at;
        let closes = !line.skips() && self.shared.state.lock().meter.is_long(rest);
        let mut line = Some(line).filter(|_| !closes);
        self.paused(true);
        loop {
            let opened = self.shared.gate.notified();
            if self.shared.may_read(self.request.flight, Instant::now()) {
                break;
            }
            drop(timeout(PAUSE, opened).await);
        }
        // A pause is nobody's outage.
        self.since = Instant::now();
        self.paused(false);
        match line.take() {
            Some(mut line) => {
                line.resumed();
                Ok(line)
            }
            None => self.open(at).await,
        }
    }

    fn paused(&self, paused: bool) {
        let mut state = self.shared.state.lock();
        if let Some(aloft) = state.flights.get_mut(&self.request.flight) {
            (aloft.paused, aloft.begun) = (paused, Instant::now());
        }
    }

    fn arrived(&mut self, at: u64, bytes: u64, line: &Line) {
        let now = Instant::now();
        self.since = now;
        self.request.position.store(at + bytes, Ordering::Relaxed);
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        if line.is_fresh(now) {
            state.meter.came(bytes, now);
        }
        let Some(aloft) = state.flights.get_mut(&self.request.flight) else {
            return;
        };
        let first = aloft.last.replace(now).is_none();
        // Whoever has been paused says nothing of the round trip.
        if first && self.asked == aloft.begun {
            state.meter.answered(now - aloft.begun, now);
        }
        let health = &mut state.health;
        if first && health.answered_before(&self.source, self.request.blob, Concern::Blob) {
            state.unpark_at = Some(now);
            self.shared.wake.notify_one();
        }
    }

    fn deliver(&self, id: PieceId, bytes: Bytes, permit: Option<Held>) {
        let piece = {
            let mut state = self.shared.state.lock();
            let state = &mut *state;
            let piece = state.queue.finish(self.request.flight, id);
            if state.health.delivered(&self.source, self.request.blob) {
                state.unpark_at = Some(Instant::now());
                self.shared.wake.notify_one();
            }
            piece
        };
        let Some(piece) = piece else { return };
        self.shared.gate.notify_waiters();
        let all = self.shared.memory(Class::All);
        let may_wait =
            piece.class == Class::All && permit.as_ref().is_none_or(|held| held.is_of(all));
        let permit = permit.map(Arc::new);
        for waiter in piece.waiters {
            (waiter.sink)(Ok(Delivery {
                bytes: bytes.clone(),
                source: Arc::clone(&self.source.name),
                class: piece.class,
                asked: self.asked,
                may_wait,
                _permit: permit.clone(),
            }));
        }
    }
}

impl Shared {
    /// Whether this request may read on: readers always; `All` not while a reader's bytes arrive, and of each host only the
    /// oldest of them while a reader waits for its first.
    fn may_read(&self, flight: FlightId, now: Instant) -> bool {
        let state = self.state.lock();
        if state.queue.flight_class(flight) != Some(Class::All) {
            return true;
        }
        let own = state.flights.get(&flight);
        let mut reader = self.held_back.load(Ordering::Relaxed) > 0;
        let mut oldest = flight;
        for (&other, aloft) in &state.flights {
            match state.queue.flight_class(other) {
                Some(Class::Now) => match aloft.last {
                    Some(last) if now.saturating_duration_since(last) < ARRIVING => return false,
                    _ => reader = true,
                },
                Some(Class::All) if own.is_some_and(|own| own.host == aloft.host) => {
                    oldest = oldest.min(other);
                }
                Some(Class::Next | Class::All) | None => {}
            }
        }
        !reader || oldest == flight
    }
}

/// Asks what has spent its budget for one byte of what is wanted of it.
pub(super) async fn probe(shared: Arc<Shared>, source: Source, blob: Digest, at: u64) {
    let since = Instant::now();
    let first = shared.options.first_byte;
    let answer = async {
        let mut line = Line::open(&source, at..at + 1, false, first).await?;
        line.next().await
    };
    let answer = answer.await;
    {
        let now = Instant::now();
        let mut state = shared.state.lock();
        let state = &mut *state;
        match answer {
            Err(error) if error.is_transient() => {
                state.health.failed(&source, blob, since, now, error);
            }
            // Any answer, also a refusal, is an answer of a source that is there.
            Ok(_) | Err(_) => {
                state.health.delivered(&source, blob);
            }
        }
        state.unpark_at = Some(now);
    }
    shared.wake.notify_one();
}
