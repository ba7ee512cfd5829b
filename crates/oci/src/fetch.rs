//! Ranges of one blob, wherever it lies.
//!
//! A [`Fetcher`] is one blob at one source: a registry ([`crate::registry`]), a folder, memory. It is asked for a
//! range and answers with a [`RangeBody`] that yields *exactly* the bytes of that range, in order, or an
//! error; never fewer, never others. Who reads may stop at any time by dropping the body: for a
//! network source that closes or drains the connection, nothing goes on behind it.
//!
//! Bytes from a fetcher are untrusted. Digests are checked by who knows them.

use std::{
    fmt,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

use crate::{registry::retry, url::RedactedUrl};

/// A non-empty range of bytes that lies inside its blob. The end is exclusive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `range` of a blob of `size` bytes; refuses an empty range and one that leaves the blob.
    pub fn within(range: Range<u64>, size: u64) -> Result<ByteRange, FetchError> {
        if range.start < range.end && range.end <= size {
            Ok(ByteRange {
                start: range.start,
                end: range.end,
            })
        } else {
            Err(FetchError::OutsideBlob {
                start: range.start,
                end: range.end,
                size,
            })
        }
    }

    /// First byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// First byte behind the range.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes; never 0.
    #[allow(clippy::len_without_is_empty, reason = "a ByteRange is never empty")]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// What is left of the range when its first `bytes` are there; `None` when all are.
    pub fn after(self, bytes: u64) -> Option<ByteRange> {
        let start = self.start.checked_add(bytes)?;
        (start < self.end).then_some(ByteRange {
            start,
            end: self.end,
        })
    }
}

impl From<ByteRange> for Range<u64> {
    fn from(range: ByteRange) -> Range<u64> {
        range.start..range.end
    }
}

/// As HTTP writes it: both ends inclusive.
impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end - 1)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Reads ranges of one blob.
///
/// Contract, checked on every implementation by `testing::conformance`:
/// * a range that is empty or leaves the blob is [`FetchError::OutsideBlob`], before any I/O;
/// * the body yields the range's bytes in order and nothing else; a source that has fewer is an error, not a short body;
/// * several ranges may be fetched at the same time;
/// * dropping the future or the body stops the work.
#[async_trait]
pub trait Fetcher: fmt::Debug + Send + Sync {
    /// Size of the blob in bytes, as its descriptor says.
    fn size(&self) -> u64;

    /// Asks for a range. Returns when the source has agreed to send it.
    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError>;

    /// The same for bytes that nobody waits for: over connections that those who wait do not use, so that one is left for
    /// them.
    async fn fetch_behind(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        self.fetch(range).await
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, FetchError>> + Send>>;

/// The bytes of one range, in chunks as they arrive.
///
/// Whatever the stream inside does, a body ends well only after exactly the range's bytes.
pub struct RangeBody {
    range: ByteRange,
    received: u64,
    skipped: Option<Arc<AtomicU64>>,
    chunks: Option<Chunks>,
}

impl RangeBody {
    /// A body over any stream of chunks; the count is enforced here.
    pub fn new(
        range: ByteRange,
        chunks: impl Stream<Item = Result<Bytes, FetchError>> + Send + 'static,
    ) -> RangeBody {
        RangeBody {
            range,
            received: 0,
            skipped: None,
            chunks: Some(Box::pin(chunks)),
        }
    }

    /// With a count of bytes that come and are not the range's: a source that cannot begin where it is told to.
    #[must_use]
    pub fn skipping(self, skipped: Arc<AtomicU64>) -> RangeBody {
        RangeBody {
            skipped: Some(skipped),
            ..self
        }
    }

    /// Bytes that came, whether the range's or not: whoever waits sees by it that something goes on.
    pub fn carried(&self) -> u64 {
        let skipped = self.skipped.as_ref();
        self.received + skipped.map_or(0, |skipped| skipped.load(Ordering::Relaxed))
    }

    /// A body that is already there.
    pub fn ready(range: ByteRange, bytes: Bytes) -> RangeBody {
        RangeBody::new(range, futures_util::stream::iter([Ok(bytes)]))
    }

    /// The range that was asked for.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// Bytes handed out so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next chunk, never empty; `None` after the last byte of the range. After an error the body is over: every
    /// further call says that the range is short.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let left = self.range.len() - self.received;
        if left == 0 {
            self.chunks = None;
            return Ok(None);
        }
        let Some(chunks) = self.chunks.as_mut() else {
            return Err(self.short());
        };
        loop {
            match chunks.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) if chunk.len() as u64 <= left => {
                    self.received += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Some(Ok(_)) => {
                    self.chunks = None;
                    return Err(FetchError::TooLong { range: self.range });
                }
                Some(Err(error)) => {
                    self.chunks = None;
                    return Err(error);
                }
                None => {
                    self.chunks = None;
                    return Err(self.short());
                }
            }
        }
    }

