//! Measures the node's network link and limits how many bytes the background may have outstanding.
//! Pure: the caller supplies the time.
//!
//! A reader waits for its own bytes and for everything that is already in transit. On a slow link,
//! the outstanding bytes of class `All` are therefore limited to what the link delivers in two
//! round trips while readers are active, and in a tenth of a second otherwise. Rate and round trip
//! are the best values measured in the last one to two minutes.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes are summed over this time for one rate sample. If a sample took much longer, the link was
/// not busy and the sample is discarded.
const SAMPLE: Duration = Duration::from_millis(100);
const LONGEST_SAMPLE: Duration = Duration::from_millis(400);
/// A sample ends sooner if it has this many bytes, so that a fast link is known before the first
/// layer is downloaded: from the zTOCs.
const LARGE_SAMPLE: u64 = 4 << 20;
const SHORTEST_SAMPLE: Duration = Duration::from_millis(30);
/// How long a value counts: this long, and once more while newer values are collected.
const MEMORY: Duration = Duration::from_secs(60);
/// The limit before the first measurement.
const START: u64 = 2 << 20;
/// Limits without readers: this much time or this many round trips, whichever is longer, so that
/// the link is kept full.
const AHEAD: Duration = Duration::from_millis(100);
const ROUND_TRIPS: u32 = 4;
/// At this rate (bytes per second), readers do not limit the background: a starting program reads
/// on as soon as it has data, and background requests keep the link busy meanwhile. A limit of one
/// round trip makes a cold start 1.6 times as long, three round trips 1.2 times. Stopping them while
/// the bytes of readers arrive makes it 1.3 times as long.
const FAST: u64 = 32_000_000;
const WIDE: u64 = 64 << 20;
/// The server's response time, added to two round trips while readers are active.
const BESIDE: Duration = Duration::from_millis(30);
/// A reader that asked this recently is expected to ask again.
pub(super) const RECENTLY: Duration = Duration::from_secs(2);
/// If a paused body would still deliver for longer than this, closing it is faster for the reader.
const PAUSED: Duration = Duration::from_millis(20);
/// The background limit is split into at least this many requests, none smaller than [`SMALLEST`].
const REQUESTS: u64 = 4;
const SMALLEST: u64 = 256 << 10;

/// The best value of the current minute and of the one before.
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

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Meter {
    sample: Option<(Instant, u64)>,
    /// Bytes per second.
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

    /// Bytes arrived from the network, not from a buffer that filled during a pause.
    pub(crate) fn came(&mut self, bytes: u64, now: Instant) {
        let Some((begun, sum)) = &mut self.sample else {
            self.sample = Some((now, 0));
            return;
        };
        *sum += bytes;
        let took = now.saturating_duration_since(*begun);
        let least = if *sum < LARGE_SAMPLE {
            SAMPLE
        } else {
            SHORTEST_SAMPLE
        };
        if took < least {
            return;
        }
        if took <= LONGEST_SAMPLE {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
            let rate = sum.saturating_mul(1_000_000_000) / nanos;
            self.rate.add(rate, now, |a, b| a > b);
        }
        self.sample = Some((now, 0));
    }

    /// The first byte of a request arrived after this time.
    pub(crate) fn answered(&mut self, after: Duration, now: Instant) {
        self.round_trip.add(after, now, |a, b| a < b);
    }

    /// A reader, or the start of a container, asked for bytes.
    pub(crate) fn reader(&mut self, now: Instant) {
        self.reader = Some(now);
    }

    /// Whether a reader asked within this time.
    pub(crate) fn had_reader(&self, within: Duration, now: Instant) -> bool {
        let recently = |at: Instant| now.saturating_duration_since(at) < within;
        self.reader.is_some_and(recently)
    }

    /// The number of bytes that the background may have outstanding.
    pub(crate) fn ahead(&self, held_back: bool, now: Instant) -> u64 {
        let Some(rate) = self.rate.get(|a, b| a > b) else {
            return START;
        };
        let round_trip = self.round_trip.get(|a, b| a < b).unwrap_or(AHEAD);
        if held_back {
            bytes_in(rate, round_trip * 2 + BESIDE)
        } else if self.is_fast() {
            WIDE
        } else if self.had_reader(RECENTLY, now) {
            bytes_in(rate, round_trip * 2 + BESIDE)
        } else {
            bytes_in(rate, AHEAD.max(round_trip * ROUND_TRIPS))
        }
    }

    /// Whether the link can carry the background beside a reader.
    pub(crate) fn is_fast(&self) -> bool {
        self.rate.get(|a, b| a > b).is_some_and(|rate| rate >= FAST)
    }

    /// Maximum bytes of one background request.
    pub(crate) fn request(&self, held_back: bool, now: Instant) -> u64 {
        (self.ahead(held_back, now) / REQUESTS).max(SMALLEST)
    }

    /// Whether the rest of a paused body would occupy the link for too long while readers wait.
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
    fn the_background_is_limited_by_the_link_rate() {
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
            "enough to fill a link with high latency"
        );
    }

    #[test]
    fn a_fast_link_is_known_after_a_few_megabytes() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.came(0, start);
        for millis in 1..=45 {
            meter.came(100_000, start + Duration::from_millis(millis));
        }
        assert_eq!(meter.ahead(false, start), WIDE);
    }

    #[test]
    fn rates_of_a_faster_period_expire() {
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
    fn a_pause_does_not_count_as_a_slow_link() {
        let start = Instant::now();
        let (mut meter, now) = fed(1_000_000, Duration::from_millis(20), start, 2);
        let before = meter.ahead(false, now);
        meter.came(10, now + Duration::from_secs(10));
        assert_eq!(meter.ahead(false, now), before);
        assert_eq!(Meter::new(start).ahead(false, start), START);
    }
}
