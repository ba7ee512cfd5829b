//! Decodes a span while its bytes arrive.
//!
//! [`ArrivingSpan`] takes the compressed bytes in pieces of any size, hashes and decodes them, and
//! gives the result only after length and digest agree with the zTOC. The result, bytes or error,
//! is the one that [`VerifiedSpan::verify`](crate::VerifiedSpan::verify) and
//! [`Decoder::decode_in_pieces`](crate::Decoder::decode_in_pieces) give for the whole span.

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::decode::{ExtractError, ROOM, TRAILER, reserve, wanted};
use super::inflate::{At, Failure, Inflate, Stop, Wrapper};
use crate::checkpoint::Checkpoint;
use crate::span::{SpanId, SpanMap};
use crate::verify::{VerifyError, agree};

/// Why the bytes that arrived do not give the span.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ArrivingError {
    /// The bytes are not those of the span.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The bytes do not decode.
    #[error(transparent)]
    Extract(#[from] ExtractError),
}

/// A span of a compressed layer that is decoded while it arrives.
pub struct ArrivingSpan {
    id: SpanId,
    spans: SpanMap,
    digest: Sha256,
    received: u64,
    stream: Stream,
    failure: Option<ExtractError>,
}

impl std::fmt::Debug for ArrivingSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrivingSpan")
            .field("id", &self.id)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl ArrivingSpan {
    /// Starts a span at its checkpoint. `None` if the layer is not compressed: there is nothing to
    /// decode.
    ///
    /// # Panics
    /// If `spans` has no such span.
    #[must_use]
    pub fn new(id: SpanId, at: &Checkpoint<'_>, spans: &SpanMap) -> Option<Self> {
        let Checkpoint::Gzip { bits, window } = *at else {
            return None;
        };
        let mut span = Self {
            id,
            spans: spans.clone(),
            digest: Sha256::new(),
            received: 0,
            stream: Stream::new(bits),
            failure: None,
        };
        span.failure = span.begin(window).err();
        Some(span)
    }

    fn begin(&mut self, window: &[u8]) -> Result<(), ExtractError> {
        self.stream.len = wanted(self.id, &self.spans)?;
        reserve(&mut self.stream.output, self.id, self.stream.len)?;
        // An empty span is not decoded, like a whole one.
        if self.stream.len > 0 {
            let begun = self.stream.begin(window);
            begun.map_err(|failure| self.failed(failure))?;
        }
        Ok(())
    }

    /// Takes the next compressed bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.received += bytes.len() as u64;
        if let Err(failure) = self.stream.push(bytes) {
            self.stream.inflate = None;
            self.failure.get_or_insert(self.failed(failure));
        }
    }

    /// The bytes of [`SpanMap::uncompressed`].
    ///
    /// # Errors
    /// [`ArrivingError::Verify`] if the bytes are not those of the span, even if they did not
    /// decode either. [`ArrivingError::Extract`] if they are and do not decode.
    pub fn finish(self) -> Result<Vec<u8>, ArrivingError> {
        let digest = self.digest.finalize().into();
        agree(self.id, self.received, digest, &self.spans)?;
        if let Some(failure) = self.failure {
            return Err(failure.into());
        }
        let Stream { output, len, .. } = self.stream;
        if output.len() != len {
            let (expected, found) = (len as u64, output.len() as u64);
            let span = self.id.0;
            let error = ExtractError::Length {
                span,
                expected,
                found,
            };
            return Err(error.into());
        }
        Ok(output)
    }

    fn failed(&self, failure: Failure) -> ExtractError {
        let (span, len) = (self.id.0, self.stream.len as u64);
        match failure {
            Failure::Data => ExtractError::Data { span },
            Failure::Memory => ExtractError::Memory { span, len },
        }
    }
}

/// The gzip members of a span, between two pieces of input.
struct Stream {
    /// `None` before the start, after a failure, and when nothing more is decoded.
    inflate: Option<Inflate>,
    /// High bits of the first byte that belong to the span, until that byte has arrived.
    bits: u8,
    /// Bytes of the first member's trailer that have not arrived. It cannot be verified from the
    /// middle of the member.
    trailer: usize,
    is_first_member: bool,
    len: usize,
    /// The bytes so far, at most `len`.
    output: Vec<u8>,
}

impl Stream {
    fn new(bits: u8) -> Self {
        Self {
            inflate: None,
            bits,
            trailer: 0,
            is_first_member: true,
            len: 0,
            output: Vec::new(),
        }
    }

    fn begin(&mut self, window: &[u8]) -> Result<(), Failure> {
        let mut inflate = Inflate::new(Wrapper::Raw)?;
        if !window.is_empty() {
            inflate.set_history(window)?;
        }
        self.inflate = Some(inflate);
        Ok(())
    }

    fn push(&mut self, mut input: &[u8]) -> Result<(), Failure> {
        let Some(inflate) = &mut self.inflate else {
            return Ok(());
        };
        if self.bits > 0
            && let Some((first, rest)) = input.split_first()
        {
            inflate.prime(self.bits, first >> (8 - self.bits))?;
            (self.bits, input) = (0, rest);
        }
        loop {
            let skip = self.trailer.min(input.len());
            self.trailer -= skip;
            input = input.get(skip..).unwrap_or_default();
            if self.trailer > 0 {
                return Ok(());
            }
            let found = self.output.len();
            self.output.resize(self.len.min(found + ROOM), 0);
            let room = self.output.get_mut(found..).unwrap_or_default();
            let step = inflate.step(input, room, Stop::Never);
            self.output
                .truncate(found + step.map_or(0, |step| step.produced));
            let step = step?;
            input = input.get(step.consumed..).unwrap_or_default();
            if step.at == At::End {
                if self.output.len() == self.len {
                    self.inflate = None;
                    return Ok(());
                }
                if self.is_first_member {
                    (self.is_first_member, self.trailer) = (false, TRAILER);
                    *inflate = Inflate::new(Wrapper::Gzip)?;
                } else {
                    inflate.reset()?;
                }
            } else if step.produced == 0 && step.consumed == 0 {
                // With input left, the decoder needs space: what follows is not of this span.
                if !input.is_empty() {
                    self.inflate = None;
                }
                return Ok(());
            }
        }
    }
}
