//! Reads ranges of the archive, for callers that have the whole blob or can read any part of it.

use std::ops::Range;

use thiserror::Error;

use crate::codec::decode::Ztoc;
use crate::gzip::decode::{Decoder, ExtractError};
use crate::span::SpanId;
use crate::verify::{VerifiedSpan, VerifyError};

/// Why a range of the archive could not be read. `E` is the caller's own read error.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError<E: std::error::Error + 'static> {
    /// The compressed bytes could not be read.
    #[error("read the layer")]
    Layer(#[source] E),
    /// The bytes are not those of the span.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The bytes do not decode.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// The archive ends before the range does.
    #[error("bytes up to {end} were asked of an archive of {size}")]
    BehindEnd {
        /// End of the range.
        end: u64,
        /// Size of the archive.
        size: u64,
    },
}

/// Reads a range of the archive. `fetch` reads a range of the compressed blob; each span that
/// covers the requested range is fetched, verified and decoded. `out` receives the bytes in order.
///
/// # Errors
/// [`ReadError`]. The bytes already passed to `out` are correct but incomplete.
pub fn read_archive<E: std::error::Error + 'static, B: AsRef<[u8]>>(
    ztoc: &Ztoc<'_>,
    range: Range<u64>,
    decoder: &mut Decoder,
    mut fetch: impl FnMut(Range<u64>) -> Result<B, E>,
    mut out: impl FnMut(&[u8]),
) -> Result<(), ReadError<E>> {
    let spans = ztoc.spans();
    if range.end > spans.archive_size() {
        return Err(ReadError::BehindEnd {
            end: range.end,
            size: spans.archive_size(),
        });
    }
    for id in spans.covering(range.clone()).map(SpanId) {
        let bytes = fetch(spans.compressed(id)).map_err(ReadError::Layer)?;
        let span = VerifiedSpan::verify(id, bytes.as_ref(), &spans)?;
        let decoded = decoder.decode(&span, &ztoc.checkpoint(id), &spans)?;
        let has = spans.uncompressed(id);
        let from = range.start.saturating_sub(has.start);
        let to = range.end.min(has.end).saturating_sub(has.start);
        if let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) {
            out(decoded.get(from..to).unwrap_or_default());
        }
    }
    Ok(())
}
