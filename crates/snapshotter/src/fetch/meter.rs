//! What the node's line gives, and how much of it the background may have asked for. Pure: the caller brings the time.
//!
//! What a reader waits for besides its own bytes is what is on its way already. So the bytes that `All` has asked for and not
//! got are bounded by what a slow line brings: in the time of two round trips while readers come, in a tenth of a second
//! otherwise. Both rate and round trip are measured: the best of the last minute or two.

use std::time::Duration;

use tokio::time::Instant;

/// Arrivals are added up so long for one figure; what took much longer was no busy line.
const SAMPLE: Duration = Duration::from_millis(100);
const LONGEST_SAMPLE: Duration = Duration::from_millis(400);
/// How long a figure counts: this long, and as long again while newer ones are collected.
const MEMORY: Duration = Duration::from_secs(60);
/// Before anything is known.
const START: u64 = 2 << 20;
/// Without readers: so much time of the line, or so many round trips, so that it fills.
const AHEAD: Duration = Duration::from_millis(100);
const ROUND_TRIPS: u32 = 4;
/// A line of so many bytes a second is not bounded for readers: a start reads on as soon as it has something, and what the
/// background has on its way is what keeps the line busy meanwhile. (A cold start takes 1.6 times as long with a bound of
/// one round trip, and 1.2 times with three.)
const FAST: u64 = 32_000_000;
const WIDE: u64 = 64 << 20;
/// On others beside readers: two round trips, and what a registry takes to answer.
const BESIDE: Duration = Duration::from_millis(30);
/// A reader that came this recently comes again.
pub(super) const RECENTLY: Duration = Duration::from_secs(2);
/// What a paused body may bring all the same: more of it, and closing is quicker for the reader.
const PAUSED: Duration = Duration::from_millis(20);
/// The background is asked for in so many requests at least, none smaller than this.
const REQUESTS: u64 = 4;
const SMALLEST: u64 = 256 << 10;

/// The best of this minute and of the one before.
#[derive(Debug)]
struct Best<T> {
    since: Instant,
    now: Option<T>,
    before: Option<T>,
}

impl<T: Copy + PartialOrd> Best<T> {
    fn new(since: Instant) -> Best<T> {
        Best {
            since,
            now: None,
            before: None,
        }
    }

    fn add(&mut self, value: T, now: Instant, is_better: impl Fn(T, T) -> bool) {
        if now.saturating_duration_since(self.since) > MEMORY {
            (self.since, self.before) = (now, self.now.take());
        }
        if self.now.is_none_or(|known| is_better(value, known)) {
            self.now = Some(value);
        }
    }

    fn get(&self, is_better: impl Fn(T, T) -> bool) -> Option<T> {
        match (self.now, self.before) {
            (Some(one), Some(other)) if is_better(other, one) => Some(other),
            (one, other) => one.or(other),
        }
    }
}

/// See above.
#[derive(Debug)]
pub(crate) struct Meter {
    sample: Option<(Instant, u64)>,
    /// Bytes a second.
    rate: Best<u64>,
    round_trip: Best<Duration>,
    reader: Option<Instant>,
}

impl Meter {
    pub(crate) fn new(now: Instant) -> Meter {
        Meter {
            sample: None,
            rate: Best::new(now),
            round_trip: Best::new(now),
            reader: None,
        }
    }

    /// Bytes came from the line, not from a buffer that had filled in a pause.
    pub(crate) fn came(&mut self, bytes: u64, now: Instant) {
        let Some((begun, sum)) = &mut self.sample else {
            self.sample = Some((now, 0));
            return;
        };
        *sum += bytes;
        let took = now.saturating_duration_since(*begun);
        if took < SAMPLE {
            return;
        }
        if took <= LONGEST_SAMPLE {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
            let rate = sum.saturating_mul(1_000_000_000) / nanos;
            self.rate.add(rate, now, |a, b| a > b);
        }
        self.sample = Some((now, 0));
    }

    /// The first byte of a request came after so long.
    pub(crate) fn answered(&mut self, after: Duration, now: Instant) {
        self.round_trip.add(after, now, |a, b| a < b);
    }

    /// A reader asks, or the start of a container.
    pub(crate) fn reader(&mut self, now: Instant) {
        self.reader = Some(now);
    }

