//! The body of a response that contains a range, or the whole blob around it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use reqwest::Response;

use super::super::transport::broken;
use crate::{
    fetch::{ByteRange, FetchError},
    url::RedactedUrl,
};

/// A response whose body is being read.
pub(super) struct Open {
    pub(super) answer: Response,
    pub(super) url: RedactedUrl,
    /// Index of the host.
    pub(super) source: usize,
    /// Bytes to discard first.
    pub(super) skip: u64,
    /// Remaining bytes of the range in this body.
    pub(super) left: u64,
    /// Offset in the blob of the next byte of the body, and the end that the headers state.
    pub(super) at: u64,
    pub(super) end: u64,
    /// Bytes already received that are returned next.
    pub(super) ahead: Bytes,
}

impl Open {
    /// Whether the body continues after the range.
    pub(super) fn has_more(&self) -> bool {
        self.left == 0 && self.at + (self.ahead.len() as u64) < self.end
    }

    /// Returns the next bytes of the range; `None` if the body has ended or has no more bytes of
    /// the range. Adds discarded bytes to `skipped`.
    pub(super) async fn next(
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
            // Bytes after the range are not returned, whatever the length of the body.
            let wanted = in_chunk(self.left.min(chunk.len() as u64));
            self.left -= wanted as u64;
            if self.left == 0 && self.at < self.end {
                // The next range may start with the last byte of this one.
                self.ahead = chunk.slice(wanted.saturating_sub(1)..);
                self.at -= self.ahead.len() as u64;
            }
            chunk.truncate(wanted);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    /// Returns the next bytes of the body, inside or outside the range.
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

/// Converts a number that is at most the length of a chunk.
fn in_chunk(bytes: u64) -> usize {
    usize::try_from(bytes).expect("at most the length of a chunk in memory")
}
