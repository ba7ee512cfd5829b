//! Ranges of a blob from a registry and its mirrors.
//!
//! A range is one request, and as many more as it takes: a body that breaks or stalls is resumed at the first byte that
//! has not come, so that no byte is asked for twice. Hosts are tried in order at every request, not only at the first. Where a
//! host redirects to a storage address, that address is kept and asked directly until it refuses, then renewed.
//!
//! What counts as an answer: a 206 whose `Content-Range` begins at the byte asked for, of a blob of the right size.
//! A 200 is the whole blob, never the range: the bytes before the range are thrown away, however many they are, and a body
//! that goes on behind it is kept for the next range there. So who reads in order carries the blob once.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::{
    Method, Response, Url,
    header::{ACCEPT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE},
};
use tokio::time::Instant;

use super::{
    auth::Scope,
    endpoint::{Call, Endpoint},
    range::ContentRange,
    retry::{Attempts, RetryPolicy},
    rounds::Rounds,
    transport::{Way, beginning, broken, refused},
};
use crate::{
    digest::Digest,
    fetch::{ByteRange, FetchError, Fetcher, RangeBody},
    url::RedactedUrl,
};

/// Bodies of whole blobs that are kept for ranges further on, of one blob at one host, and for how long: their senders wait.
const MOST_KEPT: usize = 4;
const KEPT: Duration = Duration::from_secs(20);
/// A body that brought this much was worth its attempt: the budget starts anew. Less, and a host that gives a byte at a
/// time could keep a reader for ever.
const PROGRESS: u64 = 64 << 10;
/// An object store's refusal is short.
const MAX_REFUSAL: usize = 16 << 10;

/// A blob in a registry.
pub(crate) struct RemoteBlob(Arc<Inner>);

struct Inner {
    digest: Digest,
    size: u64,
    scope: Scope,
    sources: Vec<Source>,
    patience: Patience,
}

/// How long for bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) retry: RetryPolicy,
    /// No attempt begins so long after the last progress.
    pub(crate) attempts: Duration,
    /// Longest pause in a body.
    pub(crate) idle: Duration,
}

/// One host that has the blob, and where it last sent us.
struct Source {
    endpoint: Arc<Endpoint>,
    location: Mutex<Option<Url>>,
    /// Whole bodies that were read in part, since when.
    kept: Mutex<Vec<(Open, Instant)>>,
}

