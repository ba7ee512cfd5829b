//! Determines how fast the background may write, from how fast the disk accepts its writes. Pure.
//!
//! A disk with a queue is given one 8 ms part at a time, so other writers wait at most for one
//! part. A disk with a bandwidth limit (a cloud volume, `io.max`) behaves differently: at its limit
//! *every* write waits for tens of milliseconds. The limit shows when a part takes much longer than
//! the others. From then on, the background writes somewhat less than the limit, and a little more
//! each second, until the limit shows again.

use std::time::{Duration, Instant};

/// The assumed rate (bytes per second) of a disk that has not been measured. The kernel assumes the
/// same.
const UNKNOWN: u64 = 100 << 20;
/// A part is as much as the disk accepts in this time. Other writers wait at most this long.
const PART: Duration = Duration::from_millis(8);
/// The limit of dirty bytes, as the time in which the disk accepts them. A sync by this daemon must
/// wait for all of them.
const BEHIND: Duration = Duration::from_millis(100);
/// Bounds of one part, and of all dirty bytes. One span is admitted regardless of its size.
const PARTS: (u64, u64) = (256 << 10, 4 << 20);
const ALL: (u64, u64) = (4 << 20, 64 << 20);
/// A part smaller than this measures the disk's latency rather than its rate.
const TELLING: u64 = 128 << 10;
/// A part that takes this long has hit a limit. Even a 10 MB/s disk writes the smallest part
/// faster.
const SLOW: Duration = Duration::from_millis(30);
/// The longest delay of a part that the next one compensates for.
const LATE: Duration = Duration::from_millis(20);
/// The longest and the shortest measurement of the disk rate.
const WINDOW: Duration = Duration::from_secs(1);
const TRUSTED: Duration = Duration::from_millis(200);
/// Bounds of the write rate, in bytes per second.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 16 << 30;

/// The measurements of one disk.
#[derive(Debug)]
pub(super) struct Pace {
    /// Recent rate of completed parts, in bytes per second.
    seen: u64,
    /// If the disk has shown a limit: the rate at which the background writes, and the limit, in
    /// bytes per second.
    limit: Option<(u64, u64)>,
    /// Start of the current measurement, and bytes written since.
    window: Option<(Instant, u64)>,
    /// When the next part may be written.
    next: Option<Instant>,
    last: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            seen: UNKNOWN,
            limit: None,
            window: None,
            next: None,
            last: None,
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

fn rate(bytes: u64, time: Duration) -> u64 {
    (bytes.saturating_mul(1_000_000) / micros(time)).min(MOST)
}

fn time(bytes: u64, rate: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1))
}

impl Pace {
    /// The write rate, in bytes per second.
    pub(super) fn rate(&self) -> u64 {
        self.limit.map_or(self.seen, |(rate, _)| rate)
    }

    fn within(&self, time: Duration, (least, most): (u64, u64)) -> u64 {
        (self.rate().saturating_mul(micros(time)) / 1_000_000).clamp(least, most)
    }

    /// Maximum bytes of one part.
    pub(super) fn part(&self) -> u64 {
        self.within(PART, PARTS)
    }

    /// Maximum dirty bytes.
    pub(super) fn behind(&self) -> u64 {
        self.within(BEHIND, ALL)
    }

    /// When the next part may be written.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Records a part that has reached the disk.
    pub(super) fn took(&mut self, bytes: u64, begun: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(begun);
        // Compensate for a short delay. After a long one, there was nothing to write or others used
        // the disk.
        let due = self
            .next
            .filter(|due| begun.saturating_duration_since(*due) < LATE);
        if self.limit.is_some() && due.is_none() {
            self.window = None;
        }
        let (since, before) = self.window.unwrap_or((begun, 0));
        let window = ended.saturating_duration_since(since);
        let got = rate(before + bytes, window);
        self.window = (window < WINDOW).then_some((since, before + bytes));
        match &mut self.limit {
            None if took > SLOW && window >= TRUSTED => self.limit_to(got, MOST),
            None if bytes >= TELLING => self.seen = (self.seen * 3 + rate(bytes, took)) / 4,
            None => {}
            Some((rate, _)) if window >= TRUSTED && got < *rate / 33 * 32 => {
                let most = *rate;
                self.limit_to(got, most);
            }
            Some((rate, _)) if took > SLOW + time(bytes, *rate) => {
                *rate = (*rate / 5 * 4).max(LEAST);
                self.window = None;
            }
            Some((rate, limit)) => {
                // Far from the last limit, the rate may grow faster.
                let near = *rate > *limit / 2 && *rate < *limit * 2;
                let since = self.last.map_or(Duration::ZERO, |last| ended - last);
                let grown = rate.saturating_mul(micros(since.min(PART * 4)));
                *rate = (*rate + grown / 1_000_000 / if near { 50 } else { 5 }).min(MOST);
            }
        }
        self.last = Some(ended);
        self.next = self
            .limit
            .map(|(rate, _)| due.unwrap_or(begun) + time(bytes, rate));
    }