    /// Whether a reader asked not longer ago than this.
    pub(crate) fn had_reader(&self, within: Duration, now: Instant) -> bool {
        let recently = |at: Instant| now.saturating_duration_since(at) < within;
        self.reader.is_some_and(recently)
    }

    /// Bytes that the background may have asked for and not got.
    pub(crate) fn ahead(&self, held_back: bool, now: Instant) -> u64 {
        let Some(rate) = self.rate.get(|a, b| a > b) else {
            return START;
        };
        let round_trip = self.round_trip.get(|a, b| a < b).unwrap_or(AHEAD);
        if held_back {
            bytes_in(rate, round_trip * 2 + BESIDE)
        } else if rate >= FAST {
            WIDE
        } else if self.had_reader(RECENTLY, now) {
            bytes_in(rate, round_trip * 2 + BESIDE)
        } else {
            bytes_in(rate, AHEAD.max(round_trip * ROUND_TRIPS))
        }
    }

    /// Most bytes of one request of the background.
    pub(crate) fn request(&self, held_back: bool, now: Instant) -> u64 {
        (self.ahead(held_back, now) / REQUESTS).max(SMALLEST)
    }

    /// Whether the rest of a body that is not read for a while would keep the line from readers too long.
    pub(crate) fn is_long(&self, rest: u64) -> bool {
        let rate = self.rate.get(|a, b| a > b);
        rate.is_some_and(|rate| rate < FAST && rest > bytes_in(rate, PAUSED))
    }
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    rate.saturating_mul(micros) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(rate: u64, round_trip: Duration, start: Instant, seconds: u64) -> (Meter, Instant) {
        let mut meter = Meter::new(start);
        let mut now = start;
        meter.answered(round_trip, now);
        while now < start + Duration::from_secs(seconds) {
            now += Duration::from_millis(10);
            meter.came(rate / 100, now);
        }
        (meter, now)
    }

    #[test]
    fn the_background_is_bounded_by_what_the_line_brings() {
        let (start, round_trip) = (Instant::now(), Duration::from_millis(20));
        let about = |bytes: u64, wanted: u64| bytes.abs_diff(wanted) * 10 < wanted;
        for rate in [2_000_000, 10_000_000] {
            let (mut meter, now) = fed(rate, round_trip, start, 2);
            let alone = meter.ahead(false, now);
            assert!(about(alone, rate / 10), "a tenth of a second");
            let beside = rate * 7 / 100;
            assert!(about(meter.ahead(true, now), beside), "two round trips");
            meter.reader(now);
            assert!(about(meter.ahead(false, now), beside));
            assert!(about(meter.ahead(false, now + RECENTLY), rate / 10));
            assert!(meter.is_long(rate / 40) && !meter.is_long(rate / 60));
            assert!(meter.request(true, now) >= SMALLEST);
        }
        let (fast, now) = fed(125_000_000, round_trip, start, 2);
        assert_eq!(fast.ahead(false, now), WIDE);
        assert!(about(fast.ahead(true, now), 8_750_000));
        assert!(!fast.is_long(WIDE));
        let (far, now) = fed(10_000_000, Duration::from_millis(100), start, 2);
        assert!(
            about(far.ahead(false, now), 4_000_000),
            "enough to fill a long line"
        );
    }

    #[test]
    fn figures_of_a_faster_time_are_forgotten() {
        let start = Instant::now();
        let (mut meter, mut now) = fed(100_000_000, Duration::from_millis(20), start, 2);
        while now < start + MEMORY * 3 {
            now += Duration::from_millis(50);
            meter.came(50_000, now);
        }
        let ahead = meter.ahead(false, now);
        assert!((90_000..120_000).contains(&ahead), "{ahead}");
    }

    #[test]
    fn a_pause_is_no_slow_line() {
        let start = Instant::now();
        let (mut meter, now) = fed(1_000_000, Duration::from_millis(20), start, 2);
        let before = meter.ahead(false, now);
        meter.came(10, now + Duration::from_secs(10));
        assert_eq!(meter.ahead(false, now), before);
        assert_eq!(Meter::new(start).ahead(false, start), START);
    }
}
