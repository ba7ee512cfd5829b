//! One request in the air: its bytes are cut into pieces and handed over, piece by piece, as they complete.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use soci_oci::fetch::FetchError;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};

use super::{Class, Delivery, Shared, Source, queue::Request};
use crate::sync::{Arc, atomic::Ordering};

/// Reader bytes that came this recently: the line is theirs.
const ARRIVING: Duration = Duration::from_millis(200);
/// A paused body looks again this often, in case the reader's request stalls.
const PAUSE: Duration = Duration::from_millis(100);

/// Permits are counted in KiB, rounded up.
pub(super) fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024))
        .unwrap_or(u32::MAX >> 4)
        .min(u32::MAX >> 4)
}

/// Gives back, however the request ends, what it holds: its slot and the pieces that it did not deliver.
struct Flight {
    shared: Arc<Shared>,
    request: Request,
    source: Source,
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
            state.running.end(self.request.class, &self.request.image);
            state.received.remove(&self.request.flight);
            let left = state.queue.give_back(self.request.flight);
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
                        .outages
                        .failed(&self.source.name, self.since, now, error);
                }
                Some(error) => {
                    tracing::warn!(
                        source = &*self.source.name,
                        blob = %self.request.blob,
                        error = %error,
                        "a source refuses a range"
                    );
                    for id in left {
                        let Some(piece) = state.queue.get_mut(id) else {
                            continue;
                        };
                        for waiter in &mut piece.waiters {
                            let name = Arc::clone(&self.source.name);
                            waiter.refused.push((name, error.clone(), now));
                        }
                    }
                }
                None => {}
            }
        }
        self.shared.gate.notify_waiters();
        self.shared.wake.notify_one();
    }
}

/// Makes the request and delivers its pieces. What is left at the end goes back to the queue.
pub(super) async fn fly(shared: Arc<Shared>, request: Request, source: Source) {
    let since = Instant::now();
    let mut flight = Flight {
        shared,
        request,
        source,
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
        let mut permit = match pieces.first() {
            Some((_, first)) => Some(self.permit(first.end - first.start).await),
            None => return Ok(()),
        };
        self.since = Instant::now();
        let mut body = self.source.fetcher.fetch(self.request.range()).await?;
        let mut at = self.request.range().start;
        let mut chunk = Bytes::new();
        // The byte in front of `chunk`: neighbours may share one.
        let mut before: Option<u8> = None;
        for (id, range) in pieces {
            let wanted = self
                .shared
                .state
                .lock()
                .queue
                .carries(self.request.flight, id);
            if !wanted
                && self
                    .shared
                    .state
                    .lock()
                    .queue
                    .flight_class(self.request.flight)
                    .is_none()
            {
                return Ok(());
            }
            let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let mut buffer = BytesMut::new();
            if wanted {
                if permit.is_none() {
                    permit = Some(self.permit(range.end - range.start).await);
                }
                buffer.reserve(length);
                if range.start + 1 == at {
                    buffer.extend_from_slice(before.as_slice());
                }
            }
            while at < range.end {
                if chunk.is_empty() {
                    self.pass_gate().await;
                    chunk = match body.next().await? {
                        Some(chunk) => chunk,
                        None => return Ok(()),
                    };
                    self.arrived(at);
                }
                let here = usize::try_from(range.end - at)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                let part = chunk.split_to(here);
                at += part.len() as u64;
                before = part.last().copied();
                if wanted {
                    buffer.extend_from_slice(&part);
                }
            }
            if wanted {
                self.deliver(id, buffer.freeze(), permit.take());
            }
        }
        Ok(())
    }

    async fn permit(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let options = &self.shared.options;
        let (memory, most) = match self.request.class {
            Class::All => (&self.shared.all_memory, options.all_memory),
            Class::Now | Class::Next => (&self.shared.urgent_memory, options.urgent_memory),
        };
        // A piece larger than the whole memory goes alone.
        let permits = kib(bytes).min(kib(most as u64));
        Arc::clone(memory).acquire_many_owned(permits).await.ok()
    }

    /// Waits until a body of this class may be read. See the rules of [`super`].
    async fn pass_gate(&self) {
        loop {
            let opened = self.shared.gate.notified();
            if self.shared.may_read(self.request.flight, Instant::now()) {
                return;
            }
            drop(timeout(PAUSE, opened).await);
        }
    }

    fn arrived(&mut self, at: u64) {
        self.since = Instant::now();
        self.request.position.store(at, Ordering::Relaxed);
        let mut state = self.shared.state.lock();
        let first = state.received.insert(self.request.flight, Some(self.since)) == Some(None);
        let ended = first && state.outages.answered(&self.source.name);
        if ended {
            state.queue.unpark();
            drop(state);
            self.shared.wake.notify_one();
        }
    }

    fn deliver(
        &self,
        id: super::PieceId,
        bytes: Bytes,
        permit: Option<Option<OwnedSemaphorePermit>>,
    ) {
        let piece = self
            .shared
            .state
            .lock()
            .queue
            .finish(self.request.flight, id);
        let Some(piece) = piece else { return };
        self.shared.gate.notify_waiters();
        let permit = permit.flatten().map(Arc::new);
        for waiter in piece.waiters {
            (waiter.sink)(Ok(Delivery {
                bytes: bytes.clone(),
                source: Arc::clone(&self.source.name),
                class: piece.class,
                _permit: permit.clone(),
            }));
        }
    }
}

impl Shared {
    /// Whether this request may read on: readers always; `All` not while a reader's bytes arrive, and only the oldest of
    /// them while a reader waits for its first.
    fn may_read(&self, flight: super::queue::FlightId, now: Instant) -> bool {
        let state = self.state.lock();
        if state.queue.flight_class(flight) != Some(Class::All) {
            return true;
        }
        let mut reader = self.held_back.load(Ordering::Relaxed) > 0;
        let mut oldest = flight;
        for (&other, last) in &state.received {
            match state.queue.flight_class(other) {
                Some(Class::Now) => match last {
                    Some(last) if now.saturating_duration_since(*last) < ARRIVING => return false,
                    _ => reader = true,
                },
                Some(Class::All) => oldest = oldest.min(other),
                Some(Class::Next) | None => {}
            }
        }
        !reader || oldest == flight
    }
}

/// Asks a source whose budget is spent for one byte.
pub(super) async fn probe(shared: Arc<Shared>, source: Source) {
    let since = Instant::now();
    let answer = async {
        let mut body = source.fetcher.fetch(0..1).await?;
        body.next().await
    };
    match answer.await {
        Err(error) if error.is_transient() => {
            let mut state = shared.state.lock();
            state
                .outages
                .failed(&source.name, since, Instant::now(), error);
        }
        // Any answer, also a refusal, is an answer of a source that is there.
        Ok(_) | Err(_) => {
            let mut state = shared.state.lock();
            state.outages.answered(&source.name);
            state.probes.remove(&source.name);
            state.queue.unpark();
        }
    }
    shared.wake.notify_one();
}
