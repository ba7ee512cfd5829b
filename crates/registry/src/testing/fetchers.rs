//! Fetchers without a network.

use std::{
    collections::VecDeque,
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    fetch::{ByteRange, FetchError, Fetcher, RangeBody},
    url::RedactedUrl,
};

/// A blob in memory. Its bodies consist of small chunks, as from a socket, so that tests detect
/// readers that expect a whole range in one chunk.
pub struct MemoryBlob {
    bytes: Bytes,
    chunk: usize,
    requests: Mutex<Vec<Range<u64>>>,
    sent: Arc<AtomicU64>,
}

impl MemoryBlob {
    /// Creates a blob of these bytes with chunks of 16 KiB.
    pub fn new(bytes: impl Into<Bytes>) -> MemoryBlob {
        MemoryBlob::with_chunk(bytes, 16 << 10)
    }

    /// Creates a blob of these bytes with chunks of at most `chunk` bytes (at least 1).
    pub fn with_chunk(bytes: impl Into<Bytes>, chunk: usize) -> MemoryBlob {
        MemoryBlob {
            bytes: bytes.into(),
            chunk: chunk.max(1),
            requests: Mutex::default(),
            sent: Arc::default(),
        }
    }

    /// All bytes of the blob.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The ranges requested so far, in order.
    pub fn requests(&self) -> Vec<Range<u64>> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Number of bytes that readers have received so far.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    fn chunks(&self, range: ByteRange) -> Vec<Bytes> {
        let (mut start, end) = (to_index(range.start()), to_index(range.end()));
        let mut chunks = Vec::new();
        while start < end {
            let next = (start + self.chunk).min(end);
            chunks.push(self.bytes.slice(start..next));
            start = next;
        }
        chunks
    }
}

fn to_index(offset: u64) -> usize {
    usize::try_from(offset).expect("a range inside a blob in memory fits usize")
}

#[async_trait]
impl Fetcher for MemoryBlob {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        let range = ByteRange::within(range, self.size())?;
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(range.into());
        let sent = Arc::clone(&self.sent);
        let chunks = self.chunks(range).into_iter().map(move |chunk| {
            sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            Ok(chunk)
        });
        Ok(RangeBody::new(range, futures_util::stream::iter(chunks)))
    }
}

impl fmt::Debug for MemoryBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBlob")
            .field("size", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// The fault in one call of [`FaultyFetcher`].
#[derive(Clone, Debug)]
pub enum FetchFault {
    /// A transient error instead of a body.
    Refuse,
    /// A permanent error instead of a body.
    Forbid,
    /// The body fails with a transient error after this many bytes.
    Cut(u64),
    /// The body stalls indefinitely after this many bytes.
    Stall(u64),
    /// The body is delayed.
    Delay(Duration),
    /// The bits of the byte at this offset of the blob are inverted, if the range contains it.
    Flip(u64),
}

/// A [`MemoryBlob`] with a script: each call of `fetch` consumes the next fault, if any.
#[derive(Debug)]
pub struct FaultyFetcher {
    blob: MemoryBlob,
    script: Mutex<VecDeque<FetchFault>>,
    offline: AtomicBool,
}

impl FaultyFetcher {
    /// Creates a blob of these bytes that first follows the script and then has no faults.
    pub fn new(
        bytes: impl Into<Bytes>,
        script: impl IntoIterator<Item = FetchFault>,
    ) -> FaultyFetcher {
        FaultyFetcher {
            blob: MemoryBlob::new(bytes),
            script: Mutex::new(script.into_iter().collect()),
            offline: AtomicBool::new(false),
        }
    }

    /// Appends a fault to the script.
    pub fn push(&self, fault: FetchFault) {
        self.script
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(fault);
    }

    /// While offline, every call fails without consuming a fault. Open bodies are not affected.
    pub fn set_online(&self, online: bool) {
        self.offline.store(!online, Ordering::SeqCst);
    }

    /// The blob without faults, for its counters.
    pub fn blob(&self) -> &MemoryBlob {
        &self.blob
    }
}

#[async_trait]
impl Fetcher for FaultyFetcher {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        let checked = ByteRange::within(range.clone(), self.size())?;
        if self.offline.load(Ordering::SeqCst) {
            return Err(no_answer(true));
        }
        let fault = self
            .script
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        match fault {
            None => self.blob.fetch(range).await,
            Some(FetchFault::Refuse) => Err(no_answer(true)),
            Some(FetchFault::Forbid) => Err(no_answer(false)),
            Some(FetchFault::Delay(wait)) => {
                tokio::time::sleep(wait).await;
                self.blob.fetch(range).await
            }
            Some(FetchFault::Cut(after)) => {
                let body = self.blob.fetch(range).await?;
                Ok(RangeBody::new(
                    checked,
                    broken(body, after, Some(broke_off())),
                ))
            }
            Some(FetchFault::Stall(after)) => {
                let body = self.blob.fetch(range).await?;
                Ok(RangeBody::new(checked, broken(body, after, None)))
            }
            Some(FetchFault::Flip(offset)) => {
                let mut bytes = self.blob.fetch(range).await?.collect().await?.to_vec();
                let at = offset.checked_sub(checked.start()).map(to_index);
                if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
                    *byte = !*byte;
                }
                Ok(RangeBody::ready(checked, bytes.into()))
            }
        }
    }
}

