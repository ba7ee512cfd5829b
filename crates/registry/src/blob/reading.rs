//! A range that is read to its end, over as many responses as it takes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use super::super::{retry::Attempts, transport::Way};
use super::{Inner, Open};
use crate::fetch::{ByteRange, FetchError};

/// Progress of this many bytes resets the retry budget. With a lower value, a host that sends
/// single bytes could block a reader indefinitely.
const PROGRESS: u64 = 64 << 10;

/// A range in progress and the body that delivers its rest.
pub(super) struct Reading {
    pub(super) inner: Arc<Inner>,
    pub(super) way: Way,
    pub(super) range: ByteRange,
    pub(super) done: u64,
    /// Bytes since the retry budget was last reset.
    pub(super) worth: u64,
    pub(super) open: Option<Open>,
    pub(super) attempts: Attempts,
    /// Discarded bytes.
    pub(super) skipped: Arc<AtomicU64>,
}

impl Reading {
    pub(super) async fn step(mut self) -> Option<(Result<Bytes, FetchError>, Reading)> {
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
            let idle = self.inner.idle_of(open.source);
            let error = match open.next(rest, idle, &self.skipped).await {
                Ok(Some(chunk)) => {
                    if let Some(source) = self.inner.sources.get(open.source) {
                        source.served.store(true, Ordering::Relaxed);
                    }
                    self.took(chunk.len() as u64);
                    self.keep_what_goes_on();
                    return Ok(Some(chunk));
                }
                // The body was truncated or contained less than requested. Request the rest.
                Ok(None) => FetchError::Short {
                    range: self.range,
                    received: self.done,
                },
                Err(error) => error,
            };
            if let Some(open) = self.open.take()
                && let Some(source) = self.inner.sources.get(open.source)
            {
                source.endpoint.broke(&error);
            }
            self.resume(error).await?;
        }
        Ok(None)
    }

    /// Keeps the body for the next range if this range is complete and the body continues.
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

    /// Waits before the next request, or returns the failure.
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
