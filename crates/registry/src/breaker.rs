//! Leaves a failing mirror alone for a growing time.
//!
//! | state | the mirror is asked | ends with |
//! |--|--|--|
//! | closed | in its turn | a failure |
//! | open | after all others | a turn after the pause, or a good answer of a mirror that was silent |
//! | trial | in its turn, by one request | a failure, an answer, or the end of the request |
//! | probation | after all others | a failure, or the end of [`PROBATION`] |
//!
//! Each failure of a trial doubles the pause. A trial that ends without an answer or a failure, such as
//! one whose reader gives up, is left to the next request. A mirror that was good for as long as its
//! last pause starts again with the first one.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The first pause: longer than a restart of a cache, short enough to be harmless after a single
/// failed request.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause. Each trial of a silent mirror costs one request its timeout.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long after the answer of a trial wrong bytes or a broken body count as its failure.
const PROBATION: Duration = Duration::from_secs(30);

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
pub(crate) struct Breaker(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: State,
    pause: Duration,
    /// The number of trials so far. A late request must not end the trial of another one.
    trials: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Good,
    /// Good again since this time.
    GoodSince(Instant),
    Open(Instant, Failure),
    /// The trial with this number.
    Trial(Failure, u64),
    Probation(Instant, Failure),
}

/// The right to ask a mirror in its turn, held while it is asked. It is given back on drop, unless
/// the request had an outcome.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    breaker: &'a Breaker,
    /// The number of the trial, if it is one.
    trial: Option<u64>,
}

impl Turn<'_> {
    /// The mirror has given what it was asked for.
    pub(crate) fn succeeded(self) {
        if let Some(trial) = self.trial {
            self.breaker.locked().passed(trial, Instant::now());
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(trial) = self.trial {
            self.breaker.locked().give_back(trial, Instant::now());
        }
    }
}