    /// All bytes of the range at once. The range's length is the size of the allocation: the caller has bounded it.
    pub async fn collect(mut self) -> Result<Bytes, FetchError> {
        let Some(first) = self.next().await? else {
            return Ok(Bytes::new());
        };
        if first.len() as u64 == self.range.len() {
            return Ok(first);
        }
        let capacity = usize::try_from(self.range.len())
            .map_err(|_| FetchError::TooLong { range: self.range })?;
        let mut all = BytesMut::with_capacity(capacity);
        all.extend_from_slice(&first);
        while let Some(chunk) = self.next().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    fn short(&self) -> FetchError {
        FetchError::Short {
            range: self.range,
            received: self.received,
        }
    }
}

impl fmt::Debug for RangeBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeBody")
            .field("range", &self.range)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

/// Why bytes did not come. Cheap to clone: one failure may be told to many waiters.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The caller asked for bytes that the blob does not have.
    #[error("range {start}..{end} is empty or outside the blob's {size} bytes")]
    OutsideBlob {
        /// First byte asked for.
        start: u64,
        /// Exclusive end asked for.
        end: u64,
        /// Size of the blob.
        size: u64,
    },
    /// The source stopped early.
    #[error("bytes {range} ended after {received} bytes")]
    Short {
        /// The range asked for.
        range: ByteRange,
        /// Bytes that had come.
        received: u64,
    },
    /// The source sent more than the range, or the range does not fit in memory.
    #[error("more bytes came than range {range} has")]
    TooLong {
        /// The range asked for.
        range: ByteRange,
    },
    /// Nothing arrived for the whole idle time.
    #[error("no byte of {range} from {url} for {} s", idle.as_secs_f32())]
    Stalled {
        /// What was being read.
        range: ByteRange,
        /// From where.
        url: RedactedUrl,
        /// How long nothing came.
        idle: Duration,
    },
    /// Nothing came (or was taken) for the whole idle time, outside of ranges.
    #[error("{url} is silent for {} s", idle.as_secs_f32())]
    Silent {
        /// Who is silent.
        url: RedactedUrl,
        /// For how long.
        idle: Duration,
    },
    /// A document that is larger than any honest one.
    #[error("{url} answered with more than {limit} bytes")]
    Oversized {
        /// Who answered.
        url: RedactedUrl,
        /// The limit in bytes.
        limit: u64,
    },
    /// The source answered, but not with the range: another part, another size, or the whole blob.
    #[error("{url} answered bytes {asked} with {got}")]
    WrongRange {
        /// The range asked for.
        asked: ByteRange,
        /// What the answer claims to be.
        got: String,
        /// Who answered.
        url: RedactedUrl,
    },
    /// The source refused with a status.
    #[error("{url} answered {status}{}", detail_suffix(detail))]
    Status {
        /// HTTP status code.
        status: u16,
        /// What the registry's error body says, shortened; may be empty.
        detail: String,
        /// How long the registry asks us to stay away.
        retry_after: Option<Duration>,
        /// Who answered.
        url: RedactedUrl,
    },
    /// Credentials are missing or were refused.
    #[error("{host} does not let us into {repository}: {reason}")]
    Unauthorized {
        /// Registry host.
        host: String,
        /// Repository in it.
        repository: String,
        /// What was tried.
        reason: String,
    },
    /// No answer: no connection, a reset, broken TLS.
    #[error("no answer from {url}")]
    Transport {
        /// Who was asked.
        url: RedactedUrl,
        /// False if not even a connection came about.
        connected: bool,
        /// True if another attempt may succeed; false for a bad certificate, for instance.
        transient: bool,
        /// The transport's own account, without URLs.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Bytes come, and too few of them to wait for.
    #[error("only {received} bytes in {} s", lasted.as_secs_f32())]
    TooSlow {
        /// Bytes that came in that time.
        received: u64,
        /// How long it lasted.
        lasted: Duration,
    },
    /// Not the registry but what gives tokens for it has trouble.
    #[error("no token for {repository} of {host}")]
    Token {
        /// Registry host.
        host: String,
        /// Repository in it.
        repository: String,
        /// The token endpoint's failure.
        #[source]
        source: Box<FetchError>,
    },
    /// Not the registry but where it sends us has trouble.
    #[error("{url} redirects to where the bytes do not come from")]
    Redirected {
        /// Where it began.
        url: RedactedUrl,
        /// The failure there.
        #[source]
        source: Box<FetchError>,
    },
    /// There is nobody to ask.
    #[error("no host to ask")]
    NoHost,
    /// Redirects that never end.
    #[error("more than {limit} redirects from {url}")]
    Redirects {
        /// Where it began.
        url: RedactedUrl,
        /// How many were followed.
        limit: usize,
    },
    /// A redirect to what is not a URL that we follow.
    #[error("{url} redirects to {target}, which cannot be followed")]
    BadRedirect {
        /// Who answered.
        url: RedactedUrl,
        /// Where it pointed.
        target: RedactedUrl,
    },
    /// What answers is no registry: a page for people, such as a proxy's.
    #[error("{url} answered with a web page, as no registry does")]
    WebPage {
        /// Who answered.
        url: RedactedUrl,
    },
    /// All attempts are used up; the last one's failure is the source.
    #[error("giving up after {attempts} attempts")]
    GaveUp {
        /// Number of requests made.
        attempts: u32,
        /// The last failure.
        #[source]
        last: Box<FetchError>,
    },
    /// A local source could not be read.
    #[error("read {range} of a local blob")]
    Io {
        /// The range asked for.
        range: ByteRange,
        /// The system's account.
        #[source]
        source: Arc<std::io::Error>,
    },
}

/// What a failure is about, and so who else has to expect it. Wider before narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Concern {
    /// The host: nobody gets a connection.
    Host,
    /// The repository, with our credential for it.
    Repository,
    /// This blob there.
    Blob,
}

