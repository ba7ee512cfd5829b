//! A span's bytes.

use std::ops::ControlFlow;

use libdeflater::Decompressor;
use thiserror::Error;

use super::graft::graft;
use super::inflate::{At, Failure, Inflate, Stop, Wrapper};
use crate::checkpoint::{Checkpoint, WINDOW};
use crate::span::{SpanId, SpanMap};
use crate::verify::VerifiedSpan;

/// Bytes that follow the deflate data of a gzip member: checksum and length.
const TRAILER: usize = 8;
/// Room for output of one streaming step.
const ROOM: usize = 128 * 1024;

/// A span that does not decode, though its digest was right: the zTOC's maker lied or was wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// Its bytes are not what a decoder can take at this checkpoint.
    #[error("error extracting data of span {span}; return code: -3")]
    Data {
        /// Which span.
        span: u32,
    },
    /// They decode to another number of bytes.
    #[error("span {span} decodes to {found} bytes, not {expected}")]
    Length {
        /// Which span.
        span: u32,
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has, or as many as were found out.
        found: u64,
    },
    /// No memory for the output.
    #[error("no memory for the {len} bytes of span {span}")]
    Memory {
        /// Which span.
        span: u32,
        /// Bytes of output.
        len: u64,
    },
}

/// Buffers and decoders that are kept from span to span. One for each thread that decodes.
pub struct Decoder {
    libdeflate: Decompressor,
    grafted: Vec<u8>,
    /// History and span, as the whole-buffer decoder gives them.
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
    /// A decoder without buffers; they grow with the spans it is given.
    #[must_use]
    pub fn new() -> Self {
        Self {
            libdeflate: Decompressor::new(),
            grafted: Vec::new(),
            output: Vec::new(),
            streaming: Vec::new(),
        }
    }

    /// Bytes of buffers that it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.grafted.capacity() + self.output.capacity() + self.streaming.capacity()
    }

    /// Decodes a span. The result has exactly the bytes of [`SpanMap::uncompressed`] and is good until
    /// the next call.
    ///
    /// # Errors
    /// [`ExtractError`] where the span does not decode to them.
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

    /// Decodes a span in pieces: memory does not grow with it. Slower than [`Decoder::decode`] by a
    /// fifth; for spans of unusual size, and where the first bytes are wanted first.
    ///
    /// # Errors
    /// [`ExtractError`]; pieces handed out before are then not to be used.
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

    /// Decodes all of a span's stream, in pieces, with what it has behind the end of the archive
    /// ([`SpanMap::uncompressed`] leaves that out). `out` may break off; that is no error.
    ///
    /// # Errors
    /// [`ExtractError`], also where the last span's stream ends inside a gzip member.
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
                // Where it stops is the caller's business.
                let _ = out(span.bytes());
                Ok(())
            }
            Checkpoint::Gzip { bits, window } => {
                self.stream(span, bits, window, spans.stream_length(span.id()), out)
            }
        }
    }

    /// The graft. `None` where the span does not fill its size: a member ends in it, or it is damaged.
    /// Else where in `output` the span begins.
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

    /// Resumes at the checkpoint and stops when there are `len` bytes, or at the end of the stream. At the end of a
    /// member its trailer is stepped over, which cannot be verified from the middle; further members are verified.
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

/// A decoder at a checkpoint, and the input that is left for it.
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
/// [`Decoder::decode`] does the same without the copy.
///
/// # Errors
/// [`ExtractError`]; `out` is then as it was.
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

fn wanted(id: SpanId, spans: &SpanMap) -> Result<usize, ExtractError> {
    let range = spans.uncompressed(id);
    let len = range.end - range.start;
    usize::try_from(len).map_err(|_| ExtractError::Memory { span: id.0, len })
}

fn reserve(out: &mut Vec<u8>, id: SpanId, len: usize) -> Result<(), ExtractError> {
    out.try_reserve(len).map_err(|_| ExtractError::Memory {
        span: id.0,
        len: len as u64,
    })
}

const _: () = assert!(
    WINDOW <= u16::MAX as usize,
    "a window must fit in one stored block"
);
