//! PAX records: parsing them, and applying them to a header.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use std::ops::Range;

use super::header::{Header, low_bits};
use crate::toc::{Time, pack};

/// Shortest record: `5 a=\n`.
const SHORTEST: usize = 5;

/// The records of one header, ascending by key; only the last of equal keys is kept. They are
/// ranges of the payload, which this type owns.
#[derive(Debug, Default)]
pub(super) struct Records {
    text: Vec<u8>,
    records: Vec<(Range<usize>, Range<usize>)>,
}

impl Records {
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.records.clear();
    }

    /// Replaces all records with those of `payload`; `None` if one is malformed. Swaps the
    /// payload's buffer for an old one.
    pub(super) fn parse(&mut self, payload: &mut Vec<u8>) -> Option<()> {
        self.clear();
        std::mem::swap(&mut self.text, payload);
        let mut sparse_map: Vec<Range<usize>> = Vec::new();
        let mut at = 0;
        while at < self.text.len() {
            let (key, value, next) = record(&self.text, at)?;
            at = next;
            let wanted = if sparse_map.len().is_multiple_of(2) {
                OFFSET
            } else {
                NUMBYTES
            };
            match self.text.get(key.clone())? {
                // Version 0.0 repeats two keys. They are merged into one record, as in version 0.1.
                name if name == OFFSET || name == NUMBYTES => {
                    let has_comma = self.text.get(value.clone())?.contains(&b',');
                    if name != wanted || has_comma {
                        return None;
                    }
                    sparse_map.push(value);
                }
                _ => self.records.push((key, value)),
            }
        }
        if !sparse_map.is_empty() {
            self.join_sparse_map(&sparse_map)?;
        }
        let text = &self.text;
        let key = |record: &(Range<usize>, _)| text.get(record.0.clone()).unwrap_or_default();
        self.records.sort_by(|a, b| key(a).cmp(key(b)));
        // Later records of the same key come after earlier ones: iterate from the end and keep the
        // first.
        self.records.reverse();
        self.records.dedup_by(|a, b| key(a) == key(b));
        self.records.reverse();
        Some(())
    }

    fn join_sparse_map(&mut self, values: &[Range<usize>]) -> Option<()> {
        let key_start = self.text.len();
        self.text.extend_from_slice(b"GNU.sparse.map");
        let value_start = self.text.len();
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.text.push(b',');
            }
            self.text.extend_from_within(value.clone());
        }
        self.records
            .push((key_start..value_start, value_start..self.text.len()));
        Some(())
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let part = |range: &Range<usize>| self.text.get(range.clone()).unwrap_or_default();
        self.records
            .iter()
            .map(move |(key, value)| (part(key), part(value)))
    }

    /// The value of one record.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// The value of a record that overrides a field. An empty value does not.
    pub(super) fn text(&self, key: &[u8]) -> Option<&[u8]> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// Writes all records in packed form, as entries lend them out.
    pub(super) fn pack(&self, into: &mut Vec<u8>) {
        into.clear();
        for (key, value) in self.iter() {
            pack(into, key, value);
        }
    }

    /// Applies the records to the header that follows them; `None` if a number is malformed.
    pub(super) fn apply(
        &self,
        header: &mut Header,
        name: &mut Vec<u8>,
        link: &mut Vec<u8>,
    ) -> Option<()> {
        for (key, value) in self.iter().filter(|(_, value)| !value.is_empty()) {
            match key {
                b"path" => value.clone_into(name),
                b"linkpath" => value.clone_into(link),
                b"uid" => header.uid = low_bits(parse_decimal(value)?),
                b"gid" => header.gid = low_bits(parse_decimal(value)?),
                b"size" => header.size = parse_decimal(value)?,
                b"mtime" => header.mtime = parse_time(value)?,
                // Not kept, but they must be valid times.
                b"atime" | b"ctime" => drop(parse_time(value)?),
                _ => {}
            }
        }
        Some(())
    }
}

const OFFSET: &[u8] = b"GNU.sparse.offset";
const NUMBYTES: &[u8] = b"GNU.sparse.numbytes";

