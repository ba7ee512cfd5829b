//! Reads the checkpoints and digests of a zTOC into a [`SpanMap`].

use super::super::{ALGORITHM_GZIP, ALGORITHM_UNCOMPRESSED, DecodeError, field};
use crate::checkpoint::Compression;
use crate::flat;
use crate::span::{Span, SpanDigest, SpanMap};
use crate::zinfo::{GzipTable, PlainTable};

/// Most bytes of output per byte of deflate.
const MAX_EXPANSION: u64 = 1032;

/// The start of a span, before its digest is known.
pub(super) struct Start {
    compressed: u64,
    uncompressed: u64,
    bits: u8,
}

/// Reads the checkpoint table and checks each row on its own.
pub(super) fn checkpoints(
    info: &flat::Table<'_>,
    layer_size: u64,
) -> Result<(Compression, u64, Vec<Start>), DecodeError> {
    let bytes = info.bytes(field::COMPRESSION_CHECKPOINTS);
    let digests = info.vector(field::COMPRESSION_SPAN_DIGESTS).len();
    let max_span_id = info.i32(field::COMPRESSION_MAX_SPAN_ID);
    let agree = |count: u64| {
        let last = i64::from(max_span_id)
            .checked_add(1)
            .and_then(|n| u64::try_from(n).ok());
        if last == Some(count) && digests as u64 == count {
            return Ok(());
        }
        Err(DecodeError::SpanCount {
            checkpoints: count,
            digests,
            max_span_id,
        })
    };
    match info.i8(field::COMPRESSION_ALGORITHM, ALGORITHM_GZIP) {
        ALGORITHM_GZIP => {
            let table = GzipTable::parse(bytes)?;
            agree(table.len() as u64)?;
            let starts = (0..table.len())
                .filter_map(|index| table.row(index))
                .map(|row| Start {
                    compressed: row.compressed,
                    uncompressed: row.uncompressed,
                    bits: row.bits,
                });
            let span_size =
                u64::try_from(table.span_size()).map_err(|_| DecodeError::Negative {
                    field: "span size",
                    value: table.span_size(),
                })?;
            Ok((Compression::Gzip, span_size, starts.collect()))
        }
        ALGORITHM_UNCOMPRESSED => {
            let table = PlainTable::parse(bytes)?;
            if table.size != layer_size {
                return Err(DecodeError::Span {
                    span: 0,
                    problem: "two sizes of the layer",
                });
            }
            agree(table.spans())?;
            let at = |index: u64| index.saturating_mul(table.span_size);
            let starts = (0..table.spans()).map(|index| Start {
                compressed: at(index),
                uncompressed: at(index),
                bits: 0,
            });
            Ok((Compression::Plain, table.span_size, starts.collect()))
        }
        other => Err(DecodeError::Algorithm(other)),
    }
}

/// Combines starts and digests, and checks that spans ascend and lie within the layer.
pub(super) fn span_map(
    info: &flat::Table<'_>,
    starts: Vec<Start>,
    layer_size: u64,
    archive_size: u64,
) -> Result<SpanMap, DecodeError> {
    let digests = info.vector(field::COMPRESSION_SPAN_DIGESTS);
    let mut spans: Vec<Span> = Vec::with_capacity(starts.len());
    for (index, start) in starts.into_iter().enumerate() {
        let span = u32::try_from(index).unwrap_or(u32::MAX);
        let impossible = |problem| DecodeError::Span { span, problem };
        let digest = parse_digest(digests.bytes(index)).ok_or(DecodeError::Digest { span })?;
        if let Some(before) = spans.last()
            && (start.compressed < before.compressed || start.uncompressed < before.uncompressed)
        {
            return Err(impossible("begins before the span in front of it"));
        }
        if index == 0 && start.uncompressed != 0 {
            return Err(impossible("does not begin at the start of the archive"));
        }
        if start.compressed > layer_size {
            return Err(impossible("begins behind the end of the layer"));
        }
        let Start {
            compressed,
            uncompressed,
            bits,
        } = start;
        spans.push(Span {
            compressed,
            uncompressed,
            bits,
            digest,
        });
    }
    Ok(SpanMap::new(spans, layer_size, archive_size))
}

/// Checks that no span claims more output than its input can give. This bounds a decoder's memory
/// by the number of downloaded bytes.
pub(super) fn check_spans(spans: &SpanMap) -> Result<(), DecodeError> {
    for id in spans.ids() {
        let (compressed, uncompressed) = (spans.compressed(id), spans.uncompressed(id));
        let len = |range: std::ops::Range<u64>| range.end.saturating_sub(range.start);
        if len(uncompressed) > len(compressed).saturating_mul(MAX_EXPANSION) {
            return Err(DecodeError::Span {
                span: id.0,
                problem: "too much output",
            });
        }
    }
    Ok(())
}

/// Parses `sha256:` and 64 lowercase hex digits.
fn parse_digest(text: &[u8]) -> Option<SpanDigest> {
    let hex = text.strip_prefix(b"sha256:")?;
    let nibble = |c: &u8| match c {
        b'0'..=b'9' => Some(c.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(c.wrapping_sub(b'a').wrapping_add(10)),
        _ => None,
    };
    let (pairs, []) = hex.as_chunks::<2>() else {
        return None;
    };
    let mut digest = [0; 32];
    if pairs.len() != digest.len() {
        return None;
    }
    for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
        *byte = (nibble(high)? << 4) | nibble(low)?;
    }
    Some(digest)
}
