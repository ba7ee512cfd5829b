//! Records what readers waited for: the most recent reads with missing bytes, and the duration of
//! each step of their spans. Used by `soci-snapshotter-grpc reads` and the debug log.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{metrics, sync::Mutex};

/// Maximum number of recorded reads, of a few hundred bytes each.
const MOST: usize = 512;

/// How long each step of one span took, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanWait {
    /// Number of the span.
    pub span: u32,
    /// From the first demand to the request.
    pub queue_us: u64,
    /// From the request to its last byte.
    pub wire_us: u64,
    /// Compressed bytes that were verified and decompressed during that time. That work is not part
    /// of `inflate_us`.
    #[serde(default)]
    pub early_bytes: u64,
    /// Until a pool thread was available.
    pub pool_us: u64,
    /// Verification and decompression.
    pub inflate_us: u64,
    /// Until it was written, for reads that were not answered from memory.
    pub write_us: u64,
}

/// A read that waited for bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadWait {
    /// When it was answered, in milliseconds since 1970.
    pub at_ms: u64,
    /// The image that first named the layer.
    pub image: String,
    /// Digest of the layer.
    pub layer: String,
    /// Number of the layer in the store.
    pub number: u64,
    /// Offset in `data`.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// From its start to its answer, in microseconds.
    pub took_us: u64,
    /// The spans it waited for.
    pub spans: Vec<SpanWait>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// When a span passed each step.
#[derive(Clone, Copy, Debug)]
struct Steps {
    demanded: Instant,
    asked: Option<Instant>,
    delivered: Option<Instant>,
    early_bytes: u64,
    begun: Option<Instant>,
    decoded: Option<Instant>,
}

/// The spans of a layer that are in progress.
#[derive(Debug, Default)]
pub(in crate::layer) struct Times(Mutex<HashMap<u32, Steps>>);

impl Times {
    pub(super) fn demanded(&self, span: u32) {
        let demanded = Instant::now();
        let none = || Steps {
            demanded,
            asked: None,
            delivered: None,
            early_bytes: 0,
            begun: None,
            decoded: None,
        };
        self.0.lock().entry(span).or_insert_with(none);
    }

    pub(super) fn delivered(&self, span: u32, asked: Instant, early_bytes: u64) {
        self.note(span, |steps| {
            steps.asked = Some(asked);
            steps.delivered = Some(Instant::now());
            steps.early_bytes = early_bytes;
        });
    }

    pub(super) fn begun(&self, span: u32) {
        self.note(span, |steps| steps.begun = Some(Instant::now()));
    }

    pub(super) fn decoded(&self, span: u32) {
        self.note(span, |steps| steps.decoded = Some(Instant::now()));
    }

    fn note(&self, span: u32, step: impl FnOnce(&mut Steps)) {
        if let Some(steps) = self.0.lock().get_mut(&span) {
            step(steps);
        }
    }

    /// The duration of each step until now.
    pub(super) fn wait(&self, span: u32) -> SpanWait {
        let Some(steps) = self.0.lock().get(&span).copied() else {
            return SpanWait {
                span,
                ..SpanWait::default()
            };
        };
        // A step that was skipped or came out of order took no time.
        let mut last = steps.demanded;
        let mut until = |step: Option<Instant>| {
            let step = step.unwrap_or(last);
            let took = micros(step.saturating_duration_since(last));
            last = last.max(step);
            took
        };
        SpanWait {
            span,
            queue_us: until(steps.asked),
            wire_us: until(steps.delivered),
            early_bytes: steps.early_bytes,
            pool_us: until(steps.begun),
            inflate_us: until(steps.decoded),
            write_us: until(Some(Instant::now())),
        }
    }

    pub(super) fn forget(&self, span: u32) {
        self.0.lock().remove(&span);
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.0.lock().len()
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The current time in milliseconds since 1970.
pub(in crate::layer) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| micros(since) / 1000)
}

/// The most recent reads of the node that waited.
#[derive(Debug, Default)]
pub(in crate::layer) struct Waits(Mutex<VecDeque<ReadWait>>);

impl Waits {
    pub(in crate::layer) fn newest(&self) -> Vec<ReadWait> {
        self.0.lock().iter().cloned().collect()
    }

    pub(super) fn keep(&self, wait: ReadWait) {
        let took = Duration::from_micros(wait.took_us);
        metrics::global().read_wait.observe(took.as_secs_f64());
        tracing::debug!(
            layer = wait.layer,
            offset = wait.offset,
            bytes = wait.bytes,
            took_us = wait.took_us,
            spans = ?wait.spans,
            error = wait.error,
            "a read waited for bytes"
        );
        let mut waits = self.0.lock();
        if waits.len() >= MOST {
            waits.pop_front();
        }
        waits.push_back(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_step_is_timed() {
        let times = Times::default();
        let step = || tokio::time::advance(Duration::from_micros(10));
        times.demanded(3);
        step().await;
        times.demanded(3);
        let asked = Instant::now();
        step().await;
        step().await;
        times.delivered(3, asked, 7);
        times.begun(3);
        step().await;
        times.decoded(3);
        let wait = times.wait(3);
        let steps = [
            wait.queue_us,
            wait.wire_us,
            wait.pool_us,
            wait.inflate_us,
            wait.write_us,
        ];
        assert_eq!((steps, wait.early_bytes), ([10, 20, 0, 10, 0], 7));
        times.forget(3);
        let unknown = SpanWait {
            span: 3,
            ..SpanWait::default()
        };
        assert_eq!(times.wait(3), unknown);
    }

    #[test]
    fn the_newest_reads_are_kept() {
        let waits = Waits::default();
        for number in 0..MOST as u64 + 2 {
            waits.keep(ReadWait {
                number,
                ..ReadWait::default()
            });
        }
        let kept = waits.newest();
        assert_eq!((kept.len(), kept[0].number), (MOST, 2));
    }
}