/// The first `after` bytes of a body, followed by the error. Without an error it stalls
/// indefinitely.
fn broken(
    body: RangeBody,
    after: u64,
    error: Option<FetchError>,
) -> impl futures_util::Stream<Item = Result<Bytes, FetchError>> + Send {
    futures_util::stream::unfold((body, after, error), |(mut body, left, error)| async move {
        if left == 0 {
            return match error {
                Some(error) => Some((Err(error), (body, left, None))),
                None => std::future::pending().await,
            };
        }
        let mut chunk = body.next().await.ok()??;
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - chunk.len() as u64;
        Some((Ok(chunk), (body, left, error)))
    })
}

fn no_answer(transient: bool) -> FetchError {
    FetchError::Transport {
        url: RedactedUrl::new("test://faulty-fetcher/"),
        connected: false,
        transient,
        source: Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
    }
}

fn broke_off() -> FetchError {
    FetchError::Transport {
        url: RedactedUrl::new("test://faulty-fetcher/"),
        connected: true,
        transient: true,
        source: Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{conformance, noise};

    #[tokio::test]
    async fn the_doubles_keep_the_contract() {
        let bytes = Bytes::from(noise(1, 70_000));
        conformance::fetcher(&MemoryBlob::new(bytes.clone()), &bytes).await;
        conformance::fetcher(&MemoryBlob::with_chunk(bytes.clone(), 1000), &bytes).await;
        conformance::fetcher(&FaultyFetcher::new(bytes.clone(), []), &bytes).await;
    }

    #[tokio::test]
    async fn faults_come_in_order_and_then_end() {
        let bytes = Bytes::from(noise(2, 40_000));
        let blob = FaultyFetcher::new(
            bytes.clone(),
            [
                FetchFault::Refuse,
                FetchFault::Cut(20_000),
                FetchFault::Flip(5),
            ],
        );
        assert!(blob.fetch(0..10).await.expect_err("refused").is_transient());
        let mut cut = blob.fetch(0..40_000).await.expect("begins");
        let error = loop {
            match cut.next().await {
                Ok(chunk) => assert!(chunk.is_some(), "a cut body must not end well"),
                Err(error) => break error,
            }
        };
        assert!(error.is_transient());
        assert_eq!(cut.received(), 20_000);
        let flipped = blob
            .fetch(0..10)
            .await
            .expect("answers")
            .collect()
            .await
            .expect("bytes");
        assert_eq!(flipped[5], !bytes[5]);
        assert_eq!(
            blob.fetch(0..10)
                .await
                .expect("answers")
                .collect()
                .await
                .expect("bytes"),
            bytes[..10]
        );
        blob.set_online(false);
        assert!(blob.fetch(0..10).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_waits_for_ever() {
        let blob = FaultyFetcher::new(noise(3, 100), [FetchFault::Stall(10)]);
        let mut body = blob.fetch(0..100).await.expect("begins");
        body.next().await.expect("ten bytes");
        let next = tokio::time::timeout(Duration::from_secs(3600), body.next()).await;
        assert!(next.is_err());
    }
}
