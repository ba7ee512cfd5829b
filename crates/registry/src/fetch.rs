//! Reads ranges of one blob, wherever the blob is stored.
//!
//! A [`Fetcher`] is one blob at one source: a registry ([`crate`]), a folder, or memory.
//! For each range it returns a [`RangeBody`] that yields *exactly* the bytes of that range, in
//! order, or an error. To stop reading, drop the body; a network source then closes or drains the
//! connection, and no work continues in the background.
//!
//! Bytes from a fetcher are untrusted. The caller verifies their digests.

use std::{
    fmt,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

mod error;

pub(crate) use error::is_transient_status;
pub use error::{Concern, FetchError};

/// A non-empty range of bytes inside a blob. The end is exclusive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// Checks `range` against a blob of `size` bytes.
    ///
    /// # Errors
    ///
    /// [`FetchError::OutsideBlob`] if the range is empty or extends beyond the blob.
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

    /// Offset of the first byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Offset after the last byte.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes; never 0.
    #[allow(clippy::len_without_is_empty, reason = "a ByteRange is never empty")]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// The rest of the range after its first `bytes` bytes; `None` if nothing is left.
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

/// In HTTP notation: both ends inclusive.
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
/// `testing::conformance` checks this contract for every implementation:
/// * A range that is empty or extends beyond the blob fails with [`FetchError::OutsideBlob`] before
///   any I/O.
/// * The body yields the bytes of the range in order and nothing else. If the source has fewer
///   bytes, the body ends with an error.
/// * Several ranges can be fetched concurrently.
/// * Dropping the future or the body stops the work.
#[async_trait]
pub trait Fetcher: fmt::Debug + Send + Sync {
    /// Size of the blob in bytes, according to its descriptor.
    fn size(&self) -> u64;

    /// Requests a range. Returns when the source has started to respond.
    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError>;

    /// Like [`Fetcher::fetch`], for bytes that no reader waits for. Uses separate connections, so
    /// that a connection stays available for waiting readers.
    async fn fetch_behind(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        self.fetch(range).await
    }

    /// The source sent bytes that the caller found to be wrong. A source with several hosts asks
    /// the registry itself first for a while, which grows each time. Returns whether it has several.
    fn distrust(&self) -> bool {
        false
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, FetchError>> + Send>>;

/// The bytes of one range, in chunks as they arrive.
///
/// A body ends without an error only after exactly the bytes of the range, whatever the inner
/// stream yields.
pub struct RangeBody {
    range: ByteRange,
    received: u64,
    skipped: Option<Arc<AtomicU64>>,
    chunks: Option<Chunks>,
}

impl RangeBody {
    /// Creates a body from a stream of chunks. The body enforces the length of the range.
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

    /// Adds a counter of bytes that arrive but are outside the range, for sources that cannot start
    /// at the requested offset.
    #[must_use]
    pub fn skipping(self, skipped: Arc<AtomicU64>) -> RangeBody {
        RangeBody {
            skipped: Some(skipped),
            ..self
        }
    }

    /// Bytes that arrived, inside or outside the range. Shows progress while the source skips
    /// bytes.
    pub fn carried(&self) -> u64 {
        let skipped = self.skipped.as_ref();
        self.received + skipped.map_or(0, |skipped| skipped.load(Ordering::Relaxed))
    }

    /// Creates a body from bytes in memory.
    pub fn ready(range: ByteRange, bytes: Bytes) -> RangeBody {
        RangeBody::new(range, futures_util::stream::iter([Ok(bytes)]))
    }

    /// The requested range.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// Bytes returned so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the next chunk, never empty, or `None` after the last byte of the range.
    ///
    /// # Errors
    ///
    /// The failure of the source, or [`FetchError::TooLong`] if it sends more than the range. Every
    /// call after an error returns [`FetchError::Short`].
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

    /// Collects all bytes of the range. Allocates the length of the range, so the caller must bound
    /// it.
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
