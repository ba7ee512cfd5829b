//! Which sources do not answer, since when, and when to ask them again. Pure: the caller brings the time.
//!
//! One clock for each outage and source. It starts when the first request of the outage began to wait, and every reader of
//! every layer looks at the same one, so the kernel's repeated reads do not start it again:
//!
//! | state | asked | waiting reads |
//! |--|--|--|
//! | well | always | - |
//! | failing, budget left | one request at a time, after a growing pause | wait |
//! | failing, budget spent | by a probe of one byte, seldom | fail at once |
//!
//! The first byte from the source ends the outage. One that nobody asks about for [`FORGET`] is forgotten.

use std::{collections::HashMap, time::Duration};

use soci_oci::fetch::FetchError;
use tokio::time::Instant;

use crate::sync::Arc;

/// The first pause after a failure; the fetcher below has made its own quick attempts already.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause while reads wait: what a reader loses at most after the source is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The first and the longest pause between probes.
const PROBE_PAUSE: Duration = Duration::from_secs(3);
const LONGEST_PROBE_PAUSE: Duration = Duration::from_secs(20);
/// Nobody has asked for so long: the image is gone or idle.
const FORGET: Duration = Duration::from_secs(900);

#[derive(Clone, Debug)]
struct Outage {
    began: Instant,
    ask_at: Instant,
    pause: Duration,
    wanted: Instant,
    last: FetchError,
}

/// What a source is good for now.
#[derive(Clone, Debug)]
pub(crate) enum Health {
    /// Ask it.
    Well,
    /// It fails; ask at this time, and reads wait.
    Failing(Instant),
    /// It has failed for longer than the budget; a probe is due at this time.
    Spent {
        /// How long the outage has lasted.
        lasted: Duration,
        probe_at: Instant,
        last: FetchError,
    },
}

/// All outages of the node.
#[derive(Debug)]
pub(crate) struct Outages {
    budget: Duration,
    by_source: HashMap<Arc<str>, Outage>,
}

impl Outages {
    pub(crate) fn new(budget: Duration) -> Outages {
        Outages {
            budget,
            by_source: HashMap::new(),
        }
    }

    /// Somebody wants bytes of this source: how is it?
    pub(crate) fn health(&mut self, source: &str, now: Instant) -> Health {
        let Some(outage) = self.by_source.get_mut(source) else {
            return Health::Well;
        };
        outage.wanted = now;
        let lasted = now.saturating_duration_since(outage.began);
        if lasted >= self.budget {
            Health::Spent {
                lasted,
                probe_at: outage.ask_at,
                last: outage.last.clone(),
            }
        } else {
            // Reads that wait must hear of the end of the budget even if no request is due before.
            Health::Failing(outage.ask_at.min(outage.began + self.budget))
        }
    }

    /// Whether a request may be made now. If the source is failing this takes its one turn.
    pub(crate) fn take_turn(&mut self, source: &str, now: Instant) -> bool {
        let budget = self.budget;
        let Some(outage) = self.by_source.get_mut(source) else {
            return true;
        };
        if now < outage.ask_at {
            return false;
        }
        let longest = if now.saturating_duration_since(outage.began) >= budget {
            LONGEST_PROBE_PAUSE
        } else {
            LONGEST_PAUSE
        };
        outage.pause = (outage.pause * 2).min(longest);
        outage.ask_at = now + outage.pause;
        true
    }

    /// A request to it failed in a way that may pass. `since` is when that request last made progress.
    pub(crate) fn failed(
        &mut self,
        source: &Arc<str>,
        since: Instant,
        now: Instant,
        error: FetchError,
    ) {
        let budget = self.budget;
        let outage = self.by_source.entry(Arc::clone(source)).or_insert_with(|| {
            tracing::warn!(source = &**source, error = %error, "a source of layers does not answer");
            Outage {
                began: since,
                ask_at: now + FIRST_PAUSE,
                pause: FIRST_PAUSE,
                wanted: now,
                last: error.clone(),
            }
        });
        outage.last = error;
        if now.saturating_duration_since(outage.began) >= budget && outage.pause < PROBE_PAUSE {
            tracing::error!(
                source = &**source,
                error = %outage.last,
                "a source of layers has not answered for longer than the read budget; missing bytes fail now"
            );
            outage.pause = PROBE_PAUSE;
        }
        outage.ask_at = now + outage.pause;
    }

    /// A byte came from it. True if that ends an outage.
    pub(crate) fn answered(&mut self, source: &str) -> bool {
        let ended = self.by_source.remove(source).is_some();
        if ended {
            tracing::info!(source, "a source of layers answers again");
        }
        ended
    }

    /// Forgets outages that nobody has asked about for long.
    pub(crate) fn forget_unwanted(&mut self, now: Instant) {
        self.by_source
            .retain(|_, outage| now.saturating_duration_since(outage.wanted) < FORGET);
    }

    /// Whether the outage of this source is still known.
    pub(crate) fn knows(&self, source: &str) -> bool {
        self.by_source.contains_key(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_secs(60);

    fn error() -> FetchError {
        FetchError::OutsideBlob {
            start: 0,
            end: 0,
            size: 0,
        }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_clock_starts_with_the_first_request_that_waited() {
        let (start, source) = (Instant::now(), Arc::from("host"));
        let mut outages = Outages::new(BUDGET);
        assert!(matches!(outages.health("host", start), Health::Well));
        outages.failed(&source, start, at(start, 15), error());
        outages.failed(&source, at(start, 15), at(start, 30), error());
        assert!(matches!(
            outages.health("host", at(start, 59)),
            Health::Failing(_)
        ));
        assert!(matches!(
            outages.health("other", at(start, 59)),
            Health::Well
        ));
        let Health::Spent { lasted, .. } = outages.health("host", at(start, 60)) else {
            panic!("the budget is spent");
        };
        assert_eq!(lasted, BUDGET);
        assert!(outages.answered("host"));
        assert!(matches!(
            outages.health("host", at(start, 61)),
            Health::Well
        ));
    }

    #[test]
    fn waiting_reads_hear_of_the_end_of_the_budget() {
        let (start, source) = (Instant::now(), Arc::from("host"));
        let mut outages = Outages::new(BUDGET);
        let mut now = start;
        for _ in 0..1000 {
            outages.failed(&source, start, now, error());
            let Health::Failing(until) = outages.health("host", now) else {
                break;
            };
            assert!(until > now && until <= start + BUDGET);
            now = until;
            assert!(outages.take_turn("host", now) || now == start + BUDGET);
        }
        assert_eq!(now, start + BUDGET);
    }

    #[test]
    fn one_request_at_a_time_asks_a_failing_source() {
        let (start, source) = (Instant::now(), Arc::from("host"));
        let mut outages = Outages::new(BUDGET);
        assert!(outages.take_turn("host", start));
        outages.failed(&source, start, start, error());
        assert!(!outages.take_turn("host", start));
        assert!(outages.take_turn("host", at(start, 1)));
        assert!(!outages.take_turn("host", at(start, 1)));
    }

    #[test]
    fn an_outage_that_nobody_asks_about_is_forgotten() {
        let (start, source) = (Instant::now(), Arc::from("host"));
        let mut outages = Outages::new(BUDGET);
        outages.failed(&source, start, start, error());
        outages.forget_unwanted(start + FORGET / 2);
        assert!(outages.knows("host"));
        outages.forget_unwanted(start + FORGET);
        assert!(!outages.knows("host"));
    }
}
