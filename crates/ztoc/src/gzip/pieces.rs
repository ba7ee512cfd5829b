//! Compressed bytes of a layer that several threads read, in shared pieces of equal size.

use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes per piece; only the last piece of a layer may be shorter.
pub(crate) const PIECE: usize = 128 * 1024;

/// One piece.
pub(crate) type Piece = Arc<Vec<u8>>;

/// A contiguous part of the layer.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pieces {
    pieces: VecDeque<Piece>,
    start: u64,
    end: u64,
}

impl Pieces {
    /// Offset after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Appends the next bytes.
    pub(crate) fn push(&mut self, piece: Piece) {
        self.end += piece.len() as u64;
        self.pieces.push_back(piece);
    }

    /// Removes the first piece if it ends at or before `offset`. Returns it with its end offset.
    pub(crate) fn pop_before(&mut self, offset: u64) -> Option<(Piece, u64)> {
        let end = self.start + self.pieces.front()?.len() as u64;
        if end > offset {
            return None;
        }
        self.start = end;
        Some((self.pieces.pop_front()?, end))
    }

    /// The bytes from `offset` to the end of its piece; empty at the end of the part.
    pub(crate) fn at(&self, offset: u64) -> &[u8] {
        let within = offset
            .checked_sub(self.start)
            .and_then(|within| usize::try_from(within).ok());
        within
            .and_then(|within| self.pieces.get(within / PIECE)?.get(within % PIECE..))
            .unwrap_or_default()
    }

    /// A view of the pieces that contain bytes of `from..until`.
    pub(crate) fn part(&self, from: u64, until: u64) -> Self {
        let mut part = Self {
            pieces: VecDeque::new(),
            start: self.start,
            end: self.start,
        };
        for piece in &self.pieces {
            if part.end >= until {
                break;
            }
            let end = part.end + piece.len() as u64;
            if end <= from {
                part.start = end;
            } else {
                part.pieces.push_back(Arc::clone(piece));
            }
            part.end = end;
        }
        part
    }

    /// The `N` bytes at `offset`, if all of them are available.
    pub(crate) fn bytes<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        if let Some(bytes) = self.at(offset).first_chunk() {
            return Some(*bytes);
        }
        let mut bytes = [0; N];
        for (offset, byte) in (offset..).zip(&mut bytes) {
            *byte = *self.at(offset).first()?;
        }
        Some(bytes)
    }

    /// The first offset in `from..until` at which this byte occurs.
    pub(crate) fn find(&self, byte: u8, mut from: u64, until: u64) -> Option<u64> {
        while from < until {
            let bytes = self.at(from);
            if bytes.is_empty() {
                return None;
            }
            if let Some(at) = bytes.iter().position(|&b| b == byte) {
                return Some(from + at as u64).filter(|&at| at < until);
            }
            from += bytes.len() as u64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Pieces {
        let mut pieces = Pieces::default();
        pieces.push(Arc::new(vec![1; PIECE]));
        pieces.push(Arc::new(vec![2; PIECE]));
        pieces.push(Arc::new(vec![3; 10]));
        pieces
    }

    #[test]
    fn bytes_are_found_where_they_are() {
        let pieces = pieces();
        let second = PIECE as u64;
        assert_eq!(pieces.end(), 2 * second + 10);
        assert_eq!(pieces.at(second - 1), [1]);
        assert_eq!(pieces.at(pieces.end() - 2), [3, 3]);
        assert!(pieces.at(pieces.end()).is_empty());
        assert!(pieces.at(u64::MAX).is_empty());
        assert_eq!(pieces.bytes(second - 2), Some([1, 1, 2, 2]));
        assert_eq!(pieces.bytes::<4>(pieces.end() - 3), None);
        assert_eq!(pieces.find(3, 5, u64::MAX), Some(2 * second));
        assert_eq!(pieces.find(3, 5, 2 * second), None);
        assert_eq!(pieces.find(4, 0, u64::MAX), None);
    }

    #[test]
    fn a_part_has_the_same_bytes_at_the_same_offsets() {
        let mut pieces = pieces();
        let second = PIECE as u64;
        let part = pieces.part(second, second + 1);
        assert!(part.at(second - 1).is_empty());
        assert_eq!((part.at(second)[0], part.end()), (2, 2 * second));
        assert!(pieces.pop_before(second - 1).is_none());
        assert_eq!(pieces.pop_before(second).map(|(_, end)| end), Some(second));
        let part = pieces.part(second + 5, u64::MAX);
        assert_eq!(part.bytes(2 * second - 1), Some([2, 3]));
        assert_eq!(part.end(), pieces.end());
    }
}
