//! A body with deadlines: for its first byte, then for each few kilobytes. Time in which it is not read does not count.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use soci_oci::fetch::{FetchError, RangeBody};
use tokio::time::{Instant, timeout_at};

use super::Source;

/// After its first byte a request brings at least so much in each such time. A packet or two: a line of 1 kB/s, even one
/// that carries several requests, does more; who gives a byte now and then to keep a reader does not.
const LEAST: u64 = 4 << 10;
const WINDOW: Duration = Duration::from_secs(20);

/// How long a body that was not read may give what it had before.
const BUFFERED: Duration = Duration::from_millis(250);

/// A body and what it must bring until when.
pub(super) struct Line {
    body: RangeBody,
    first: Duration,
    /// When this window began, with how many bytes carried.
    window: (Instant, u64),
    due: Instant,
    /// Until then what is read may come from a buffer that filled in a pause.
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

    /// It was not read for a while.
    pub(super) fn resumed(&mut self) {
        self.renew();
        self.buffered_until = Instant::now() + BUFFERED;
    }

    /// Whether it begins with bytes that are not wanted: then a second one would begin with them again.
    pub(super) fn skips(&self) -> bool {
        self.body.carried() > self.body.received()
    }

    /// Whether what comes now comes from the line.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now >= self.buffered_until
    }

    /// Counts anew.
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
