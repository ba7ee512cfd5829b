//! One request in flight. It cuts the body into pieces and delivers each piece when it is complete.
//!
//! A request has deadlines ([`Line`]) for its first byte and for every few kilobytes after that.
//! Time in which it does not read, because it is paused or waits for memory, does not count against
//! the request or its source.

use std::time::Duration;

use bytes::Bytes;
use soci_oci::Digest;
use soci_registry::fetch::{Concern, FetchError};
use tokio::time::{Instant, timeout};

use super::{
    Class, Delivery, PieceId, Shared, Source,
    driver::SLOW,
    line::Line,
    queue::{FlightId, Request},
    share::Held,
};
use crate::metrics::{self, Timed};
use crate::sync::{Arc, atomic::Ordering};

mod buffer;

use buffer::Buffer;

/// If reader bytes arrived this recently, the link belongs to the reader.
const ARRIVING: Duration = Duration::from_millis(200);
/// How often a paused body checks again, in case the reader's request stalls.
const PAUSE: Duration = Duration::from_millis(100);
/// Permits are counted in KiB, rounded up.
pub(super) fn kib(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX >> 4)
}

/// Returns its slot and the undelivered pieces when dropped, no matter how the request ends.
struct Flight {
    shared: Arc<Shared>,
    request: Request,
    source: Source,
    /// When the request was made.
    asked: Instant,
    /// When the request last received a byte, or started to wait for the first one.
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
                // Dropped during a panic: treated as an outage so that the request is not repeated
                // immediately.
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
                    // Parked waiters may depend on this outcome.
                    state.unpark_at = Some(now);
                }
                Some(error) => {
                    tracing::warn!(
                        source = &*self.source.name,
                        blob = %blob,
                        error = %error,
                        "a registry refused a range request"
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

/// Makes the request and delivers its pieces. Undelivered pieces go back to the queue.
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
        metrics::global().operations.took(
            Timed::RegistryGet,
            &self.request.blob,
            self.asked.elapsed(),
        );
        let mut chunk = Bytes::new();
        // The byte before `chunk`. Neighboring pieces may share one byte.
        let mut before: Option<u8> = None;
        for (id, range) in pieces {
            let mut buffer: Option<Buffer> = None;
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
                    let shared = before.filter(|_| range.start + 1 == at);
                    buffer = Some(self.begin(id, &range, shared, &mut line).await);
                }
                let here = usize::try_from(range.end - at)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                let part = chunk.split_to(here);
                at += part.len() as u64;
                before = part.last().copied();
                match &mut buffer {
                    Some(buffer) if wanted => buffer.push(part),
                    _ => buffer = None,
                }
            }
            if let Some(buffer) = buffer {
                let (bytes, permit) = buffer.complete();
                self.deliver(id, bytes, permit);
            }
        }
        Ok(())
    }

    /// The current urgency. `None` if nothing that is left is wanted.
    fn class(&self) -> Option<Class> {
        let state = self.shared.state.lock();
        state.queue.flight_class(self.request.flight)
    }

    fn carries(&self, id: PieceId) -> bool {
        let state = self.shared.state.lock();
        state.queue.carries(self.request.flight, id)
    }

    /// Takes memory of the current class of the request, even if the class changes while it waits.
    async fn permit(&mut self, bytes: u64) -> Option<Held> {
        let shared = Arc::clone(&self.shared);
        let permit = 'class: loop {
            let class = self.class().unwrap_or(self.request.class);
            let memory = shared.memory(class);
            let mut taking = std::pin::pin!(memory.take(&self.source.host, kib(bytes)));
            loop {
                let mut changed = std::pin::pin!(shared.gate.notified());
                // Register before checking. Otherwise a change in between would be missed.
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

    /// Opens a body that starts at this byte.
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

    /// Waits until a body of this class may be read ([`Shared::may_read`]). A body that would occupy
    /// the link meanwhile is closed, and opened again at this byte later.
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
        // Time spent paused must not count as an outage.
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
        // A request that was paused says nothing about the round trip.
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
    /// Whether this request may continue to read. Readers always may. While a reader or a pull waits
    /// for its bytes, only the oldest `All` request of each host may read, and on a slow link none
    /// once the bytes arrive. `Pull` is limited to the oldest request while readers read.
    fn may_read(&self, flight: FlightId, now: Instant) -> bool {
        let state = self.state.lock();
        let Some(class @ (Class::Pull | Class::All)) = state.queue.flight_class(flight) else {
            return true;
        };
        let Some(own) = state.flights.get(&flight) else {
            return true;
        };
        let is_all = class == Class::All;
        let is_fast = state.meter.is_fast();
        let mut limited = is_all && self.held_back.load(Ordering::Relaxed) > 0;
        let mut oldest = flight;
        for (&other, aloft) in &state.flights {
            let Some(of) = state.queue.flight_class(other) else {
                continue;
            };
            let is_same_host = aloft.host == own.host;
            if of == class {
                if is_same_host {
                    oldest = oldest.min(other);
                }
            } else if of == Class::Now || of == Class::Pull && is_all {
                let silent = aloft.silent_for(now);
                let arrives = aloft.last.is_some() && silent < ARRIVING;
                if is_all && arrives && !is_fast {
                    return false;
                }
                // A request that waits for a host that hangs does not need the link.
                limited |= is_same_host || silent < SLOW;
            }
        }
        !limited || oldest == flight
    }
}

/// Requests one byte from a scope whose budget is spent.
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
            // A refusal also proves that the source responds.
            Ok(_) | Err(_) => {
                state.health.delivered(&source, blob);
            }
        }
        state.unpark_at = Some(now);
    }
    shared.wake.notify_one();
}
