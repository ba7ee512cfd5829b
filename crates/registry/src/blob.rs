//! Reads ranges of a blob from a registry and its mirrors.
//!
//! Every request tries the hosts in order. A broken or stalled body is resumed at the first missing
//! byte, so no byte is requested twice. If a host redirects to a storage address, later requests go
//! directly to that address until it rejects one.
//!
//! A valid response is a 206 that starts at the requested byte of a blob of the right size, or a
//! 200 with the whole blob. A server that rejects the range is asked for the whole blob. Of a 200,
//! the bytes before the range are discarded, and the open body is kept for later ranges, so
//! sequential reads download the blob only once.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::{Method, Url};
use tokio::time::Instant;

use super::{
    auth::Scope,
    breaker::{Breaker, Failure, Turn},
    endpoint::{Call, Endpoint, set_referer},
    refusal::refused,
    retry::{Attempts, RetryPolicy},
    rounds::Rounds,
    transport::Way,
};
use crate::{
    fetch::{ByteRange, FetchError, Fetcher, RangeBody},
    url::RedactedUrl,
};
use soci_oci::digest::Digest;

mod ask;
mod open;
mod reading;

use ask::{Form, end_of_whole, expired_token, given_by_part, range_headers, wrong_range};
use open::Open;
use reading::Reading;

/// Limits for open bodies of whole blobs that are kept for later ranges: number per blob and host,
/// and age. Their senders are blocked meanwhile.
const MOST_KEPT: usize = 4;
const KEPT: Duration = Duration::from_secs(20);
/// Longest pause within a body from a mirror. Another host can continue at the same byte.
const MIRROR_IDLE: Duration = Duration::from_secs(5);

/// A blob in a registry.
pub(crate) struct RemoteBlob(Arc<Inner>);

struct Inner {
    digest: Digest,
    size: u64,
    scope: Scope,
    sources: Vec<Source>,
    patience: Patience,
    /// Opens when wrong bytes arrive. The origin is then asked before the mirrors.
    mirrors: Breaker,
}

/// Retries and timeouts for a range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) retry: RetryPolicy,
    /// No retry starts later than this after the last progress.
    pub(crate) attempts: Duration,
    /// Longest pause within a body.
    pub(crate) idle: Duration,
}

/// A host that may have the blob, and the storage address to which it last redirected.
struct Source {
    endpoint: Arc<Endpoint>,
    location: Mutex<Option<Url>>,
    /// Partly read bodies of the whole blob, and when each was stored.
    kept: Mutex<Vec<(Open, Instant)>>,
    /// Bytes of it were used since the last complaint.
    served: AtomicBool,
}

impl RemoteBlob {
    /// Creates a blob of an image. `endpoints` are in order of preference.
    pub(crate) fn new(
        digest: Digest,
        size: u64,
        scope: Scope,
        endpoints: Vec<Arc<Endpoint>>,
        patience: Patience,
    ) -> RemoteBlob {
        let source = |endpoint| Source {
            endpoint,
            location: Mutex::default(),
            kept: Mutex::default(),
            served: AtomicBool::new(false),
        };
        let sources = endpoints.into_iter().map(source).collect();
        RemoteBlob(Arc::new(Inner {
            digest,
            size,
            scope,
            sources,
            patience,
            mirrors: Breaker::default(),
        }))
    }
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBlob")
            .field("digest", &self.0.digest)
            .field("size", &self.0.size)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Fetcher for RemoteBlob {
    fn size(&self) -> u64 {
        self.0.size
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        self.fetch_by(Way::Front, range).await
    }

    async fn fetch_behind(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        self.fetch_by(Way::Behind, range).await
    }

    fn distrust(&self) -> bool {
        self.0.doubt();
        self.0.sources.len() > 1
    }
}

impl RemoteBlob {
    async fn fetch_by(&self, way: Way, range: Range<u64>) -> Result<RangeBody, FetchError> {
        let range = ByteRange::within(range, self.0.size)?;
        let Patience {
            retry, attempts, ..
        } = self.0.patience;
        let mut attempts = Attempts::within(retry, attempts);
        let open = self.0.open(way, range, &mut attempts).await?;
        let inner = Arc::clone(&self.0);
        let reading = Reading {
            inner,
            way,
            range,
            done: 0,
            worth: 0,
            open: Some(open),
            attempts,
            skipped: Arc::default(),
        };
        let skipped = Arc::clone(&reading.skipped);
        let chunks = futures_util::stream::unfold(reading, Reading::step);
        Ok(RangeBody::new(range, chunks).skipping(skipped))
    }
}

impl Inner {
    /// Opens a body that starts at the first byte of the range, from the first host that responds.
    async fn open(
        &self,
        way: Way,
        range: ByteRange,
        attempts: &mut Attempts,
    ) -> Result<Open, FetchError> {
        let mut rounds = Rounds::over(self.sources.len());
        loop {
            let error = match self.ask_all(way, range, &mut rounds).await {
                Ok(open) => return Ok(open),
                Err(error) => error,
            };
            if !error.is_worth_repeating() {
                return Err(error);
            }
            attempts.wait(error).await?;
        }
    }

