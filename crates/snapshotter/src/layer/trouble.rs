//! What goes wrong with one layer, and what the background leaves alone because of it.
//!
//! Who reads, fetches and stores reports here; completion asks. Nothing here says what a reader gets: reads are told
//! their own error.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::ReadError;
use crate::sync::Mutex;

/// What is wrong at its origin, or on a broken disk, is tried again after so many of the longest pauses at most: an hour.
const LONGEST: u32 = 60;

#[derive(Debug, Default)]
struct State {
    last_error: Option<String>,
    /// Nothing is asked for before.
    until: Option<Instant>,
    /// How long the next pause is.
    pause: Option<Duration>,
    /// The disk is full: ask when so many bytes are free.
    need: Option<u64>,
    /// It was said that the rest of the disk is kept for others.
    low: bool,
    /// Syncs that failed since one went well.
    failed_syncs: u32,
    /// Spans whose bytes came and were of no use.
    bad: HashMap<u32, Bad>,
}

/// A span that is not asked for in the background for a while.
#[derive(Clone, Copy, Debug)]
struct Bad {
    times: u32,
    until: Instant,
}

/// The trouble of one layer.
#[derive(Debug)]
pub(super) struct Trouble {
    /// How long the background pauses after a failure at first, and at most.
    pause: (Duration, Duration),
    state: Mutex<State>,
}

impl Trouble {
    pub(super) fn new(pause: (Duration, Duration)) -> Trouble {
        Trouble {
            pause,
            state: Mutex::default(),
        }
    }

    /// The last thing that went wrong.
    pub(super) fn last_error(&self) -> Option<String> {
        self.state.lock().last_error.clone()
    }

    /// Something went wrong for a reader: nobody else needs to wait.
    pub(super) fn note(&self, error: &ReadError) {
        self.state.lock().last_error = Some(account(error));
    }

    /// Something failed in the background: pause, longer each time.
    pub(super) fn pause(&self, error: &ReadError) {
        let error = account(error);
        let mut state = self.state.lock();
        state.last_error = Some(error);
        state.pause(self.pause);
    }

    /// The store did not take a span, and will not before so many bytes are free, if that is why. True if that is news.
    pub(super) fn no_room(&self, need: Option<u64>, error: &ReadError) -> bool {
        let error = account(error);
        let mut state = self.state.lock();
        let first = state.need.is_none();
        state.last_error = Some(error);
        state.pause(self.pause);
        state.need = need.or(state.need);
        first
    }

    /// A span was stored: the next failure pauses for the shortest time again. True if there was no room before.
    pub(super) fn recovered(&self, span: u32) -> bool {
        let mut state = self.state.lock();
        state.bad.remove(&span);
        state.pause = None;
        state.need.take().is_some()
    }

    /// A span came and was of no use: it is not asked for in the background for a while, longer each time. True if that is
    /// news.
    pub(super) fn bad_span(&self, span: u32, error: &ReadError) -> bool {
        let error = account(error);
        let mut state = self.state.lock();
        state.last_error = Some(error);
        let until = Instant::now();
        let bad = state.bad.entry(span).or_insert(Bad { times: 0, until });
        bad.times = bad.times.saturating_add(1);
        bad.until = until + pause_after(bad.times, self.pause.1);
        bad.times == 1
    }

    /// Whether a span's bytes were of no use when they came last.
    pub(super) fn is_bad(&self, span: u32) -> bool {
        self.state.lock().bad.contains_key(&span)
    }

    /// Spans that are not to be asked for now.
    pub(super) fn bad_for_now(&self) -> HashSet<u32> {
        let now = Instant::now();
        let state = self.state.lock();
        let bad = state.bad.iter().filter(|(_, bad)| bad.until > now);
        bad.map(|(span, _)| *span).collect()
    }

    /// A sync went well.
    pub(super) fn synced(&self) {
        self.state.lock().failed_syncs = 0;
    }

    /// A sync failed and written spans are lost: nothing more is written in the background for a while, longer each time, or
    /// the layer would be fetched again and again onto a disk that loses it. How often in a row it has failed.
    pub(super) fn sync_failed(&self) -> u32 {
        let mut state = self.state.lock();
        let times = state.failed_syncs.saturating_add(1);
        state.failed_syncs = times;
        state.until = Some(Instant::now() + pause_after(times, self.pause.1));
        times
    }