impl Breaker {
    /// The turn of the mirror, if it has one. After a pause, only one caller gets it.
    pub(crate) fn turn(&self) -> Option<Turn<'_>> {
        let trial = self.locked().turn(Instant::now())?;
        Some(Turn {
            breaker: self,
            trial,
        })
    }

    /// Records a failure. Returns the pause that starts now; `None` during a pause, because requests
    /// that began before it fail as well.
    pub(crate) fn failed(&self, failure: Failure) -> Option<Duration> {
        self.locked().failed(failure, Instant::now())
    }

    /// Records a good answer. Returns true if that ends an outage.
    pub(crate) fn answered(&self) -> bool {
        self.locked().answered(Instant::now())
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether there is a turn now, and the number of the trial if it is one.
    fn turn(&mut self, now: Instant) -> Option<Option<u64>> {
        match self.state {
            State::Good | State::GoodSince(_) => Some(None),
            State::Open(until, failure) if now >= until => {
                self.trials += 1;
                self.state = State::Trial(failure, self.trials);
                Some(Some(self.trials))
            }
            State::Probation(until, _) if now >= until => {
                self.state = State::GoodSince(until);
                Some(None)
            }
            State::Open(..) | State::Trial(..) | State::Probation(..) => None,
        }
    }

    /// A trial ended without an outcome: the next request tries.
    fn give_back(&mut self, trial: u64, now: Instant) {
        match self.state {
            State::Trial(failure, running) if running == trial => {
                self.state = State::Open(now, failure);
            }
            _ => {}
        }
    }

    /// A trial had a good outcome.
    fn passed(&mut self, trial: u64, now: Instant) {
        match self.state {
            State::Trial(failure, running) if running == trial => {
                self.state = State::Probation(now + PROBATION, failure);
            }
            _ => {}
        }
    }

    fn failed(&mut self, failure: Failure, now: Instant) -> Option<Duration> {
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

    fn answered(&mut self, now: Instant) -> bool {
        match self.state {
            State::Open(_, Failure::Silent)
            | State::Trial(Failure::Silent, _)
            | State::Probation(_, Failure::Silent) => {
                self.state = State::Good;
                true
            }
            State::Trial(Failure::Broken, trial) => {
                self.passed(trial, now);
                false
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Fails every trial. Returns the pauses.
    fn pauses(breaker: &mut Inner, failure: Failure, count: usize, now: &mut Instant) -> Vec<u64> {
        let mut pauses = Vec::new();
        for _ in 0..count {
            assert!(breaker.turn(*now).is_some());
            let pause = breaker.failed(failure, *now).expect("a trial has failed");
            assert_eq!(breaker.turn(*now + pause - SECOND), None);
            *now += pause;
            pauses.push(pause.as_secs());
        }
        pauses
    }

    #[test]
    fn the_pause_grows_up_to_a_limit() {
        for failure in [Failure::Silent, Failure::Broken] {
            let (mut breaker, mut now) = (Inner::default(), Instant::now());
            let pauses = pauses(&mut breaker, failure, 7, &mut now);
            assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300], "{failure:?}");
        }
    }

    #[test]
    fn one_request_at_a_time_tries_it_again() {
        let (mut breaker, now) = (Inner::default(), Instant::now());
        assert!(breaker.failed(Failure::Silent, now).is_some());
        assert!(
            breaker.failed(Failure::Silent, now + SECOND).is_none(),
            "requests of before fail as well"
        );
        let later = now + FIRST_PAUSE;
        assert_eq!(breaker.turn(later), Some(Some(1)));
        let long = later + Duration::from_secs(3600);
        assert_eq!(
            breaker.turn(long),
            None,
            "one is enough, however long it takes"
        );
        breaker.passed(1, long);
        assert_eq!(breaker.turn(long + PROBATION - SECOND), None);
        let after = long + PROBATION;
        assert_eq!(breaker.turn(after), Some(None), "nobody complained");
        assert_eq!(breaker.turn(after), Some(None));
    }

    #[test]
    fn a_trial_without_an_outcome_is_left_to_the_next_request() {
        for failure in [Failure::Silent, Failure::Broken] {
            let breaker = Breaker::default();
            breaker.locked().state = State::Open(Instant::now(), failure);
            let trial = breaker.turn().expect("the pause is over");
            assert!(breaker.turn().is_none());
            drop(trial);
            let trial = breaker.turn().expect("the first one gave up");
            assert!(trial.trial.is_some());
            trial.succeeded();
            assert!(breaker.turn().is_none(), "it is on probation");
            assert_eq!(breaker.failed(failure), Some(FIRST_PAUSE));
            assert!(breaker.turn().is_none());
        }
    }

    #[test]
    fn a_late_request_does_not_end_the_trial_of_another_one() {
        let (mut breaker, now) = (Inner::default(), Instant::now());
        assert!(breaker.failed(Failure::Silent, now).is_some());
        let late = breaker.turn(now + FIRST_PAUSE).flatten().expect("a trial");
        // A request that asks the mirror last fails meanwhile, and the next trial begins.
        let pause = breaker.failed(Failure::Silent, now + FIRST_PAUSE);
        let then = now + FIRST_PAUSE + pause.expect("a pause");
        let trial = breaker.turn(then).flatten().expect("a trial");
        breaker.give_back(late, then);
        assert_eq!(breaker.turn(then), None, "it was not given back");
        breaker.passed(late, then);
        breaker.give_back(trial, then);
        assert!(breaker.turn(then).flatten().is_some(), "it has not passed");
    }

    #[test]
    fn an_answer_does_not_end_the_probation_of_a_mirror_with_wrong_bytes() {
        let (mut breaker, now) = (Inner::default(), Instant::now());
        assert!(breaker.failed(Failure::Broken, now).is_some());
        let later = now + FIRST_PAUSE;
        assert_eq!(breaker.turn(later), Some(Some(1)));
        assert!(!breaker.answered(later));
        breaker.give_back(1, later);
        assert_eq!(breaker.turn(later + PROBATION - SECOND), None);
        assert_eq!(breaker.turn(later + PROBATION), Some(None));
    }

    #[test]
    fn an_answer_ends_silence_at_once_but_not_wrong_bytes() {
        let (mut breaker, mut now) = (Inner::default(), Instant::now());
        pauses(&mut breaker, Failure::Silent, 3, &mut now);
        assert!(breaker.answered(now));
        assert!(!breaker.answered(now));
        assert_eq!(breaker.failed(Failure::Broken, now), Some(FIRST_PAUSE));
        assert!(!breaker.answered(now));
        assert_eq!(breaker.turn(now), None);
    }

    #[test]
    fn good_behavior_for_a_whole_pause_is_rewarded() {
        for (good_for, pause) in [(39, 80), (41, 10)] {
            let (mut breaker, mut now) = (Inner::default(), Instant::now());
            pauses(&mut breaker, Failure::Broken, 3, &mut now);
            let trial = breaker.turn(now).flatten().expect("a trial");
            breaker.passed(trial, now);
            now += PROBATION;
            assert_eq!(breaker.turn(now), Some(None), "it has passed");
            now += Duration::from_secs(good_for);
            let next = breaker.failed(Failure::Broken, now);
            assert_eq!(next, Some(Duration::from_secs(pause)), "{good_for}");
        }
    }
}
