//! Recent failures of one layer, and what the background postpones because of them.
//!
//! Readers, downloads, and writes report here, and completion checks here. This does not affect the
//! result of a read: each read gets its own error.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::ReadError;
use crate::{metrics::Pause, sync::Mutex};

/// Bytes that are wrong at their origin, and broken disks, are retried after at most this many of
/// the longest pauses: one hour by default.
const LONGEST: u32 = 60;

#[derive(Debug, Default)]
struct State {
    last_error: Option<String>,
    /// The background requests nothing before this time.
    until: Option<Instant>,
    /// The length of the previous pause.
    pause: Option<Duration>,
    /// The disk is full: wait until this many bytes are free.
    need: Option<u64>,
    /// Whether low disk space has been logged.
    low: bool,
    /// Number of failed syncs since the last success.
    failed_syncs: u32,
    /// Spans whose bytes arrived and were unusable.
    bad: HashMap<u32, Bad>,
}

/// A span that the background does not request for a while.
#[derive(Clone, Copy, Debug)]
struct Bad {
    times: u32,
    until: Instant,
}

/// The failures of one layer.
#[derive(Debug)]
pub(super) struct Trouble {
    /// The first and the longest pause of the background after a failure.
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

    /// The most recent error.
    pub(super) fn last_error(&self) -> Option<String> {
        self.state.lock().last_error.clone()
    }

    /// Records an error of a reader. Does not pause the background.
    pub(super) fn note(&self, error: &ReadError) {
        self.state.lock().last_error = Some(account(error));
    }

    /// Records an error of the background and starts a pause, twice as long each time.
    pub(super) fn pause(&self, error: &ReadError) {
        let error = account(error);
        let mut state = self.state.lock();
        state.last_error = Some(error);
        state.pause(self.pause);
    }

    /// The store did not accept a span. If the disk is full, `need` is the free space to wait for.
    /// Returns true unless the layer was already waiting for free space.
    pub(super) fn no_room(&self, need: Option<u64>, error: &ReadError) -> bool {
        let error = account(error);
        let mut state = self.state.lock();
        let first = state.need.is_none();
        state.last_error = Some(error);
        state.pause(self.pause);
        state.need = need.or(state.need);
        first
    }

    /// A span was stored: resets the pause. Returns true if the disk was full before.
    pub(super) fn recovered(&self, span: u32) -> bool {
        let mut state = self.state.lock();
        state.bad.remove(&span);
        state.pause = None;
        state.need.take().is_some()
    }

    /// The bytes of a span were unusable: the background does not request it for a while, longer
    /// each time. Returns true the first time.
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

    /// Whether a span's bytes were unusable when they last arrived.
    pub(super) fn is_bad(&self, span: u32) -> bool {
        self.state.lock().bad.contains_key(&span)
    }

    /// Whether nothing but a reader may request the span now.
    pub(super) fn is_bad_for_now(&self, span: u32) -> bool {
        let now = Instant::now();
        let state = self.state.lock();
        state.bad.get(&span).is_some_and(|bad| bad.until > now)
    }

    /// Spans that the background must not request now.
    pub(super) fn bad_for_now(&self) -> HashSet<u32> {
        let now = Instant::now();
        let state = self.state.lock();
        let bad = state.bad.iter().filter(|(_, bad)| bad.until > now);
        bad.map(|(span, _)| *span).collect()
    }

    /// A sync succeeded.
    pub(super) fn synced(&self) {
        self.state.lock().failed_syncs = 0;
    }

    /// A sync failed and written spans are lost: the background writes nothing for a while, longer
    /// each time. Otherwise the layer would be downloaded repeatedly to a disk that loses it.
    /// Returns the number of consecutive failures.
    pub(super) fn sync_failed(&self) -> u32 {
        let mut state = self.state.lock();
        let times = state.failed_syncs.saturating_add(1);
        state.failed_syncs = times;
        state.until = Some(Instant::now() + pause_after(times, self.pause.1));
        times
    }

    /// Until when the background must wait. `None` if it may continue. If the disk was full, `free`
    /// returns the free bytes, or `None` if unknown. The disk is checked again after `look`.
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

    /// Makes the background wait until this time.
    pub(super) fn hold_until(&self, until: Instant) {
        self.state.lock().until = Some(until);
    }

    /// Records whether disk space is low. Returns true if that changed.
    pub(super) fn note_low(&self, low: bool) -> bool {
        std::mem::replace(&mut self.state.lock().low, low) != low
    }

    /// Why the background downloads nothing of the layer now.
    pub(super) fn paused(&self) -> Option<Pause> {
        let state = self.state.lock();
        if state.low || state.need.is_some() {
            return Some(Pause::Disk);
        }
        let waits = state.until.is_some_and(|until| until > Instant::now());
        waits.then_some(Pause::Failure)
    }

    /// A source was added: clears everything except the most recent error.
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

/// The pause after this many failures.
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
            assert_eq!(wait(&trouble), pause * SECOND, "pauses do not overlap");
            tokio::time::advance(pause * SECOND).await;
            assert_eq!(wait(&trouble), Duration::ZERO);
        }
        assert_eq!(trouble.paused(), None);
        trouble.recovered(0);
        trouble.pause(&error);
        assert_eq!(trouble.paused(), Some(Pause::Failure));
        assert_eq!(wait(&trouble), SECOND);
        trouble.start_over();
        assert_eq!(wait(&trouble), Duration::ZERO);
        let told = trouble.last_error().expect("the error is kept");
        assert!(
            told.contains("cannot read or write the store: no storage space"),
            "{told}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_background_waits_for_a_full_disk() {
        let (trouble, error) = trouble();
        assert!(trouble.no_room(Some(100), &error));
        assert!(!trouble.no_room(None, &error), "not the first failure");
        assert_eq!(trouble.paused(), Some(Pause::Disk));
        tokio::time::advance(SECOND).await;
        let look = Instant::now() + SECOND;
        assert_eq!(trouble.held_until(|| Some(99), SECOND), Some(look));
        assert_eq!(trouble.held_until(|| Some(100), SECOND), Some(look));
        tokio::time::advance(SECOND).await;
        assert_eq!(trouble.held_until(|| Some(100), SECOND), None);
        assert_eq!(trouble.paused(), None);
        trouble.note_low(true);
        assert_eq!(trouble.paused(), Some(Pause::Disk));
        assert!(!trouble.recovered(0), "space was found before");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_for_bad_spans_and_failed_syncs() {
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