    /// Until when the background is to wait, none if it may go on. `free` is asked when room is missing: the bytes that are
    /// free, none if nobody knows; the disk is looked at again after `look`.
    pub(super) fn held_until(
        &self,
        free: impl FnOnce() -> Option<u64>,
        look: Duration,
    ) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if let Some(until) = state.until.filter(|until| *until > now) {
            return Some(until);
        }
        state.until = None;
        let need = state.need.take()?;
        if free().is_none_or(|free| free >= need) {
            return None;
        }
        state.need = Some(need);
        state.until = Some(now + look);
        state.until
    }

    /// Nothing is asked for before.
    pub(super) fn hold_until(&self, until: Instant) {
        self.state.lock().until = Some(until);
    }

    /// The rest of the disk is kept for others now, or is not. True if that is news.
    pub(super) fn note_low(&self, low: bool) -> bool {
        std::mem::replace(&mut self.state.lock().low, low) != low
    }

    /// A source came: what is known is forgotten, but for what is told to people.
    pub(super) fn start_over(&self) {
        let mut state = self.state.lock();
        *state = State {
            last_error: state.last_error.take(),
            ..State::default()
        };
    }
}

impl State {
    fn pause(&mut self, (first, longest): (Duration, Duration)) {
        let now = Instant::now();
        if self.until.is_some_and(|until| until > now) {
            return;
        }
        let pause = self.pause.map_or(first, |pause| (pause * 2).min(longest));
        self.pause = Some(pause);
        self.until = Some(now + pause);
    }
}

/// The pause after something was wrong so many times.
fn pause_after(times: u32, unit: Duration) -> Duration {
    unit * 2_u32.saturating_pow(times.saturating_sub(1)).min(LONGEST)
}

/// An error and its causes in one line.
fn account(error: &ReadError) -> String {
    let mut text = error.to_string();
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source;
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use soci_oci::Digest;

    use super::*;
    use crate::{layer::Subject, sync::Arc};

    const SECOND: Duration = Duration::from_secs(1);

    fn trouble() -> (Trouble, ReadError) {
        let subject = Subject {
            image: "app".into(),
            layer: Digest::sha256(b"layer"),
            span: None,
        };
        let error = ReadError::Store {
            subject: Arc::new(subject),
            source: Arc::new(io::ErrorKind::StorageFull.into()),
        };
        (Trouble::new((SECOND, 4 * SECOND)), error)
    }

    fn wait(trouble: &Trouble) -> Duration {
        let until = trouble.held_until(|| None, SECOND);
        until.map_or(Duration::ZERO, |until| until - Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_until_something_is_stored() {
        let (trouble, error) = trouble();
        for pause in [1, 2, 4, 4] {
            trouble.pause(&error);
            trouble.pause(&error);
            assert_eq!(wait(&trouble), pause * SECOND, "one pause at a time");
            tokio::time::advance(pause * SECOND).await;
            assert_eq!(wait(&trouble), Duration::ZERO);
        }
        trouble.recovered(0);
        trouble.pause(&error);
        assert_eq!(wait(&trouble), SECOND);
        trouble.start_over();
        assert_eq!(wait(&trouble), Duration::ZERO);
        let told = trouble.last_error().expect("still told");
        assert!(told.contains("the store fails: no storage space"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_is_waited_for_until_there_is_room() {
        let (trouble, error) = trouble();
        assert!(trouble.no_room(Some(100), &error));
        assert!(!trouble.no_room(None, &error), "it is known");
        tokio::time::advance(SECOND).await;
        let look = Instant::now() + SECOND;
        assert_eq!(trouble.held_until(|| Some(99), SECOND), Some(look));
        assert_eq!(trouble.held_until(|| Some(100), SECOND), Some(look));
        tokio::time::advance(SECOND).await;
        assert_eq!(trouble.held_until(|| Some(100), SECOND), None);
        assert!(!trouble.recovered(0), "room was found");
    }

    #[tokio::test(start_paused = true)]
    async fn bad_spans_and_failed_syncs_are_left_alone_for_longer_and_longer() {
        let (trouble, error) = trouble();
        for pause in [4_u32, 8, 16] {
            assert_eq!(trouble.bad_span(7, &error), pause == 4);
            assert_eq!(trouble.sync_failed(), pause.ilog2() - 1);
            assert_eq!(wait(&trouble), pause * SECOND);
            tokio::time::advance(pause * SECOND - SECOND / 2).await;
            assert!(trouble.bad_for_now().contains(&7));
            tokio::time::advance(SECOND / 2).await;
            assert!(trouble.bad_for_now().is_empty() && trouble.is_bad(7));
        }
        trouble.recovered(7);
        assert!(!trouble.is_bad(7));
        trouble.synced();
        assert_eq!(trouble.sync_failed(), 1);
    }
}
