//! Spans map compressed bytes to bytes of the archive. Pure arithmetic on offsets.
//!
//! A span is the range between two checkpoints. In the compressed blob, neighbors may share a byte
//! (a checkpoint inside a byte belongs to both). In the archive they are contiguous.
//!
//! The archive ends at [`SpanMap::archive_size`], where the tar reader stopped. The stream may
//! continue with padding, even for whole spans. That padding belongs to no file, so uncompressed
//! ranges are cut at the end of the archive, and spans after it are empty.

use std::ops::Range;
use std::sync::Arc;

/// Number of a span, from 0 in stream order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(pub u32);

/// SHA-256 of a span's compressed bytes.
pub type SpanDigest = [u8; 32];

/// Offsets and digests of all spans of a layer. Cloning is cheap, because the table is shared.
#[derive(Debug, Clone)]
pub struct SpanMap {
    spans: Arc<[Span]>,
    layer_size: u64,
    archive_size: u64,
}

/// The start of a span. It ends at the start of the next one, or at the end of the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// First whole compressed byte.
    pub(crate) compressed: u64,
    /// First byte of the uncompressed stream.
    pub(crate) uncompressed: u64,
    /// Unused high bits of the byte before `compressed` that belong to this span, 0 to 7.
    pub(crate) bits: u8,
    pub(crate) digest: SpanDigest,
}

impl SpanMap {
    /// Creates a map. The offsets must ascend and lie within the layer.
    pub(crate) fn new(spans: Vec<Span>, layer_size: u64, archive_size: u64) -> Self {
        Self {
            spans: spans.into(),
            layer_size,
            archive_size,
        }
    }

