//! How fast the background writes, found out from how the disk takes it. Pure.
//!
//! A disk that works in a queue is given one part of 8 ms at a time, and whoever else writes waits for that. A disk with a
//! limit of so many bytes a second (a volume of a cloud, `io.max`) is another matter: at its limit *every* write waits, for
//! tens of milliseconds. It shows by a part that takes much longer than the others; from then on less is written than it
//! takes, and a little more each second, until it shows again.

use std::time::{Duration, Instant};

/// What a disk is taken for that has not been measured: what the kernel begins with too.
const UNKNOWN: u64 = 100 << 20;
/// A part is what the disk takes in this time: so long does somebody else's write wait for ours.
const PART: Duration = Duration::from_millis(8);
/// What is written and not on the disk is what it takes in this time: a sync of ours brings that at once.
const BEHIND: Duration = Duration::from_millis(100);
/// Bounds of a part; and those of all, of which one span goes whatever its size.
const PARTS: (u64, u64) = (256 << 10, 4 << 20);
const ALL: (u64, u64) = (4 << 20, 64 << 20);
/// A part smaller than this says more of the disk's latency than of its rate.
const TELLING: u64 = 128 << 10;
/// A part that takes so long met a limit: a disk of 10 MB/s is quicker with the smallest.
const SLOW: Duration = Duration::from_millis(30);
/// How late a part may be for the next one to make up for it.
const LATE: Duration = Duration::from_millis(20);
/// How long the disk is measured at most, and at least.
const WINDOW: Duration = Duration::from_secs(1);
const TRUSTED: Duration = Duration::from_millis(200);
/// Less is never written than this in a second.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 16 << 30;

/// What is known of a disk.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a second that parts were taken with, of late.
    seen: u64,
    /// Bytes a second that are written, if the disk has shown a limit; and what that was.
    limit: Option<(u64, u64)>,
    /// Bytes that it took, since when.
    window: Option<(Instant, u64)>,
    /// The next part goes then.
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
    /// Bytes a second that are written.
    pub(super) fn rate(&self) -> u64 {
        self.limit.map_or(self.seen, |(rate, _)| rate)
    }

    fn within(&self, time: Duration, (least, most): (u64, u64)) -> u64 {
        (self.rate().saturating_mul(micros(time)) / 1_000_000).clamp(least, most)
    }

    /// Most bytes of a part.
    pub(super) fn part(&self) -> u64 {
        self.within(PART, PARTS)
    }

    /// Bytes that may be written and not on the disk.
    pub(super) fn behind(&self) -> u64 {
        self.within(BEHIND, ALL)
    }

    /// When the next part may go.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// A part is on the disk.
    pub(super) fn took(&mut self, bytes: u64, begun: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(begun);
        // Made up for if it is little; else there was nothing to write, or the disk was somebody else's.
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
                // Far from it there is no need to be careful.
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

    /// The disk takes so much, and no more.
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

    /// A disk that takes its time for each byte.
    struct Queue(u64);
    /// A disk with a bucket of tokens that is filled so fast: who finds it empty waits for the next 50 ms.
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

    /// Writes for some seconds; the bytes a second, and the part of the time in which a write waits for a limit.
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
    fn a_queue_is_kept_busy_with_parts_of_a_few_milliseconds() {
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
    fn a_disk_with_a_limit_is_rarely_at_it() {
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
        // The limit goes.
        let (_, got, _) = write(&mut pace, &mut Queue(1000 * MIB), now, 120);
        assert!(got > 2 * rate, "{got}");
    }

    #[test]
    fn nothing_that_is_measured_stops_it() {
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
