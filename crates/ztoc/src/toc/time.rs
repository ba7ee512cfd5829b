//! File times, and the text form in which a zTOC stores them (RFC 3339).
//!
//! The rules are those of Go's `time` package. The crate `jiff` differs: it ends on 9999-12-30,
//! rejects a tenth digit of the fraction, and accepts a second of 60 and lowercase letters.

/// A point in time: seconds since 1970-01-01T00:00:00Z and additional nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since the epoch; negative before it.
    pub secs: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

/// Seconds per day.
const DAY: i64 = 86_400;
/// 0000-01-01T00:00:00Z, the first time that has a text form.
const FIRST: i64 = -62_167_219_200;
/// 9999-12-31T23:59:59Z, the last second that has a text form.
const LAST: i64 = 253_402_300_799;

impl Time {
    /// 0001-01-01T00:00:00Z, which replaces a time without a readable text form.
    pub const YEAR_ONE: Self = Self {
        secs: -62_135_596_800,
        nanos: 0,
    };

    /// The text form in UTC, with up to nine digits of fraction and no trailing zeros. Empty
    /// outside the years 0 to 9999, which the format cannot represent.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        if !(FIRST..=LAST).contains(&self.secs) {
            return String::new();
        }
        let (year, month, day) = civil_from_days(self.secs.div_euclid(DAY));
        let second = self.secs.rem_euclid(DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        if self.nanos != 0 {
            let fraction = format!(".{:09}", self.nanos);
            text.push_str(fraction.trim_end_matches('0'));
        }
        text.push('Z');
        text
    }

    /// The time as read back from its text form: [`Time::YEAR_ONE`] if it has none.
    pub(crate) fn as_written(self) -> Self {
        if (FIRST..=LAST).contains(&self.secs) {
            self
        } else {
            Self::YEAR_ONE
        }
    }

    /// Parses the text form with any UTC offset; `None` if it is malformed.
    #[must_use]
    pub fn from_rfc3339(text: &[u8]) -> Option<Self> {
        let (date, rest) = text.split_at_checked(19)?;
        let [
            y1,
            y2,
            y3,
            y4,
            b'-',
            m1,
            m2,
            b'-',
            d1,
            d2,
            b'T',
            h1,
            h2,
            b':',
            i1,
            i2,
            b':',
            s1,
            s2,
        ] = *date
        else {
            return None;
        };
        let year = number(&[y1, y2, y3, y4])?;
        let (month, day) = (number(&[m1, m2])?, number(&[d1, d2])?);
        let (hour, minute, second) = (number(&[h1, h2])?, number(&[i1, i2])?, number(&[s1, s2])?);
        let valid = (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !valid {
            return None;
        }
        let (nanos, zone) = fraction(rest)?;
        let local = days_from_civil(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
        Some(Self {
            secs: local - offset(zone)?,
            nanos,
        })
    }
}

/// Parses the optional fraction, `.` or `,` and digits. Digits after the ninth are dropped.
fn fraction(rest: &[u8]) -> Option<(u32, &[u8])> {
    let Some(digits) = rest.strip_prefix(b".").or_else(|| rest.strip_prefix(b",")) else {
        return Some((0, rest));
    };
    let len = digits.iter().take_while(|c| c.is_ascii_digit()).count();
    let (digits, zone) = digits.split_at_checked(len)?;
    if digits.is_empty() {
        return None;
    }
    let padded = digits.iter().chain(std::iter::repeat(&b'0')).take(9);
    Some((padded.fold(0, |n, c| n * 10 + u32::from(c - b'0')), zone))
}

/// Parses `Z`, `+hh:mm` or `-hh:mm` into seconds east of UTC.
fn offset(zone: &[u8]) -> Option<i64> {
    match *zone {
        [b'Z'] => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[h1, h2])?, number(&[m1, m2])?);
            let east = hours * 3600 + minutes * 60;
            (hours <= 24 && minutes < 60).then_some(if sign == b'-' { -east } else { east })
        }
        _ => None,
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |n, c| {
        c.is_ascii_digit().then(|| n * 10 + i64::from(c - b'0'))
    })
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Eras of 400 years begin in March, so
/// that the leap day is the last day of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`]: year, month, day.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12 + 1;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_times() {
        let text = |secs, nanos| Time { secs, nanos }.to_rfc3339();
        assert_eq!(text(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(text(1, 500_000_000), "1970-01-01T00:00:01.5Z");
        assert_eq!(text(-1, 1), "1969-12-31T23:59:59.000000001Z");
        assert_eq!(text(951_782_400, 0), "2000-02-29T00:00:00Z");
        assert_eq!(Time::YEAR_ONE.to_rfc3339(), "0001-01-01T00:00:00Z");
        assert_eq!(text(FIRST, 0), "0000-01-01T00:00:00Z");
        assert_eq!(text(LAST, 0), "9999-12-31T23:59:59Z");
        assert_eq!(text(FIRST - 1, 0), "");
        assert_eq!(text(LAST + 1, 0), "");
        assert_eq!(text(i64::MAX, 0), "");
    }

    #[test]
    fn any_offset_is_read() {
        let read = |text: &str| Time::from_rfc3339(text.as_bytes());
        assert_eq!(
            read("1970-01-01T02:00:00+02:00"),
            Some(Time { secs: 0, nanos: 0 })
        );
        assert_eq!(
            read("1969-12-31T19:30:00.25-04:30"),
            Some(Time {
                secs: 0,
                nanos: 250_000_000
            })
        );
        for bad in [
            "",
            "1970-01-01",
            "1970-02-29T00:00:00Z",
            "1970-01-01T00:00:00",
            "1970-01-01T24:00:00Z",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn prop_text_form_round_trips(secs in FIRST..=LAST, nanos in 0u32..1_000_000_000) {
            let time = Time { secs, nanos };
            prop_assert_eq!(Time::from_rfc3339(time.to_rfc3339().as_bytes()), Some(time));
        }
    }
}
