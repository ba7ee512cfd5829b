//! Leaves a failing mirror alone for a growing time.
//!
//! | state | the mirror is asked | ends with |
//! |--|--|--|
//! | closed | in its turn | a failure |
//! | open | after all others | the end of the pause, or a good answer of a mirror that was silent |
//! | trial | in its turn, by one request | a failure, a good answer, or the end of the lease |
//!
//! Each failure of a trial doubles the pause. A mirror that was good for as long as its last pause
//! starts again with the first one. The caller supplies the time.

use std::time::{Duration, Instant};

/// The first pause: longer than a restart of a cache, short enough to be harmless after a single
/// failed request.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause. Each trial of a silent mirror costs one request its timeout.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Longer than a request waits for a response. After it, a trial without outcome counts as passed.
const LEASE: Duration = Duration::from_secs(30);

/// How a mirror fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No answer, or a server error. Any other answer proves that it is over.
    Silent,
    /// Wrong bytes, or bodies that break off. An answer proves nothing.
    Broken,
}

/// The state of one mirror.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    state: State,
    pause: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Good,
    /// Good again since this time.
    GoodSince(Instant),
    Open(Instant, Failure),
    Trial(Instant, Failure),
}

impl Breaker {
    /// Whether to ask in turn. After a pause, only one caller gets `true` until its request ends.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        match self.state {
            State::Good | State::GoodSince(_) => true,
            State::Open(until, _) | State::Trial(until, _) if now < until => false,
            State::Open(_, failure) => {
                self.state = State::Trial(now + LEASE, failure);
                true
            }
            State::Trial(until, _) => {
                self.state = State::GoodSince(until);
                true
            }
        }
    }

    /// Records a failure. Returns the pause that starts now; `None` during a pause, because requests
    /// that began before it fail as well.
    pub(crate) fn failed(&mut self, failure: Failure, now: Instant) -> Option<Duration> {
        self.pause = match self.state {
            State::Open(until, _) if now < until => return None,
            State::Good => FIRST_PAUSE,
            State::GoodSince(since) if now.saturating_duration_since(since) > self.pause => {
                FIRST_PAUSE
            }
            _ => (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE),
        };
        self.state = State::Open(now + self.pause, failure);
        Some(self.pause)
    }

    /// Records a good answer. Returns true if that ends an outage.
    pub(crate) fn answered(&mut self) -> bool {
        let silent = matches!(
            self.state,
            State::Open(_, Failure::Silent) | State::Trial(_, Failure::Silent)
        );
        if silent {
            self.state = State::Good;
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Fails every trial. Returns the pauses.
    fn pauses(
        breaker: &mut Breaker,
        failure: Failure,
        count: usize,
        now: &mut Instant,
    ) -> Vec<u64> {
        let mut pauses = Vec::new();
        for _ in 0..count {
            assert!(breaker.admits(*now));
            let pause = breaker.failed(failure, *now).expect("a trial has failed");
            assert!(!breaker.admits(*now + pause - SECOND));
            *now += pause;
            pauses.push(pause.as_secs());
        }
        pauses
    }

    #[test]
    fn the_pause_grows_up_to_a_limit() {
        for failure in [Failure::Silent, Failure::Broken] {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            let pauses = pauses(&mut breaker, failure, 7, &mut now);
            assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300], "{failure:?}");
        }
    }

    #[test]
    fn one_request_at_a_time_tries_it_again() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(breaker.failed(Failure::Silent, now).is_some());
        assert!(
            breaker.failed(Failure::Silent, now + SECOND).is_none(),
            "requests of before fail as well"
        );
        let later = now + FIRST_PAUSE;
        assert!(breaker.admits(later));
        assert!(!breaker.admits(later), "one is enough");
        assert!(breaker.admits(later + LEASE), "nobody complained");
        assert!(breaker.admits(later + LEASE));
    }

    #[test]
    fn an_answer_ends_silence_at_once_but_not_wrong_bytes() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        pauses(&mut breaker, Failure::Silent, 3, &mut now);
        assert!(breaker.answered());
        assert!(!breaker.answered());
        assert_eq!(breaker.failed(Failure::Broken, now), Some(FIRST_PAUSE));
        assert!(!breaker.answered());
        assert!(!breaker.admits(now));
    }

    #[test]
    fn good_behavior_for_a_whole_pause_is_rewarded() {
        for (good_for, pause) in [(39, 80), (41, 10)] {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            pauses(&mut breaker, Failure::Broken, 3, &mut now);
            assert!(breaker.admits(now), "the trial");
            now += LEASE;
            assert!(breaker.admits(now), "it has passed");
            now += Duration::from_secs(good_for);
            let next = breaker.failed(Failure::Broken, now);
            assert_eq!(next, Some(Duration::from_secs(pause)), "{good_for}");
        }
    }
}
