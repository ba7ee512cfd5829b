//! The body of an upload: its source, its progress, and stall detection.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Notify;

/// Timeout for sending one chunk, as a multiple of the idle timeout. The kernel buffers up to 4 MB
/// and accepts more only when a third has drained: 44 s at 30 kB/s. Dead connections fail earlier
/// (`TCP_USER_TIMEOUT`, 30 s).
const DRAINING: u32 = 6;
/// How long a registry may take to respond after the last byte. Some copy the blob first.
const FILING: Duration = Duration::from_secs(600);

/// The bytes of a blob, from the start.
pub type BlobStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A source of a blob's bytes that can be opened repeatedly, once per attempt.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// Opens the blob at its start.
    async fn open(&self) -> io::Result<BlobStream>;
}

/// A blob in memory.
#[async_trait]
impl BlobSource for Bytes {
    async fn open(&self) -> io::Result<BlobStream> {
        Ok(Box::pin(stream::iter([Ok(self.clone())])))
    }
}

/// Called with the number of additional bytes sent. Bytes of a retried upload count once.
pub type Sent = Arc<dyn Fn(u64) + Send + Sync>;

/// Reports the progress of all attempts at an upload as one.
pub(super) struct Tally {
    tell: Sent,
    most: Mutex<u64>,
}

impl Tally {
    pub(super) fn new(tell: Sent) -> Tally {
        Tally {
            tell,
            most: Mutex::default(),
        }
    }

    fn reached(&self, bytes: u64) {
        let more = {
            let mut most = self.most.lock().unwrap_or_else(PoisonError::into_inner);
            let more = bytes.saturating_sub(*most);
            *most += more;
            more
        };
        if more > 0 {
            (self.tell)(more);
        }
    }
}

/// The progress of an upload's body, shared by the body and the task that waits for the response.
#[derive(Clone)]
pub(super) struct Progress(Arc<Shared>);

struct Shared {
    begun: Notify,
    state: Mutex<State>,
}

struct State {
    size: u64,
    taken: u64,
    last: Instant,
    error: Option<Arc<io::Error>>,
}

/// Creates a body of exactly `size` bytes, and its progress.
pub(super) fn watched(
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    size: u64,
    tally: Option<Arc<Tally>>,
) -> (reqwest::Body, Progress) {
    let state = Mutex::new(State {
        size,
        taken: 0,
        last: Instant::now(),
        error: None,
    });
    let begun = Notify::new();
    let progress = Progress(Arc::new(Shared { begun, state }));
    let (beginning, seen, ending) = (progress.clone(), progress.clone(), progress.clone());
    // The HTTP client polls for the first bytes only once it is connected.
    let bytes = stream::once(async move {
        beginning.0.begun.notify_one();
        bytes
    })
    .flatten();
    let body = bytes.map(move |chunk| {
        let taken = seen.note(chunk);
        if let (Ok((_, all)), Some(tally)) = (&taken, &tally) {
            tally.reached(*all);
        }
        taken.map(|(chunk, _)| chunk)
    });
    let end = stream::once(async move { ending.end().map(|()| Bytes::new()) });
    (reqwest::Body::wrap_stream(body.chain(end)), progress)
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, chunk: io::Result<Bytes>) -> io::Result<(Bytes, u64)> {
        let mut state = self.state();
        state.last = Instant::now();
        let chunk = chunk.map_err(|error| state.fail(error))?;
        state.taken += chunk.len() as u64;
        if state.taken > state.size {
            let text = format!("more than the {} bytes of the blob", state.size);
            return Err(state.fail(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Ok((chunk, state.taken))
    }

    fn end(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.taken == state.size || state.error.is_some() {
            return Ok(());
        }
        let text = format!("{} of the {} bytes of the blob", state.taken, state.size);
        Err(state.fail(io::Error::new(io::ErrorKind::UnexpectedEof, text)))
    }

    /// The error of the source, if it failed.
    pub(super) fn source_error(&self) -> Option<Arc<io::Error>> {
        self.state().error.clone()
    }

    /// Completes when sending of the body starts.
    pub(super) async fn begins(&self) {
        self.0.begun.notified().await;
    }

    /// Completes when no chunk was accepted for a multiple of `idle`, or when no response arrived
    /// long after the last chunk. Returns that timeout. The clock starts at the first poll.
    pub(super) async fn stalls(&self, idle: Duration) -> Duration {
        self.state().last = Instant::now();
        let draining = idle.saturating_mul(DRAINING);
        loop {
            let (quiet, patience) = {
                let state = self.state();
                let all = state.taken >= state.size;
                let patience = if all { draining.max(FILING) } else { draining };
                (state.last.elapsed(), patience)
            };
            match patience.checked_sub(quiet) {
                // Do not sleep for the whole rest: the last chunk may be accepted meanwhile, which
                // extends the timeout.
                Some(rest) if !rest.is_zero() => tokio::time::sleep(rest.min(idle)).await,
                _ => return patience,
            }
        }
    }
}

impl State {
    /// Stores an error of the source, and returns an error of the same kind.
    fn fail(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        self.error = Some(Arc::new(error));
        kind.into()
    }
}