    /// Asks each host of a round.
    async fn ask_all(
        &self,
        way: Way,
        range: ByteRange,
        rounds: &mut Rounds,
    ) -> Result<Open, FetchError> {
        let origin = self.sources.len().saturating_sub(1);
        let mut order = rounds.order();
        let mut mirrors = self.mirrors.turn();
        if mirrors.is_none() {
            order.prefer(origin);
        }
        while let Some((position, turn)) = order.next(|host| self.sources[host].endpoint.turn()) {
            let source = &self.sources[position];
            if let Some(mut open) = source.go_on(range) {
                open.source = position;
                return Ok(open);
            }
            match self.ask(source, (position, way), range).await {
                Ok(open) => {
                    let mirrors = mirrors.take().filter(|_| position != origin);
                    let turns = [turn, mirrors];
                    turns.into_iter().flatten().for_each(Turn::succeeded);
                    return Ok(open);
                }
                Err(error) => {
                    source.endpoint.note(&error);
                    rounds.failed(position, error);
                }
            }
        }
        Err(rounds.end())
    }

    /// Avoids the mirrors that have sent bytes since the last complaint, and prefers the origin for a
    /// growing time, unless all bytes came from it.
    fn doubt(&self) {
        let took = |source: &&Source| source.served.swap(false, Ordering::Relaxed);
        let served: Vec<_> = self.sources.iter().filter(took).collect();
        if served.is_empty() || served.iter().any(|it| it.endpoint.is_mirror()) {
            self.mirrors.failed(Failure::Broken);
        }
        for source in served {
            let url = RedactedUrl::from(&self.url_at(source));
            source.endpoint.broke(&FetchError::WrongBytes { url });
        }
    }

    /// Longest pause within a body from this source.
    fn idle_of(&self, source: usize) -> Duration {
        let is_mirror = |source: &Source| source.endpoint.is_mirror();
        match self.sources.get(source).is_some_and(is_mirror) {
            true => self.patience.idle.min(MIRROR_IDLE),
            false => self.patience.idle,
        }
    }

    /// Asks one host: first at the last known storage address, then at the host's own address.
    async fn ask(
        &self,
        source: &Source,
        (position, way): (usize, Way),
        range: ByteRange,
    ) -> Result<Open, FetchError> {
        if let Some(kept) = source.location() {
            let error = match self
                .ask_at(source, (position, way), kept.clone(), range)
                .await
            {
                Ok((_, open)) => return Ok(open),
                Err(error) => error,
            };
            let there = match &error {
                FetchError::Redirected { source, .. } => source,
                error => error,
            };
            match there {
                FetchError::Status {
                    status: 429 | 503, ..
                } => return Err(error),
                FetchError::Status { status, .. } => tracing::info!(
                    digest = %self.digest,
                    "Received status code: {status}. Refreshing URL and retrying..."
                ),
                error => tracing::debug!(%error, digest = %self.digest, "kept address given up"),
            }
            source.forget(&kept);
        }
        let own = self.url_at(source);
        let (found, open) = self
            .ask_at(source, (position, way), own.clone(), range)
            .await?;
        source.keep((found != own).then_some(found));
        Ok(open)
    }

