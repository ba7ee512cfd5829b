//! Decodes a span.

use std::ops::ControlFlow;

use libdeflater::Decompressor;
use thiserror::Error;

use super::graft::graft;
use super::inflate::{At, Failure, Inflate, Stop, Wrapper};
use crate::checkpoint::{Checkpoint, WINDOW};
use crate::span::{SpanId, SpanMap};
use crate::verify::VerifiedSpan;

/// Bytes after the deflate data of a gzip member: checksum and length.
pub(super) const TRAILER: usize = 8;
/// Output buffer of one streaming step, in bytes.
pub(super) const ROOM: usize = 128 * 1024;

/// Why a span does not decode although its digest is correct: the zTOC is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// A decoder cannot decode the bytes from this checkpoint.
    #[error("error extracting data of span {span}; return code: -3")]
    Data {
        /// The span.
        span: u32,
    },
    /// The bytes decode to a different length.
    #[error("span {span} decodes to {found} bytes, not {expected}")]
    Length {
        /// The span.
        span: u32,
        /// The expected length in bytes.
        expected: u64,
        /// The actual length in bytes, or the length so far.
        found: u64,
    },
    /// There is no memory for the output.
    #[error("no memory for the {len} bytes of span {span}")]
    Memory {
        /// The span.
        span: u32,
        /// Size of the output in bytes.
        len: u64,
    },
}

/// Buffers and decoders that are reused from span to span. Use one per decoding thread.
pub struct Decoder {
    libdeflate: Decompressor,
    grafted: Vec<u8>,
    /// History and span, as produced by the whole-buffer decoder.
    output: Vec<u8>,
    streaming: Vec<u8>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Creates a decoder without buffers; they grow with the spans.
    #[must_use]
    pub fn new() -> Self {
        Self {
            libdeflate: Decompressor::new(),
            grafted: Vec::new(),
            output: Vec::new(),
            streaming: Vec::new(),
        }
    }