impl FetchError {
    /// What it is about. A failure that may be one blob's alone is: others must not pay for it.
    pub fn concern(&self) -> Concern {
        match self {
            FetchError::Transport {
                connected: false, ..
            } => Concern::Host,
            FetchError::Unauthorized { .. }
            | FetchError::Token { .. }
            | FetchError::Status {
                status: 401 | 403, ..
            } => Concern::Repository,
            FetchError::GaveUp { last, .. } => last.concern(),
            _ => Concern::Blob,
        }
    }

    /// The host is there and asks to be left alone for so long: no failure of anybody.
    pub fn busy(&self) -> Option<Duration> {
        match self {
            FetchError::Status {
                status: 429 | 503,
                retry_after,
                ..
            } => *retry_after,
            FetchError::GaveUp { last, .. } => last.busy(),
            _ => None,
        }
    }

    /// Where this came from is not the registry itself but an address that it redirected to, from `url` on: then what is
    /// true of that host or of our rights there says nothing of the registry.
    pub(crate) fn behind_redirect(self, url: &RedactedUrl) -> FetchError {
        match self {
            FetchError::Transport { .. }
            | FetchError::Status {
                status: 401 | 403 | 429 | 503,
                ..
            } => FetchError::Redirected {
                url: url.clone(),
                source: Box::new(self),
            },
            other => other,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything: the network, a busy registry, an
    /// outage. Bad ranges, refusals and broken answers are not.
    ///
    /// Refused credentials count as transient: tokens come back when the registry or the keychain does, and a reader
    /// that waits in the kernel is better served by another try than by an error.
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::Short { .. }
            | FetchError::Stalled { .. }
            | FetchError::Silent { .. }
            | FetchError::TooSlow { .. }
            | FetchError::Unauthorized { .. } => true,
            FetchError::Transport { transient, .. } => *transient,
            FetchError::Status { status, .. } => retry::is_transient_status(*status),
            FetchError::GaveUp { last, .. } => last.is_transient(),
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.is_transient()
            }
            FetchError::OutsideBlob { .. }
            | FetchError::TooLong { .. }
            | FetchError::WrongRange { .. }
            | FetchError::Oversized { .. }
            | FetchError::NoHost
            | FetchError::Redirects { .. }
            | FetchError::BadRedirect { .. }
            | FetchError::WebPage { .. }
            | FetchError::Io { .. } => false,
        }
    }

    /// Whether the registry has answered, and will not give the bytes to who we are: credentials that it does not know, a
    /// blob that it does not have, an answer that is none.
    pub fn is_refusal(&self) -> bool {
        match self {
            FetchError::Unauthorized { .. } => true,
            FetchError::GaveUp { last, .. } => last.is_refusal(),
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.is_refusal()
            }
            FetchError::OutsideBlob { .. } | FetchError::Io { .. } => false,
            other => !other.is_transient(),
        }
    }

    /// Whether asking again within the same operation makes sense: transient, and not about who we are (a token endpoint
    /// has had its attempts already).
    pub(crate) fn is_worth_repeating(&self) -> bool {
        let about_us = matches!(
            self,
            FetchError::Unauthorized { .. } | FetchError::Token { .. }
        );
        self.is_transient() && !about_us
    }

    /// How long the registry asked us to stay away.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            FetchError::Status { retry_after, .. } => *retry_after,
            FetchError::GaveUp { last, .. } => last.retry_after(),
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.retry_after()
            }
            _ => None,
        }
    }
}