    /// The address of the blob at the host itself.
    fn url_at(&self, source: &Source) -> Url {
        source.endpoint.url(&format!("blobs/{}", self.digest))
    }

    async fn ask_at(
        &self,
        source: &Source,
        (position, way): (usize, Way),
        url: Url,
        range: ByteRange,
    ) -> Result<(Url, Open), FetchError> {
        let from = RedactedUrl::from(&url);
        let own = self.url_at(source);
        let mut call = Call::new(Method::GET, url);
        call.way = way;
        let mut form = Form::Closed;
        let (url, answer, (skip, left, end)) = loop {
            call.headers = range_headers(range, form);
            if own != call.url {
                set_referer(&mut call.headers, &own, &call.url);
            }
            let (url, answer) = source.endpoint.follow(call.clone(), &self.scope).await?;
            let shown = RedactedUrl::from(&url);
            match answer.status().as_u16() {
                206 => match given_by_part(&answer, &shown, range, self.size) {
                    Some(Ok(left)) => break (url, answer, (0, left, range.start() + left)),
                    Some(Err(error)) => return Err(error),
                    None if form != Form::Whole => form = Form::Whole,
                    None => return Err(wrong_range(range, "no Content-Range", shown)),
                },
                200 => {
                    let end = end_of_whole(&answer, &shown, range, self.size)?;
                    let left = range.len().min(end - range.start());
                    break (url, answer, (range.start(), left, end));
                }
                400 => return Err(expired_token(shown, answer).await),
                416 if range.end() == self.size && form != Form::Whole => form = form.next(),
                _ => {
                    let refusal = refused(shown, answer).await;
                    return Err(source.endpoint.at(&url, &from, refusal));
                }
            }
        };
        let shown = RedactedUrl::from(&url);
        let open = Open {
            answer,
            url: shown,
            source: position,
            skip,
            left,
            at: range.start() - skip,
            end,
            ahead: Bytes::new(),
        };
        Ok((url, open))
    }
}

impl Source {
    fn last_location(&self) -> MutexGuard<'_, Option<Url>> {
        self.location.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn location(&self) -> Option<Url> {
        self.last_location().clone()
    }

    fn keep(&self, url: Option<Url>) {
        *self.last_location() = url;
    }

    fn whole(&self) -> MutexGuard<'_, Vec<(Open, Instant)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the kept body whose position is closest to the start of the range.
    fn go_on(&self, range: ByteRange) -> Option<Open> {
        let mut whole = self.whole();
        whole.retain(|(_, since)| since.elapsed() < KEPT);
        let reaching = |open: &Open| open.at <= range.start() && range.start() < open.end;
        let (position, _) = whole
            .iter()
            .enumerate()
            .filter(|(_, (open, _))| reaching(open))
            .max_by_key(|(_, (open, _))| open.at)?;
        let (mut open, _) = whole.swap_remove(position);
        open.skip = range.start() - open.at;
        open.left = range.len().min(open.end - range.start());
        Some(open)
    }

    /// Keeps a body that continues after the range.
    fn keep_whole(&self, open: Open) {
        let mut whole = self.whole();
        whole.retain(|(_, since)| since.elapsed() < KEPT);
        if whole.len() < MOST_KEPT {
            whole.push((open, Instant::now()));
        }
    }

    /// Drops this address, unless another reader has replaced it.
    fn forget(&self, url: &Url) {
        let mut kept = self.last_location();
        if kept.as_ref() == Some(url) {
            *kept = None;
        }
    }
}
