//! The binary checkpoint table ("zinfo"), compatible with the reference.
//!
//! ```text
//! gzip    i32 count | i64 span size | count records of 32785 bytes
//!         record: i64 compressed offset | i64 uncompressed offset | u8 bits | 32768 bytes of window
//! plain   a FlatBuffers table: version (2), span size, size of the layer
//! ```
//! The gzip table has no version field. A table that is exactly one record too short has version 1,
//! which omits the first checkpoint and assumes it right after a ten-byte header.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use flatbuffers::{FlatBufferBuilder, Verifiable, Verifier, VerifierOptions};
use thiserror::Error;

use crate::checkpoint::WINDOW;
use crate::flat;

/// Bytes before the records.
pub(crate) const HEADER_SIZE: usize = 12;
/// Bytes of one record.
pub(crate) const RECORD_SIZE: usize = 8 + 8 + 1 + WINDOW;

/// Compressed offset of the first checkpoint in version 1.
const V1_FIRST_IN: u64 = 10;

/// Field positions in the vtable of the plain table.
const VT_VERSION: u16 = 4;
const VT_SPAN_SIZE: u16 = 6;
const VT_SIZE: u16 = 8;

/// Why a checkpoint table is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ZinfoError {
    /// The table is empty.
    #[error("empty checkpoints")]
    Empty,
    /// The length matches neither version.
    #[error("checkpoint table of {len} bytes does not hold {count} checkpoints")]
    Length {
        /// Length of the table in bytes.
        len: usize,
        /// Number of checkpoints according to the header.
        count: i32,
    },
    /// A gzip table without checkpoints, with which nothing can be decoded.
    #[error("no checkpoint")]
    NoCheckpoint,
    /// A number is negative or otherwise impossible.
    #[error("{field} of checkpoint {index} is {value}")]
    Field {
        /// The checkpoint.
        index: usize,
        /// The name of the field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The table of a plain layer is not a valid FlatBuffers buffer.
    #[error("checkpoint table of a tar layer is malformed")]
    Flatbuffer(#[source] flatbuffers::InvalidFlatbuffer),
    /// The table of a plain layer states an impossible size.
    #[error("checkpoint table of a tar layer states span size {span_size} and size {size}")]
    Plain {
        /// The stated span size.
        span_size: i64,
        /// The stated layer size.
        size: i64,
    },
}

/// A borrowed gzip table.
#[derive(Debug, Clone, Copy)]
pub struct GzipTable<'a> {
    records: &'a [u8],
    count: usize,
    span_size: i64,
    first_is_implied: bool,
}

/// One record of a gzip table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Compressed offset of the first whole byte.
    pub compressed: u64,
    /// Uncompressed offset.
    pub uncompressed: u64,
    /// Unused high bits of the previous byte, 0 to 7.
    pub bits: u8,
    /// [`WINDOW`] bytes, or empty if the table implies zeros.
    pub window: &'a [u8],
}

impl<'a> GzipTable<'a> {
    /// Parses a table of either version and checks that the numbers of every row are in range.
    ///
    /// # Errors
    /// Fails if the length matches neither version, if there are no checkpoints, or if a number is
    /// out of range.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ZinfoError> {
        if bytes.is_empty() {
            return Err(ZinfoError::Empty);
        }
        let too_short = ZinfoError::Length {
            len: bytes.len(),
            count: 0,
        };
        let (count, rest) = bytes.split_first_chunk::<4>().ok_or(too_short.clone())?;
        let (span_size, records) = rest.split_first_chunk::<8>().ok_or(too_short)?;
        let stated = i32::from_le_bytes(*count);
        let span_size = i64::from_le_bytes(*span_size);
        let wrong_length = ZinfoError::Length {
            len: bytes.len(),
            count: stated,
        };
        let count = usize::try_from(stated).map_err(|_| wrong_length.clone())?;
        let first_is_implied = if count.checked_mul(RECORD_SIZE) == Some(records.len()) {
            false
        } else if count
            .checked_sub(1)
            .and_then(|n| n.checked_mul(RECORD_SIZE))
            == Some(records.len())
        {
            true
        } else {
            return Err(wrong_length);
        };
        if count == 0 {
            return Err(ZinfoError::NoCheckpoint);
        }
        let table = Self {
            records,
            count,
            span_size,
            first_is_implied,
        };
        (0..count).try_for_each(|index| table.check(index))?;
        Ok(table)
    }

    /// Reopens a table without checking its rows. Its bytes must have passed [`GzipTable::parse`].
    pub(crate) fn trusted(bytes: &'a [u8], count: usize) -> Option<Self> {
        let (header, records) = bytes.split_first_chunk::<HEADER_SIZE>()?;
        let span_size = i64::from_le_bytes(*header.last_chunk()?);
        let first_is_implied = count.checked_mul(RECORD_SIZE)? > records.len();
        Some(Self {
            records,
            count,
            span_size,
            first_is_implied,
        })
    }

    /// Number of checkpoints, including the implied one of version 1.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a table without checkpoints is refused"
    )]
    pub fn len(&self) -> usize {
        self.count
    }

    /// The span size that the table was built for. The actual distances depend on the stream.
    #[must_use]
    pub fn span_size(&self) -> i64 {
        self.span_size
    }

    /// The checkpoint of a span.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<Row<'a>> {
        if index >= self.count {
            return None;
        }
        if self.first_is_implied && index == 0 {
            return Some(Row {
                compressed: V1_FIRST_IN,
                uncompressed: 0,
                bits: 0,
                window: &[],
            });
        }
        let (compressed, uncompressed, bits, window) = self.raw(index)?;
        Some(Row {
            compressed: u64::try_from(compressed).ok()?,
            uncompressed: u64::try_from(uncompressed).ok()?,
            bits,
            window,
        })
    }

    /// The fields of a record, unchecked.
    fn raw(&self, index: usize) -> Option<(i64, i64, u8, &'a [u8])> {
        let stored = index.checked_sub(usize::from(self.first_is_implied))?;
        let record = self
            .records
            .get(stored.checked_mul(RECORD_SIZE)?..)?
            .get(..RECORD_SIZE)?;
        let (compressed, rest) = record.split_first_chunk::<8>()?;
        let (uncompressed, rest) = rest.split_first_chunk::<8>()?;
        let (&bits, window) = rest.split_first()?;
        Some((
            i64::from_le_bytes(*compressed),
            i64::from_le_bytes(*uncompressed),
            bits,
            window,
        ))
    }

    fn check(&self, index: usize) -> Result<(), ZinfoError> {
        let Some((compressed, uncompressed, bits, _)) = self.raw(index) else {
            return Ok(()); // the implied one
        };
        let wrong = |field, value| {
            Err(ZinfoError::Field {
                index,
                field,
                value,
            })
        };
        if bits > 7 {
            return wrong("bits", bits.into());
        }
        if compressed < i64::from(bits != 0) {
            return wrong("compressed offset", compressed);
        }
        if uncompressed < 0 {
            return wrong("uncompressed offset", uncompressed);
        }
        Ok(())
    }
}