    /// Number of spans. An empty uncompressed layer has none.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are no spans.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// All span ids in order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = SpanId> + DoubleEndedIterator + use<> {
        // The format counts spans in an `i32`, so a table cannot have more than 2^31.
        (0..u32::try_from(self.spans.len()).unwrap_or(u32::MAX)).map(SpanId)
    }

    /// Size of the layer blob in bytes.
    #[must_use]
    pub fn layer_size(&self) -> u64 {
        self.layer_size
    }

    /// Size of the archive in bytes: the end of the tar, not of the stream.
    #[must_use]
    pub fn archive_size(&self) -> u64 {
        self.archive_size
    }

    /// The range of the blob that contains a span.
    ///
    /// # Panics
    /// If the layer has no such span. Ids from this map are valid.
    #[must_use]
    pub fn compressed(&self, id: SpanId) -> Range<u64> {
        let span = self.span(id);
        let end = self
            .spans
            .get(id.0 as usize + 1)
            .map_or(self.layer_size, |next| next.compressed);
        span.compressed - u64::from(span.bits != 0)..end
    }

    /// The range of the archive that a span contains; empty after the end of the archive.
    ///
    /// # Panics
    /// If the layer has no such span.
    #[must_use]
    pub fn uncompressed(&self, id: SpanId) -> Range<u64> {
        let next = self.spans.get(id.0 as usize + 1);
        let end = next.map_or(self.archive_size, |next| {
            next.uncompressed.min(self.archive_size)
        });
        self.span(id).uncompressed.min(end)..end
    }

    /// Whether the span's stream continues, or may continue, after [`SpanMap::uncompressed`]: it is
    /// the last span, or the archive ends inside it.
    ///
    /// # Panics
    /// If the layer has no such span.
    #[must_use]
    pub fn is_cut(&self, id: SpanId) -> bool {
        self.spans
            .get(id.0 as usize + 1)
            .is_none_or(|next| next.uncompressed > self.archive_size)
    }

    /// Length of the span's stream in bytes, including any part after the archive; `None` for the
    /// last span.
    pub(crate) fn stream_length(&self, id: SpanId) -> Option<u64> {
        let next = self.spans.get(id.0 as usize + 1)?;
        Some(next.uncompressed - self.span(id).uncompressed)
    }

    /// SHA-256 of the span's compressed bytes.
    ///
    /// # Panics
    /// If the layer has no such span.
    #[must_use]
    pub fn digest(&self, id: SpanId) -> &SpanDigest {
        &self.span(id).digest
    }

    /// Ids of the spans that contain this range of the archive, as a half-open range. Empty spans
    /// at the edges are omitted; an empty range needs no span.
    #[must_use]
    pub fn covering(&self, range: Range<u64>) -> Range<u32> {
        let end = range.end.min(self.archive_size);
        if range.start >= end {
            return 0..0;
        }
        // The last span that begins at or before an offset contains it: earlier ones with the same
        // start are empty.
        let first = self
            .spans
            .partition_point(|s| s.uncompressed <= range.start)
            .saturating_sub(1);
        let past = self.spans.partition_point(|s| s.uncompressed < end);
        let id = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        id(first)..id(past.max(first + 1))
    }

    /// The span to which an offset of the uncompressed stream belongs: the last span that begins at
    /// or before it, also after the end of the archive. `None` if there are no spans.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<SpanId> {
        let past = self.spans.partition_point(|s| s.uncompressed <= offset);
        let last = past.max(1).min(self.spans.len()).checked_sub(1)?;
        u32::try_from(last).ok().map(SpanId)
    }

    pub(crate) fn bits(&self, id: SpanId) -> u8 {
        self.span(id).bits
    }

    fn span(&self, id: SpanId) -> &Span {
        &self.spans[id.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(starts: &[(u64, u64, u8)], layer_size: u64, archive_size: u64) -> SpanMap {
        let span = |&(compressed, uncompressed, bits)| Span {
            compressed,
            uncompressed,
            bits,
            digest: [0; 32],
        };
        SpanMap::new(starts.iter().map(span).collect(), layer_size, archive_size)
    }

    #[test]
    fn neighbours_share_the_byte_of_a_bit_offset() {
        let map = map(&[(10, 0, 0), (66, 512, 2), (84, 1024, 4)], 105, 2048);
        assert_eq!(map.compressed(SpanId(0)), 10..66);
        assert_eq!(map.compressed(SpanId(1)), 65..84);
        assert_eq!(map.compressed(SpanId(2)), 83..105);
        assert_eq!(map.uncompressed(SpanId(2)), 1024..2048);
        assert_eq!(map.covering(0..1), 0..1);
        assert_eq!(map.covering(511..513), 0..2);
        assert_eq!(map.covering(512..1024), 1..2);
        assert_eq!(map.covering(2047..9000), 2..3);
        assert_eq!(map.covering(5..5), 0..0);
        assert_eq!(map.covering(2048..2049), 0..0);
    }

    #[test]
    fn empty_leading_spans_are_skipped() {
        let map = map(&[(10, 0, 0), (30, 0, 0), (90, 700, 0)], 105, 2048);
        assert_eq!(map.uncompressed(SpanId(0)), 0..0);
        assert_eq!(map.covering(0..10), 1..2);
        assert_eq!(map.at(0), Some(SpanId(1)));
    }

    #[test]
    fn every_offset_is_counted_to_a_span() {
        let map = map(&[(10, 0, 0), (30, 1000, 0), (90, 5000, 0)], 105, 2048);
        for (offset, span) in [
            (0, 0),
            (999, 0),
            (1000, 1),
            (2048, 1),
            (5000, 2),
            (u64::MAX, 2),
        ] {
            assert_eq!(map.at(offset), Some(SpanId(span)), "{offset}");
        }
        assert_eq!(SpanMap::new(Vec::new(), 0, 0).at(0), None);
    }

    #[test]
    fn nothing_lies_behind_the_end_of_the_archive() {
        let map = map(&[(10, 0, 0), (30, 1000, 0), (90, 5000, 0)], 105, 2048);
        assert_eq!(map.uncompressed(SpanId(1)), 1000..2048);
        assert_eq!(map.uncompressed(SpanId(2)), 2048..2048);
        assert!(!map.is_cut(SpanId(0)));
        assert!(map.is_cut(SpanId(1)));
        assert_eq!(map.covering(0..u64::MAX), 0..2);
    }
}
