//! Limits repeated warnings: a layer whose bytes cannot be downloaded may fail thousands of reads a
//! second.
//!
//! Each kind of warning about a layer is written a few times per minute. After the minute, one line
//! reports how many were suppressed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

use crate::sync::Mutex;

/// Lines per kind of warning and layer in a [`WINDOW`].
const FEW: u64 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Number of separate counters. Further layers share one counter per kind.
const MOST: usize = 4096;

/// A kind of warning and its layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Complaint {
    pub(super) kind: Identifier,
    pub(super) layer: String,
}

#[derive(Debug)]
struct Window {
    message: String,
    begun: Instant,
    count: u64,
}

/// Suppressed warnings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) message: String,
    pub(super) layer: String,
    pub(super) count: u64,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Limit(Mutex<HashMap<Complaint, Window>>);

impl Limit {
    /// Whether to write this warning.
    pub(super) fn admits(&self, mut complaint: Complaint, message: &str, now: Instant) -> bool {
        let mut windows = self.0.lock();
        if windows.len() >= MOST && !windows.contains_key(&complaint) {
            complaint.layer.clear();
        }
        let window = windows.entry(complaint).or_insert_with(|| Window {
            message: message.to_owned(),
            begun: now,
            count: 0,
        });
        window.count += 1;
        window.count <= FEW
    }

    /// The suppressed warnings of windows that are over, and when to call this again. `None` if no
    /// window is open.
    pub(super) fn over(&self, now: Instant) -> (Vec<LeftOut>, Option<Duration>) {
        let mut windows = self.0.lock();
        let is_over = |window: &Window| now.saturating_duration_since(window.begun) >= WINDOW;
        let over = windows.extract_if(|_, window| is_over(window));
        let left_out = over.filter_map(|(complaint, window)| {
            let count = window.count.checked_sub(FEW).filter(|count| *count > 0)?;
            Some(LeftOut {
                message: window.message,
                layer: complaint.layer,
                count,
            })
        });
        let left_out = left_out.collect();
        let first = windows.values().map(|window| window.begun + WINDOW).min();
        let next = first.map(|first| first.saturating_duration_since(now));
        (left_out, next)
    }
}

#[cfg(test)]
mod tests {
    use tracing::Callsite as _;
    use tracing::callsite::DefaultCallsite;

    use super::*;

    fn kind() -> Identifier {
        static CALLSITE: DefaultCallsite = DefaultCallsite::new(META);
        static META: &tracing::Metadata<'static> = &tracing::metadata! {
            name: "complaint",
            target: "test",
            level: tracing::Level::WARN,
            fields: &[],
            callsite: &CALLSITE,
            kind: tracing::metadata::Kind::EVENT,
        };
        CALLSITE.metadata().callsite()
    }

    #[test]
    fn a_few_lines_per_layer_and_minute_are_written_and_the_rest_counted() {
        let (limit, begin) = (Limit::default(), Instant::now());
        let written = |layer: &str, after: u64| {
            let at = begin + Duration::from_secs(after);
            let complaint = || Complaint {
                kind: kind(),
                layer: layer.to_owned(),
            };
            let admitted = (0..1000).filter(|_| limit.admits(complaint(), "it fails", at));
            admitted.count()
        };
        assert_eq!([written("a", 0), written("b", 10)], [5, 5]);
        assert_eq!(written("a", 30), 0);
        let (out, next) = limit.over(begin + Duration::from_secs(30));
        assert_eq!((out, next), (vec![], Some(Duration::from_secs(30))));
        let left_out = |layer: &str, count| LeftOut {
            message: "it fails".to_owned(),
            layer: layer.to_owned(),
            count,
        };
        let (out, next) = limit.over(begin + Duration::from_secs(60));
        assert_eq!(out, [left_out("a", 1995)]);
        assert_eq!(next, Some(Duration::from_secs(10)));
        let (out, next) = limit.over(begin + Duration::from_secs(70));
        assert_eq!((out, next), (vec![left_out("b", 995)], None));
        assert_eq!(written("a", 71), 5, "in the next minute");
    }

    #[test]
    fn the_number_of_counters_is_limited() {
        let (limit, now) = (Limit::default(), Instant::now());
        for layer in 0..2 * MOST {
            let layer = layer.to_string();
            limit.admits(
                Complaint {
                    kind: kind(),
                    layer,
                },
                "it fails",
                now,
            );
        }
        assert!(limit.0.lock().len() <= MOST + 1);
    }
}