/// The header of a version 2 table.
pub(crate) fn gzip_header(count: i32, span_size: i64) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    let (count_at, span_at) = header.split_at_mut(4);
    count_at.copy_from_slice(&count.to_le_bytes());
    span_at.copy_from_slice(&span_size.to_le_bytes());
    header
}

/// The fields of a record before the window.
pub(crate) fn gzip_record_start(compressed: u64, uncompressed: u64, bits: u8) -> [u8; 17] {
    let mut start = [0; 17];
    let (compressed_at, rest) = start.split_at_mut(8);
    let (uncompressed_at, bits_at) = rest.split_at_mut(8);
    compressed_at.copy_from_slice(&compressed.to_le_bytes());
    uncompressed_at.copy_from_slice(&uncompressed.to_le_bytes());
    bits_at.fill(bits);
    start
}

/// The table of a plain layer, whose spans are slices of equal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainTable {
    /// Size of every span except the last, in bytes.
    pub span_size: u64,
    /// Size of the layer in bytes.
    pub size: u64,
}

/// Shape of the plain table for the verifier.
struct PlainShape;

impl Verifiable for PlainShape {
    fn run_verifier(
        v: &mut Verifier<'_, '_>,
        pos: usize,
    ) -> Result<(), flatbuffers::InvalidFlatbuffer> {
        v.visit_table(pos)?
            .visit_field::<i32>("version", VT_VERSION, false)?
            .visit_field::<i64>("span_size", VT_SPAN_SIZE, false)?
            .visit_field::<i64>("size", VT_SIZE, false)?
            .finish();
        Ok(())
    }
}

impl PlainTable {
    /// Parses the table.
    ///
    /// # Errors
    /// Fails if the buffer is malformed, a size is negative, or the span size is zero.
    pub fn parse(bytes: &[u8]) -> Result<Self, ZinfoError> {
        if bytes.is_empty() {
            return Err(ZinfoError::Empty);
        }
        let options = VerifierOptions::default();
        let mut verifier = Verifier::new(&options, bytes);
        <flatbuffers::ForwardsUOffset<PlainShape>>::run_verifier(&mut verifier, 0)
            .map_err(ZinfoError::Flatbuffer)?;
        let root = flat::Table::root(bytes);
        let (span_size, size) = (root.i64(1), root.i64(2));
        match (u64::try_from(span_size), u64::try_from(size)) {
            (Ok(span), Ok(bytes)) if span > 0 => Ok(Self {
                span_size: span,
                size: bytes,
            }),
            _ => Err(ZinfoError::Plain { span_size, size }),
        }
    }

    /// Encodes the table.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let mut fbb = FlatBufferBuilder::with_capacity(64);
        let table = fbb.start_table();
        fbb.push_slot(VT_VERSION, 2i32, 0);
        fbb.push_slot(VT_SPAN_SIZE, signed(self.span_size), 0);
        fbb.push_slot(VT_SIZE, signed(self.size), 0);
        let root = fbb.end_table(table);
        fbb.finish_minimal(root);
        fbb.finished_data().to_vec()
    }

    /// Number of spans.
    #[must_use]
    pub fn spans(&self) -> u64 {
        self.size.div_ceil(self.span_size)
    }
}

#[cfg(test)]
mod tests;
