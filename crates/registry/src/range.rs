//! Parses `Content-Range` and compares it with the request.

use crate::fetch::ByteRange;

/// A parsed `bytes a-b/total`; the total is `None` for `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) first: u64,
    /// Inclusive, as in the header.
    pub(crate) last: u64,
    pub(crate) total: Option<u64>,
}

impl ContentRange {
    /// Parses strictly: digits only, `first <= last < total`.
    pub(crate) fn parse(value: &str) -> Option<ContentRange> {
        let (unit, rest) = value.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        let inside = total.is_none_or(|total| last < total);
        (first <= last && inside).then_some(ContentRange { first, last, total })
    }

    /// Number of bytes of `asked` that this response contains, from its start on, for a blob of
    /// `size` bytes. A response may be shorter than the request; `None` if it contains other bytes
    /// or belongs to a blob of another size.
    pub(crate) fn answers(&self, asked: ByteRange, size: u64) -> Option<u64> {
        let same_blob = self.total.is_none_or(|total| total == size);
        let fits = self.first == asked.start() && self.last < asked.end();
        (same_blob && fits).then(|| self.last - self.first + 1)
    }
}

/// Parses digits without a sign: `u64::from_str` alone would accept a `+`.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_well_formed_ranges_are_read() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        assert_eq!(ContentRange::parse("bytes 0-9/100"), range(0, 9, Some(100)));
        assert_eq!(ContentRange::parse("Bytes 5-5/*"), range(5, 5, None));
        for bad in [
            "",
            "bytes",
            "bytes */100",
            "bytes 9-0/100",
            "bytes 0-100/100",
            "bytes +0-9/100",
            "bytes 0-9",
            "bytes 0-9/",
            "items 0-9/100",
            "bytes 0-18446744073709551616/*",
            "bytes -9/100",
            "bytes 0-/100",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_answer_begins_where_it_was_asked_to() {
        let asked = ByteRange::within(10..20, 100).expect("inside");
        let answer = |text: &str| ContentRange::parse(text).expect(text).answers(asked, 100);
        assert_eq!(answer("bytes 10-19/100"), Some(10));
        assert_eq!(answer("bytes 10-19/*"), Some(10));
        assert_eq!(answer("bytes 10-12/100"), Some(3));
        assert_eq!(answer("bytes 11-19/100"), None);
        assert_eq!(answer("bytes 10-20/100"), None);
        assert_eq!(answer("bytes 0-99/100"), None);
        assert_eq!(answer("bytes 10-19/101"), None);
    }

    proptest! {
        #[test]
        fn prop_never_panics(value in "\\PC{0,40}", tail in "[0-9*/+ -]{0,30}") {
            let asked = ByteRange::within(1..9, 10).expect("inside");
            for text in [value, format!("bytes {tail}")] {
                if let Some(range) = ContentRange::parse(&text) {
                    prop_assert!(range.answers(asked, 10).is_none_or(|n| (1..=8).contains(&n)));
                }
            }
        }
    }
}