    /// Sets the limit to the measured rate and writes below it.
    fn limit_to(&mut self, got: u64, most: u64) {
        let rate = (got / 5 * 4).min(most).max(LEAST);
        self.limit = Some((rate, got.max(LEAST)));
        self.window = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A disk that takes a fixed time per byte.
    struct Queue(u64);
    /// A disk with a token bucket. A write that finds it empty waits for the next 50 ms slice.
    struct Bucket {
        rate: u64,
        left: u64,
        filled: Instant,
    }

    trait Disk {
        fn write(&mut self, bytes: u64, at: Instant) -> Instant;
    }

    impl Disk for Queue {
        fn write(&mut self, bytes: u64, at: Instant) -> Instant {
            at + time(bytes, self.0)
        }
    }

    impl Disk for Bucket {
        fn write(&mut self, bytes: u64, mut at: Instant) -> Instant {
            let slice = Duration::from_millis(50);
            loop {
                while at >= self.filled + slice {
                    self.filled += slice;
                    self.left = (self.left + self.rate / 20).min(self.rate / 20);
                }
                if self.left >= bytes {
                    self.left -= bytes;
                    return at + Duration::from_micros(200);
                }
                at = self.filled + slice;
            }
        }
    }

    /// Writes for some seconds. Returns the end, the rate in bytes per second, and the time spent
    /// in writes that waited for a limit, in thousandths.
    fn write(
        pace: &mut Pace,
        disk: &mut dyn Disk,
        from: Instant,
        seconds: u64,
    ) -> (Instant, u64, u32) {
        let (mut now, mut bytes, mut slow) = (from, 0, Duration::ZERO);
        while now < from + Duration::from_secs(seconds) {
            let part = pace.part();
            let ended = disk.write(part, now);
            if ended - now > Duration::from_millis(15) {
                slow += ended - now;
            }
            pace.took(part, now, ended);
            bytes += part;
            now = pace.next().map_or(ended, |next| next.max(ended));
        }
        let share = slow.as_micros() * 1000 / (now - from).as_micros();
        (now, bytes / seconds, u32::try_from(share).expect("a share"))
    }

    #[test]
    fn a_disk_with_a_queue_is_kept_busy_with_short_parts() {
        for rate in [10 * MIB, 125 * MIB, 2000 * MIB] {
            let mut pace = Pace::default();
            let mut disk = Queue(rate);
            let (_, got, slow) = write(&mut pace, &mut disk, Instant::now(), 20);
            assert!(got > rate / 10 * 8, "{got} of {rate}");
            let part = time(pace.part(), rate);
            assert!(part <= PART * 3 / 2 || pace.part() == PARTS.0, "{part:?}");
            assert!(
                pace.behind() <= ALL.1 && (slow == 0 || rate < 20 * MIB),
                "{slow}"
            );
        }
    }

    #[test]
    fn a_disk_with_a_bandwidth_limit_rarely_reaches_it() {
        let start = Instant::now();
        let rate = 125 * MIB;
        let mut disk = Bucket {
            rate,
            left: 0,
            filled: start,
        };
        let mut pace = Pace::default();
        let (now, ..) = write(&mut pace, &mut disk, start, 2);
        let (now, got, slow) = write(&mut pace, &mut disk, now, 60);
        assert!(slow <= 20, "{slow} of 1000 of the time");
        assert!(got > rate / 10 * 7 && got < rate, "{got} of {rate}");
        // The limit is removed.
        let (_, got, _) = write(&mut pace, &mut Queue(1000 * MIB), now, 120);
        assert!(got > 2 * rate, "{got}");
    }

    #[test]
    fn extreme_measurements_do_not_stop_writing() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.took(MIB, now, now + Duration::from_secs(3600));
        assert_eq!((pace.rate(), pace.part()), (LEAST, PARTS.0));
        pace.took(0, now, now);
        pace.took(1 << 60, now, now);
        let next = pace.next().expect("a limit was seen");
        assert!(pace.rate() <= MOST && next > now);
    }
}
