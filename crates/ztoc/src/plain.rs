//! Uncompressed layers: the blob is the tar, and spans are slices of equal size.

use crate::zinfo::PlainTable;

/// Divides a stream into spans as it passes.
#[derive(Debug)]
pub(crate) struct Slices {
    span_size: u64,
    size: u64,
}

impl Slices {
    pub(crate) fn new(span_size: u64) -> Self {
        Self { span_size, size: 0 }
    }

    /// Passes the next bytes to `piece`, divided at span ends. The flag is true when a span is
    /// complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut piece: impl FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            let left = self.span_size - self.size % self.span_size;
            let take = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let (now, rest) = bytes.split_at(take);
            self.size += now.len() as u64;
            piece(now, self.size.is_multiple_of(self.span_size));
            bytes = rest;
        }
    }

    /// The table for the bytes so far.
    pub(crate) fn table(&self) -> PlainTable {
        PlainTable {
            span_size: self.span_size,
            size: self.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_end_where_the_slices_do() {
        let mut slices = Slices::new(4);
        let mut pieces = Vec::new();
        for bytes in [&b"abc"[..], b"defgh", b"", b"i"] {
            slices.push(bytes, |piece, ends| pieces.push((piece.to_vec(), ends)));
        }
        let pieces: Vec<_> = pieces
            .iter()
            .map(|(piece, ends)| (&piece[..], *ends))
            .collect();
        assert_eq!(
            pieces,
            [
                (&b"abc"[..], false),
                (b"d", true),
                (b"efgh", true),
                (b"i", false)
            ]
        );
        assert_eq!(slices.table().spans(), 3);
    }
}
