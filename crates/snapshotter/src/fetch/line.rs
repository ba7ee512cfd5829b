//! A body with deadlines: one for its first byte, then one for every few kilobytes. Time in which
//! it is not read does not count.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use soci_registry::fetch::{FetchError, RangeBody};
use tokio::time::{Instant, timeout_at};

use super::Source;

/// After its first byte, a request must deliver at least this much per [`WINDOW`]. Even a 1 kB/s
/// link that carries several requests delivers more. A server that sends a byte now and then to
/// keep a reader waiting does not.
const LEAST: u64 = 4 << 10;
const WINDOW: Duration = Duration::from_secs(20);

/// How long a body that was paused may still deliver bytes that were buffered before.
const BUFFERED: Duration = Duration::from_millis(250);

/// A body and its deadline.
pub(super) struct Line {
    body: RangeBody,
    first: Duration,
    /// When this window began, and how many bytes had been carried by then.
    window: (Instant, u64),
    due: Instant,
    /// Until this time, bytes may come from a buffer that filled during a pause.
    buffered_until: Instant,
}

impl Line {
    pub(super) async fn open(
        source: &Source,
        range: Range<u64>,
        background: bool,
        first: Duration,
    ) -> Result<Line, FetchError> {
        let now = Instant::now();
        let due = now + first;
        let asking = async {
            match background {
                true => source.fetcher.fetch_behind(range).await,
                false => source.fetcher.fetch(range).await,
            }
        };
        match timeout_at(due, asking).await {
            Ok(body) => Ok(Line {
                body: body?,
                first,
                window: (now, 0),
                due,
                buffered_until: now,
            }),
            Err(_) => Err(FetchError::TooSlow {
                received: 0,
                lasted: first,
            }),
        }
    }

    /// Restarts the deadline after a pause.
    pub(super) fn resumed(&mut self) {
        self.renew();
        self.buffered_until = Instant::now() + BUFFERED;
    }

    /// Whether the body starts with unwanted bytes. Reopening it would transfer them again.
    pub(super) fn skips(&self) -> bool {
        self.body.carried() > self.body.received()
    }

    /// Whether bytes that arrive now come from the network, not from a buffer.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now >= self.buffered_until
    }

    /// Starts a new window.
    fn renew(&mut self) {
        let now = Instant::now();
        self.window = (now, self.body.carried());
        let begun = self.window.1 > 0;
        self.due = now + if begun { WINDOW } else { self.first };
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let chunk = timeout_at(self.due, self.body.next()).await;
            let (began, before) = self.window;
            let came = self.body.carried() - before;
            let least = if before == 0 { 1 } else { LEAST };
            if came >= least {
                self.renew();
            }
            match chunk {
                Ok(chunk) => return chunk,
                Err(_) if came >= least => {}
                Err(_) => {
                    return Err(FetchError::TooSlow {
                        received: came,
                        lasted: began.elapsed(),
                    });
                }
            }
        }
    }
}
