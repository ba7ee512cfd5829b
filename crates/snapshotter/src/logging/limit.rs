//! Failing reads, not logged one by one: a layer whose bytes cannot be had may fail thousands of reads a second.
//!
//! Of one complaint about one layer a few lines are written in a minute; how many were left out is told when the minute
//! is over.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

use crate::sync::Mutex;

/// Lines of one complaint about one layer in a [`WINDOW`].
const FEW: u64 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Complaints that are counted apart; those beyond share one count for each kind.
const MOST: usize = 4096;

/// What is complained of, and the layer.
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

/// Complaints that were left out of the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) message: String,
    pub(super) layer: String,
    pub(super) count: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Limit(Mutex<HashMap<Complaint, Window>>);

impl Limit {
    /// Whether this complaint is to be written.
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

    /// What was left out of windows that are over, and when to ask again; none if there is nothing to wait for.
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
    fn a_few_are_written_for_each_layer_and_minute_and_the_rest_is_counted() {
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
        assert_eq!(written("a", 71), 5, "another minute");
    }

    #[test]
    fn what_is_counted_does_not_grow_without_end() {
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