/// The record at `at`: key, value and offset of the next one.
fn record(text: &[u8], at: usize) -> Option<(Range<usize>, Range<usize>, usize)> {
    let rest = text.get(at..)?;
    let space = rest.iter().position(|&b| b == b' ')?;
    let len = usize::try_from(parse_decimal(rest.get(..space)?)?).ok()?;
    if len < SHORTEST || len > rest.len() {
        return None;
    }
    let end = at.checked_add(len)?;
    let start = at.checked_add(space)?.checked_add(1)?;
    let last = end.checked_sub(1)?;
    if last < start || text.get(last) != Some(&b'\n') {
        return None;
    }
    let equals = text
        .get(start..last)?
        .iter()
        .position(|&b| b == b'=')?
        .checked_add(start)?;
    let (key, value) = (start..equals, equals.checked_add(1)?..last);
    let has_nul = |range: &Range<usize>| text.get(range.clone()).is_none_or(|b| b.contains(&0));
    let is_bad = match text.get(key.clone())? {
        b"" => true,
        b"path" | b"linkpath" | b"uname" | b"gname" => has_nul(&value),
        _ => has_nul(&key),
    };
    (!is_bad).then_some((key, value, end))
}

/// Parses a decimal number with an optional sign.
pub(super) fn parse_decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses decimal seconds; digits after the ninth of the fraction are dropped.
fn parse_time(text: &[u8]) -> Option<Time> {
    let point = text.iter().position(|&b| b == b'.');
    let (whole, fraction) = match point {
        Some(at) => (text.get(..at)?, text.get(at.checked_add(1)?..)?),
        None => (text, &[][..]),
    };
    let secs = parse_decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0u32, |nanos, digit| {
        nanos
            .wrapping_mul(10)
            .wrapping_add(u32::from(digit.wrapping_sub(b'0')))
    });
    if nanos == 0 || !whole.starts_with(b"-") {
        return Some(Time { secs, nanos });
    }
    Some(Time {
        secs: secs.wrapping_sub(1),
        nanos: 1_000_000_000u32.wrapping_sub(nanos),
    })
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test may panic"
    )]

    use super::*;

    fn parse(payload: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut records = Records::default();
        records.parse(&mut payload.to_vec())?;
        Some(
            records
                .iter()
                .map(|(k, v)| (k.to_vec(), v.to_vec()))
                .collect(),
        )
    }

    #[test]
    fn records_are_sorted_and_the_last_of_a_key_counts() {
        let records = parse(b"6 b=1\n6 a=2\n6 b=3\n").unwrap();
        let records: Vec<_> = records.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_eq!(records, [(&b"a"[..], &b"2"[..]), (b"b", b"3")]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"6 a=1"[..],
            b"7 a=1\n",
            b"5 a=1\n",
            b"6 a:1\n",
            b"5 =1\n",
            b"-6 a=1\n",
            b"x a=1\n",
            b"4 a\n",
            b"10 path=\0\n",
            b"8 a\0b=1\n",
            b"0 ",
        ] {
            assert_eq!(parse(bad), None, "{}", bad.escape_ascii());
        }
        assert!(parse(b"+7 a=1\n").is_some());
        assert!(parse(b"7 a=\0\xff\n").is_some());
        assert_eq!(parse(b"5 a=\n").unwrap(), [(b"a".to_vec(), Vec::new())]);
    }

    #[test]
    fn version_0_0_sparse_maps_are_joined() {
        let text = b"23 GNU.sparse.offset=0\n25 GNU.sparse.numbytes=3\n";
        let records = parse(text).unwrap();
        assert_eq!(records, [(b"GNU.sparse.map".to_vec(), b"0,3".to_vec())]);
        assert!(parse(b"25 GNU.sparse.numbytes=3\n").is_none());
    }

    #[test]
    fn times_as_go_reads_them() {
        let time = |secs, nanos| Some(Time { secs, nanos });
        assert_eq!(parse_time(b"1.5"), time(1, 500_000_000));
        assert_eq!(parse_time(b"-1.5"), time(-2, 500_000_000));
        assert_eq!(parse_time(b"-0.25"), time(-1, 750_000_000));
        assert_eq!(parse_time(b"7."), time(7, 0));
        assert_eq!(parse_time(b"1.0000000019"), time(1, 1));
        for bad in [&b""[..], b".5", b"1.x", b"1e3", b"1.-5"] {
            assert_eq!(parse_time(bad), None, "{}", bad.escape_ascii());
        }
    }
}