    /// Size of its buffers in bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.grafted.capacity() + self.output.capacity() + self.streaming.capacity()
    }

    /// Decodes a span. The result has exactly the bytes of [`SpanMap::uncompressed`] and is valid
    /// until the next call.
    ///
    /// # Errors
    /// [`ExtractError`] if the span does not decode to these bytes.
    ///
    /// # Panics
    /// If `spans` is not the map that the span was verified with.
    pub fn decode<'d>(
        &'d mut self,
        span: &VerifiedSpan<'d>,
        at: &Checkpoint<'_>,
        spans: &SpanMap,
    ) -> Result<&'d [u8], ExtractError> {
        let len = wanted(span.id(), spans)?;
        match *at {
            Checkpoint::Plain => span.bytes().get(..len).ok_or_else(|| ExtractError::Length {
                span: span.id().0,
                expected: len as u64,
                found: span.bytes().len() as u64,
            }),
            Checkpoint::Gzip { bits, window } => {
                let from = if spans.is_cut(span.id()) {
                    None
                } else {
                    self.decode_whole(span, bits, window, spans, len)?
                };
                if let Some(from) = from {
                    return Ok(&self.output[from..]);
                }
                let mut output = std::mem::take(&mut self.output);
                output.clear();
                reserve(&mut output, span.id(), len)?;
                let streamed = self.stream(span, bits, window, Some(len as u64), |bytes| {
                    output.extend_from_slice(bytes);
                    ControlFlow::Continue(())
                });
                self.output = output;
                streamed?;
                Ok(&self.output)
            }
        }
    }

    /// Decodes a span in pieces, so memory does not grow with the span. This is slower than
    /// [`Decoder::decode`] by a fifth. Use it for spans of unusual size, and if the first bytes are
    /// needed early.
    ///
    /// # Errors
    /// [`ExtractError`]. Pieces that were already passed to `out` must then be discarded.
    ///
    /// # Panics
    /// If `spans` is not the map that the span was verified with.
    pub fn decode_in_pieces(
        &mut self,
        span: &VerifiedSpan<'_>,
        at: &Checkpoint<'_>,
        spans: &SpanMap,
        mut out: impl FnMut(&[u8]),
    ) -> Result<(), ExtractError> {
        match *at {
            Checkpoint::Plain => {
                out(self.decode(span, at, spans)?);
                Ok(())
            }
            Checkpoint::Gzip { bits, window } => {
                let len = wanted(span.id(), spans)?;
                let out = |bytes: &[u8]| {
                    out(bytes);
                    ControlFlow::Continue(())
                };
                self.stream(span, bits, window, Some(len as u64), out)
            }
        }
    }

    /// Decodes the whole stream of a span in pieces, including any part after the end of the
    /// archive, which [`SpanMap::uncompressed`] excludes. `out` may stop early; that is not an
    /// error.
    ///
    /// # Errors
    /// [`ExtractError`], also if the stream of the last span ends inside a gzip member.
    ///
    /// # Panics
    /// If `spans` is not the map that the span was verified with.
    pub fn decode_to_end(
        &mut self,
        span: &VerifiedSpan<'_>,
        at: &Checkpoint<'_>,
        spans: &SpanMap,
        mut out: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ExtractError> {
        match *at {
            Checkpoint::Plain => {
                // This is the only piece, so an early stop changes nothing.
                let _ = out(span.bytes());
                Ok(())
            }
            Checkpoint::Gzip { bits, window } => {
                self.stream(span, bits, window, spans.stream_length(span.id()), out)
            }
        }
    }

    /// Decodes by graft. Returns the offset of the span in `output`, or `None` if the span does not
    /// give `len` bytes: a member ends in it, or it is damaged.
    fn decode_whole(
        &mut self,
        span: &VerifiedSpan<'_>,
        bits: u8,
        window: &[u8],
        spans: &SpanMap,
        len: usize,
    ) -> Result<Option<usize>, ExtractError> {
        let next = SpanId(span.id().0.saturating_add(1));
        let tail_bits = if (next.0 as usize) < spans.len() {
            spans.bits(next)
        } else {
            0
        };
        graft(&mut self.grafted, window, bits, span.bytes(), tail_bits);
        let total = window.len() + len;
        if self.output.len() < total {
            let more = total - self.output.len();
            self.output
                .try_reserve(more)
                .map_err(|_| ExtractError::Memory {
                    span: span.id().0,
                    len: len as u64,
                })?;
        }
        self.output.resize(total, 0);
        let decoded = self
            .libdeflate
            .deflate_decompress(&self.grafted, &mut self.output);
        Ok((decoded == Ok(total)).then_some(window.len()))
    }

    /// Resumes at the checkpoint and stops after `len` bytes or at the end of the stream. The
    /// trailer of the first member is skipped, because it cannot be verified from the middle.
    /// Further members are verified.
    fn stream(
        &mut self,
        span: &VerifiedSpan<'_>,
        bits: u8,
        window: &[u8],
        len: Option<u64>,
        mut out: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ExtractError> {
        let id = span.id().0;
        let most = len.unwrap_or(u64::MAX);
        let failed = |failure| match failure {
            Failure::Data => ExtractError::Data { span: id },
            Failure::Memory => ExtractError::Memory {
                span: id,
                len: len.unwrap_or(ROOM as u64),
            },
        };
        let (mut inflate, mut input) = resume(span, bits, window, failed)?;
        self.streaming.resize(ROOM, 0);
        let (mut found, mut is_first_member, mut has_ended) = (0, true, false);
        while found < most {
            let room = usize::try_from(most - found).map_or(ROOM, |left| left.min(ROOM));
            let output = self.streaming.get_mut(..room).unwrap_or_default();
            let step = inflate.step(input, output, Stop::Never).map_err(failed)?;
            input = input.get(step.consumed..).unwrap_or_default();
            found += step.produced as u64;
            if step.produced > 0
                && out(self.streaming.get(..step.produced).unwrap_or_default()).is_break()
            {
                return Ok(());
            }
            has_ended = step.at == At::End;
            if has_ended && found < most {
                if is_first_member {
                    has_ended = input.len() >= TRAILER;
                    input = input.get(TRAILER..).unwrap_or_default();
                    inflate = Inflate::new(Wrapper::Gzip).map_err(failed)?;
                    is_first_member = false;
                } else {
                    inflate.reset().map_err(failed)?;
                }
                if input.is_empty() {
                    break;
                }
            } else if step.produced == 0 && (input.is_empty() || step.consumed == 0) {
                break;
            }
        }
        match len {
            None if has_ended => Ok(()),
            None => Err(ExtractError::Data { span: id }),
            Some(len) if found == len => Ok(()),
            Some(expected) => Err(ExtractError::Length {
                span: id,
                expected,
                found,
            }),
        }
    }
}

/// Creates a decoder at a checkpoint and returns it with the remaining input.
fn resume<'a>(
    span: &VerifiedSpan<'a>,
    bits: u8,
    window: &[u8],
    failed: impl Fn(Failure) -> ExtractError,
) -> Result<(Inflate, &'a [u8]), ExtractError> {
    let mut input = span.bytes();
    let mut inflate = Inflate::new(Wrapper::Raw).map_err(&failed)?;
    if bits > 0 {
        let data = ExtractError::Data { span: span.id().0 };
        let (first, rest) = input.split_first().ok_or(data)?;
        inflate.prime(bits, first >> (8 - bits)).map_err(&failed)?;
        input = rest;
    }
    if !window.is_empty() {
        inflate.set_history(window).map_err(&failed)?;
    }
    Ok((inflate, input))
}

/// Decodes a span and appends its bytes, exactly those of [`SpanMap::uncompressed`], to `out`.
/// [`Decoder::decode`] avoids the copy.
///
/// # Errors
/// [`ExtractError`]; `out` is then unchanged.
///
/// # Panics
/// If `spans` is not the map that the span was verified with.
pub fn decode_span(
    span: &VerifiedSpan<'_>,
    at: &Checkpoint<'_>,
    spans: &SpanMap,
    out: &mut Vec<u8>,
    scratch: &mut Decoder,
) -> Result<(), ExtractError> {
    let bytes = scratch.decode(span, at, spans)?;
    reserve(out, span.id(), bytes.len())?;
    out.extend_from_slice(bytes);
    Ok(())
}

pub(super) fn wanted(id: SpanId, spans: &SpanMap) -> Result<usize, ExtractError> {
    let range = spans.uncompressed(id);
    let len = range.end - range.start;
    usize::try_from(len).map_err(|_| ExtractError::Memory { span: id.0, len })
}

pub(super) fn reserve(out: &mut Vec<u8>, id: SpanId, len: usize) -> Result<(), ExtractError> {
    out.try_reserve(len).map_err(|_| ExtractError::Memory {
        span: id.0,
        len: len as u64,
    })
}

const _: () = assert!(
    WINDOW <= u16::MAX as usize,
    "a window must fit in one stored block"
);