impl RemoteBlob {
    /// A blob of an image, at these hosts, best first.
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
        };
        let sources = endpoints.into_iter().map(source).collect();
        RemoteBlob(Arc::new(Inner {
            digest,
            size,
            scope,
            sources,
            patience,
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
    /// A body that begins at the range's first byte, from whichever host has it first.
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

    /// Every host of a round.
    async fn ask_all(
        &self,
        way: Way,
        range: ByteRange,
        rounds: &mut Rounds,
    ) -> Result<Open, FetchError> {
        for position in rounds.order(|host| self.sources[host].endpoint.is_shunned()) {
            let source = &self.sources[position];
            if let Some(mut open) = source.go_on(range) {
                open.source = position;
                return Ok(open);
            }
            match self.ask(source, (position, way), range).await {
                Ok(open) => return Ok(open),
                Err(error) => rounds.failed(position, error),
            }
        }
        Err(rounds.end())
    }

    /// One host: at the storage address of last time, and if that fails, from its own address on.
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
        let own = source.endpoint.url(&format!("blobs/{}", self.digest));
        let (found, open) = self
            .ask_at(source, (position, way), own.clone(), range)
            .await?;
        source.keep((found != own).then_some(found));
        Ok(open)
    }

    async fn ask_at(
        &self,
        source: &Source,
        (position, way): (usize, Way),
        url: Url,
        range: ByteRange,
    ) -> Result<(Url, Open), FetchError> {
        let from = RedactedUrl::from(&url);
        let mut call = Call::new(Method::GET, url);
        call.headers = range_headers(range);
        call.way = way;
        let (url, answer) = source.endpoint.follow(call, &self.scope).await?;
        let shown = RedactedUrl::from(&url);
        let (skip, left, end) = match answer.status().as_u16() {
            206 => {
                let left = given_by_part(&answer, &shown, range, self.size)?;
                (0, left, range.start() + left)
            }
            200 => {
                let end = end_of_whole(&answer, &shown, range, self.size)?;
                (range.start(), range.len().min(end - range.start()), end)
            }
            400 => return Err(expired_token(shown, answer).await),
            _ => {
                let refusal = refused(shown, answer).await;
                return Err(source.endpoint.at(&url, &from, refusal));
            }
        };
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

    /// Of the bodies that were kept the one that is nearest before the range.
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

    /// Keeps a body that has more than was asked of it.
    fn keep_whole(&self, open: Open) {
        let mut whole = self.whole();
        whole.retain(|(_, since)| since.elapsed() < KEPT);
        if whole.len() < MOST_KEPT {
            whole.push((open, Instant::now()));
        }
    }

    /// Forgets this address, but not one that another reader has found meanwhile.
    fn forget(&self, url: &Url) {
        let mut kept = self.last_location();
        if kept.as_ref() == Some(url) {
            *kept = None;
        }
    }
}

fn range_headers(range: ByteRange) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value = HeaderValue::try_from(format!("bytes={range}"));
    headers.insert(
        RANGE,
        value.expect("digits and a hyphen make a header value"),
    );
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// A 400. S3 says so when the credentials inside a signed address are over; that reads as what it is, a 401.
async fn expired_token(url: RedactedUrl, answer: Response) -> FetchError {
    let is_xml = |value: &HeaderValue| value.as_bytes().starts_with(b"application/xml");
    if !answer.headers().get(CONTENT_TYPE).is_some_and(is_xml) {
        return refused(url, answer).await;
    }
    let body = beginning(answer, MAX_REFUSAL).await;
    let expired = String::from_utf8_lossy(&body).contains("<Code>ExpiredToken</Code>");
    let status = if expired { 401 } else { 400 };
    FetchError::Status {
        status,
        detail: String::new(),
        retry_after: None,
        url,
    }
}

/// How many bytes of the range a 206 gives, if it is an answer to it at all.
fn given_by_part(
    answer: &Response,
    url: &RedactedUrl,
    asked: ByteRange,
    size: u64,
) -> Result<u64, FetchError> {
    let value = answer.headers().get(CONTENT_RANGE);
    let value = value.and_then(|value| value.to_str().ok());
    let given = value.and_then(ContentRange::parse);
    given
        .and_then(|given| given.answers(asked, size))
        .ok_or_else(|| {
            let got = value
                .unwrap_or("no Content-Range")
                .chars()
                .filter(|c| !c.is_control());
            FetchError::WrongRange {
                asked,
                got: got.take(80).collect(),
                url: url.clone(),
            }
        })
}

/// Where the body of a 200 ends, which is the whole blob, or the beginning of it if it is cut short: inside or behind the range.
fn end_of_whole(
    answer: &Response,
    url: &RedactedUrl,
    asked: ByteRange,
    size: u64,
) -> Result<u64, FetchError> {
    match answer.content_length() {
        Some(length) if length > size => Err(FetchError::WrongRange {
            asked,
            got: format!("{length} bytes of another blob"),
            url: url.clone(),
        }),
        Some(length) if length <= asked.start() => Err(FetchError::Short {
            range: asked,
            received: 0,
        }),
        Some(length) => Ok(length),
        None => Ok(size),
    }
}

/// An answer whose body is being read.
struct Open {
    answer: Response,
    url: RedactedUrl,
    /// Position of the host among the blob's.
    source: usize,
    /// Bytes to throw away first.
    skip: u64,
    /// Bytes of the range that this body will give.
    left: u64,
    /// Where in the blob the body's next byte is, and where the body ends, as it says.
    at: u64,
    end: u64,
    /// Bytes of the body that have come and are given next.
    ahead: Bytes,
}

impl Open {
    /// Whether it goes on behind the range.
    fn has_more(&self) -> bool {
        self.left == 0 && self.at + (self.ahead.len() as u64) < self.end
    }

    /// The next bytes of the range; `None` when the body has ended or has nothing more to give. What is thrown away is
    /// counted as it comes.
    async fn next(
        &mut self,
        range: ByteRange,
        idle: Duration,
        skipped: &AtomicU64,
    ) -> Result<Option<Bytes>, FetchError> {
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            let Some(mut chunk) = self.more(range, idle).await? else {
                return Ok(None);
            };
            self.at += chunk.len() as u64;
            let skip = self.skip.min(chunk.len() as u64);
            self.skip -= skip;
            skipped.fetch_add(skip, Ordering::Relaxed);
            chunk = chunk.slice(in_chunk(skip)..);
            // What is behind the range is not ours, whatever the length of the body.
            let wanted = in_chunk(self.left.min(chunk.len() as u64));
            self.left -= wanted as u64;
            if self.left == 0 && self.at < self.end {
                // The next range may share its first byte with the last of this one.
                self.ahead = chunk.slice(wanted.saturating_sub(1)..);
                self.at -= self.ahead.len() as u64;
            }
            chunk.truncate(wanted);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}

impl Open {
    /// What comes next of the body, whether the range's or not.
    async fn more(
        &mut self,
        range: ByteRange,
        idle: Duration,
    ) -> Result<Option<Bytes>, FetchError> {
        if !self.ahead.is_empty() {
            return Ok(Some(std::mem::take(&mut self.ahead)));
        }
        match tokio::time::timeout(idle, self.answer.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| broken(self.url.clone(), error)),
            Err(_) => Err(FetchError::Stalled {
                range,
                url: self.url.clone(),
                idle,
            }),
        }
    }
}

/// A number that is at most a chunk's length.
fn in_chunk(bytes: u64) -> usize {
    usize::try_from(bytes).expect("at most the length of a chunk in memory")
}

/// A range on its way: what has come of it, and the body that brings the rest.
struct Reading {
    inner: Arc<Inner>,
    way: Way,
    range: ByteRange,
    done: u64,
    /// Bytes since the last time that attempts were counted anew.
    worth: u64,
    open: Option<Open>,
    attempts: Attempts,
    /// Bytes that were thrown away.
    skipped: Arc<AtomicU64>,
}

impl Reading {
    async fn step(mut self) -> Option<(Result<Bytes, FetchError>, Reading)> {
        match self.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), self)),
            Ok(None) => None,
            Err(error) => {
                self.open = None;
                Some((Err(error), self))
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while let Some(rest) = self.range.after(self.done) {
            let open = match &mut self.open {
                Some(open) => open,
                None => self
                    .open
                    .insert(self.inner.open(self.way, rest, &mut self.attempts).await?),
            };
            let idle = self.inner.patience.idle;
            let error = match open.next(rest, idle, &self.skipped).await {
                Ok(Some(chunk)) => {
                    self.took(chunk.len() as u64);
                    self.keep_what_goes_on();
                    return Ok(Some(chunk));
                }
                // Broken off, or answered with less than was asked for: the rest is one more request.
                Ok(None) => FetchError::Short {
                    range: self.range,
                    received: self.done,
                },
                Err(error) => error,
            };
            if let Some(open) = self.open.take()
                && let Some(source) = self.inner.sources.get(open.source)
            {
                source.endpoint.shun();
            }
            self.resume(error).await?;
        }
        Ok(None)
    }

    /// All of the range has come: a body that goes on behind it is of use to the next.
    fn keep_what_goes_on(&mut self) {
        if self.range.after(self.done).is_none()
            && let Some(open) = self.open.take_if(|open| open.has_more())
            && let Some(source) = self.inner.sources.get(open.source)
        {
            source.keep_whole(open);
        }
    }

    fn took(&mut self, bytes: u64) {
        self.done += bytes;
        self.worth += bytes;
        if self.worth >= PROGRESS {
            self.worth = 0;
            self.attempts.progressed();
        }
    }

    /// Waits before the next request, or gives the failure up to the caller.
    async fn resume(&mut self, error: FetchError) -> Result<(), FetchError> {
        if !error.is_transient() {
            return Err(error);
        }
        tracing::debug!(
            %error, digest = %self.inner.digest, range = %self.range, received = self.done,
            "range broke off; resuming"
        );
        self.attempts.wait(error).await
    }
}
