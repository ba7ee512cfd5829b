//! Maps of PAX sparse files: only checked, because an archive with a broken one is refused.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use super::pax::parse_decimal;

/// A stored piece: offset in the file, length.
pub(super) type Extent = (i64, i64);

/// What blocks read so far make.
pub(super) enum Progress {
    More,
    Invalid,
    Done(Vec<Extent>),
}

/// The map of versions 0.0 and 0.1, which stands in the records.
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

/// The map of version 1.0, which stands in front of the content: lines of decimal numbers, first their
/// count, padded to whole blocks.
pub(super) fn map_in_data(blocks: &[u8]) -> Progress {
    let newlines = blocks.iter().filter(|&&b| b == b'\n').count() as u64;
    if newlines == 0 {
        return Progress::More;
    }
    let mut lines = blocks.split(|&b| b == b'\n');
    let count = lines
        .next()
        .and_then(parse_decimal)
        .and_then(|count| u64::try_from(count).ok());
    let Some(wanted) = count.and_then(|count| count.checked_mul(2)) else {
        return Progress::Invalid;
    };
    if newlines.saturating_sub(1) < wanted {
        return Progress::More;
    }
    let mut map = Vec::new();
    for _ in 0..wanted / 2 {
        let offset = lines.next().and_then(parse_decimal);
        match (offset, lines.next().and_then(parse_decimal)) {
            (Some(offset), Some(len)) => map.push((offset, len)),
            _ => return Progress::Invalid,
        }
    }
    Progress::Done(map)
}

/// Pieces are in order, do not overlap, and lie within the file.
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
        assert!(matches!(map_in_data(b"12"), Progress::More));
        assert!(matches!(map_in_data(b"1\n0\n"), Progress::More));
        assert!(matches!(map_in_data(b"x\n"), Progress::Invalid));
        assert!(matches!(map_in_data(b"-1\n"), Progress::Invalid));
        assert!(matches!(
            map_in_data(b"9223372036854775807\n"),
            Progress::Invalid | Progress::More
        ));
        match map_in_data(b"1\n0\n7\n\0\0") {
            Progress::Done(map) => assert_eq!(map, [(0, 7)]),
            _ => panic!("the map is complete"),
        }
    }
}