fn detail_suffix(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(": {detail}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::within(start..end, 1000).expect("a range inside 1000 bytes")
    }

    fn body(range: ByteRange, chunks: Vec<Result<&'static str, FetchError>>) -> RangeBody {
        let chunks = chunks
            .into_iter()
            .map(|c| c.map(|s| Bytes::from_static(s.as_bytes())));
        RangeBody::new(
            range,
            futures_util::stream::iter(chunks.collect::<Vec<_>>()),
        )
    }

    #[test]
    fn a_range_outside_its_blob_is_refused() {
        #[allow(
            clippy::reversed_empty_ranges,
            reason = "the refusal is what is tested"
        )]
        for bad in [0..0, 5..5, 5..4, 0..11, 10..11, u64::MAX - 1..u64::MAX] {
            assert!(matches!(
                ByteRange::within(bad, 10),
                Err(FetchError::OutsideBlob { size: 10, .. })
            ));
        }
        assert_eq!(ByteRange::within(0..10, 10).expect("all of it").len(), 10);
    }

    #[test]
    fn a_failure_says_what_it_is_about() {
        let url = || RedactedUrl::new("https://registry.example/v2/");
        let transport = |connected| FetchError::Transport {
            url: url(),
            connected,
            transient: true,
            source: Arc::new(std::io::Error::other("broken")),
        };
        let status = |status, retry_after| FetchError::Status {
            status,
            detail: String::new(),
            retry_after,
            url: url(),
        };
        let gave_up = |last| FetchError::GaveUp {
            attempts: 9,
            last: Box::new(last),
        };
        assert_eq!(transport(false).concern(), Concern::Host);
        assert_eq!(gave_up(transport(false)).concern(), Concern::Host);
        assert_eq!(transport(true).concern(), Concern::Blob);
        // The host that a registry redirects to is not the registry.
        assert_eq!(
            transport(false).behind_redirect(&url()).concern(),
            Concern::Blob
        );
        assert_eq!(status(401, None).concern(), Concern::Repository);
        assert_eq!(status(403, None).concern(), Concern::Repository);
        assert_eq!(
            status(403, None).behind_redirect(&url()).concern(),
            Concern::Blob
        );
        for code in [404, 500, 503] {
            assert_eq!(status(code, None).concern(), Concern::Blob);
        }
        let minute = Some(Duration::from_secs(60));
        assert_eq!(gave_up(status(503, minute)).busy(), minute);
        assert_eq!(status(503, None).busy(), None);
        assert_eq!(status(500, minute).busy(), None);
        let token = FetchError::Token {
            host: "registry.example".to_owned(),
            repository: "app".to_owned(),
            source: Box::new(transport(false)),
        };
        assert_eq!(token.concern(), Concern::Repository);
        assert!(token.is_transient() && !token.is_worth_repeating());
    }

    #[test]
    fn what_is_left_of_a_range() {
        assert_eq!(range(10, 20).after(4), Some(range(14, 20)));
        assert_eq!(range(10, 20).after(10), None);
        assert_eq!(range(10, 20).after(u64::MAX), None);
        assert_eq!(range(10, 20).to_string(), "10-19");
    }

    #[tokio::test]
    async fn a_body_ends_after_exactly_its_bytes() {
        let mut b = body(range(0, 6), vec![Ok("abc"), Ok(""), Ok("def")]);
        assert_eq!(b.next().await.expect("first").expect("chunk"), "abc");
        assert_eq!(b.next().await.expect("second").expect("chunk"), "def");
        assert!(b.next().await.expect("end").is_none());
        assert!(b.next().await.expect("still the end").is_none());
        assert_eq!(
            body(range(0, 6), vec![Ok("abcdef")])
                .collect()
                .await
                .expect("whole"),
            "abcdef"
        );
        assert_eq!(
            body(range(0, 6), vec![Ok("a"), Ok("bcdef")])
                .collect()
                .await
                .expect("whole"),
            "abcdef"
        );
    }

    #[tokio::test]
    async fn a_short_body_is_an_error_and_stays_one() {
        let mut b = body(range(0, 6), vec![Ok("abc")]);
        b.next().await.expect("first");
        for _ in 0..2 {
            assert!(matches!(
                b.next().await,
                Err(FetchError::Short { received: 3, .. })
            ));
        }
    }

    #[tokio::test]
    async fn a_long_body_is_an_error_and_gives_nothing_of_the_excess() {
        let mut b = body(range(0, 4), vec![Ok("abc"), Ok("de")]);
        b.next().await.expect("first");
        assert!(matches!(b.next().await, Err(FetchError::TooLong { .. })));
        assert!(matches!(b.next().await, Err(FetchError::Short { .. })));
    }
}
