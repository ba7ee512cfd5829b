//! Checks the maps of PAX sparse files, because an archive with a malformed map is rejected.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use super::pax::parse_decimal;

/// A stored extent: offset in the file, length.
pub(super) type Extent = (i64, i64);

/// The state of the map after the blocks so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Invalid,
    Done(Vec<Extent>),
}

/// Parses the map of versions 0.0 and 0.1, which is in the records.
pub(super) fn map_in_records<'r>(
    record: impl Fn(&[u8]) -> Option<&'r [u8]>,
) -> Option<Vec<Extent>> {
    let count = parse_decimal(record(b"GNU.sparse.numblocks")?)?;
    let map = record(b"GNU.sparse.map").unwrap_or_default();
    let numbers: Vec<&[u8]> = match map {
        b"" => Vec::new(),
        map => map.split(|&b| b == b',').collect(),
    };
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return None;
    };
    if usize::try_from(count).ok()? != pairs.len() {
        return None;
    }
    pairs
        .iter()
        .map(|[offset, len]| Some((parse_decimal(offset)?, parse_decimal(len)?)))
        .collect()
}

/// The map of version 1.0, which precedes the content: lines of decimal numbers, beginning with
/// their count, padded to whole blocks.
#[derive(Debug, Default)]
pub(super) struct MapInData {
    text: Vec<u8>,
    newlines: u64,
    /// Number of lines of the map, once the first line is known.
    lines: Option<u64>,
}

impl MapInData {
    /// Processes the next block.
    pub(super) fn push(&mut self, block: &[u8]) -> Progress {
        self.text.extend_from_slice(block);
        let newlines = block.iter().filter(|&&b| b == b'\n').count() as u64;
        self.newlines = self.newlines.saturating_add(newlines);
        if self.lines.is_none() && self.newlines > 0 {
            let count = self
                .text
                .split(|&b| b == b'\n')
                .next()
                .and_then(parse_decimal);
            let count = count.and_then(|count| u64::try_from(count).ok());
            self.lines = count.and_then(|count| count.checked_mul(2)?.checked_add(1));
            if self.lines.is_none() {
                return Progress::Invalid;
            }
        }
        match self.lines {
            Some(lines) if self.newlines >= lines => self
                .parse(lines / 2)
                .map_or(Progress::Invalid, Progress::Done),
            _ => Progress::More,
        }
    }

    /// Bytes consumed so far.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    fn parse(&self, count: u64) -> Option<Vec<Extent>> {
        let mut lines = self.text.split(|&b| b == b'\n').skip(1);
        let mut next = || parse_decimal(lines.next()?);
        (0..count).map(|_| Some((next()?, next()?))).collect()
    }
}

/// Whether extents are in order, do not overlap, and lie within the file.
pub(super) fn is_valid(map: &[Extent], size: i64) -> bool {
    let mut before = 0;
    size >= 0
        && map.iter().all(|&(offset, len)| {
            let Some(end) = offset.checked_add(len) else {
                return false;
            };
            let fits = offset >= 0 && len >= 0 && end <= size && offset >= before;
            before = end;
            fits
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_must_be_in_order_and_inside() {
        assert!(is_valid(&[], 0));
        assert!(is_valid(&[(0, 5), (5, 0), (9, 1)], 10));
        assert!(!is_valid(&[], -1));
        assert!(!is_valid(&[(0, 5), (4, 1)], 10));
        assert!(!is_valid(&[(0, 11)], 10));
        assert!(!is_valid(&[(i64::MAX, 1)], i64::MAX));
        assert!(!is_valid(&[(-1, 1)], 10));
    }

    #[test]
    fn a_map_in_data_may_take_several_blocks() {
        let progress = |blocks: &[&[u8]]| {
            let mut map = MapInData::default();
            blocks.iter().map(|block| map.push(block)).last()
        };
        assert_eq!(progress(&[b"12"]), Some(Progress::More));
        assert_eq!(progress(&[b"1\n0\n"]), Some(Progress::More));
        assert_eq!(progress(&[b"x\n"]), Some(Progress::Invalid));
        assert_eq!(progress(&[b"-1\n"]), Some(Progress::Invalid));
        assert_eq!(progress(&[b"9223372036854775807\n"]), Some(Progress::More));
        assert_eq!(progress(&[b"0\n\0\0"]), Some(Progress::Done(Vec::new())));
        assert_eq!(
            progress(&[b"1\n0\n7\n\0\0"]),
            Some(Progress::Done(vec![(0, 7)]))
        );
        assert_eq!(
            progress(&[b"1\n", b"0", b"\n7\n"]),
            Some(Progress::Done(vec![(0, 7)]))
        );
        assert_eq!(progress(&[b"1\n0\nx\n"]), Some(Progress::Invalid));
    }
}
