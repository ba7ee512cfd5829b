//! Inflates a whole layer as a stream: compressed bytes in, archive out.

use super::GzipError;
use super::inflate::{At, Failure, Inflate, Stop, Wrapper};
use crate::checkpoint::Compression;

/// Output buffer of one step, in bytes.
const ROOM: usize = 256 * 1024;

/// Steps without progress after which the decoder counts as stuck.
const MAX_IDLE: u32 = 16;

/// Inflates a layer that is read in order. Accepts the same layers as containerd: a plain tar, or
/// gzip with one or several members, each with the correct checksum and length, and nothing after
/// the last.
#[derive(Debug)]
pub struct LayerInflate {
    gzip: Option<(Members, Box<[u8]>)>,
    consumed: u64,
}

impl LayerInflate {
    /// Starts a stream. [`Compression::sniff`] detects the compression from a layer's first bytes.
    ///
    /// # Errors
    /// [`GzipError::Memory`] if there is no memory for the decoder.
    pub fn new(compression: Compression) -> Result<Self, GzipError> {
        let gzip = match compression {
            Compression::Plain => None,
            Compression::Gzip => Some((Members::new()?, vec![0; ROOM].into())),
        };
        Ok(Self { gzip, consumed: 0 })
    }

    /// Takes the next compressed bytes and passes archive bytes to `out`, in order, in pieces of at
    /// most 256 KiB (of any size if the layer is not compressed).
    ///
    /// # Errors
    /// [`GzipError`] if the stream is damaged; the value cannot be used afterwards.
    pub fn push(&mut self, mut input: &[u8], mut out: impl FnMut(&[u8])) -> Result<(), GzipError> {
        let Some((members, buffer)) = &mut self.gzip else {
            self.consumed += input.len() as u64;
            if !input.is_empty() {
                out(input);
            }
            return Ok(());
        };
        loop {
            let filled = members.fill(&mut input, buffer)?;
            self.consumed = members.consumed;
            if filled > 0 {
                out(buffer.get(..filled).unwrap_or_default());
            }
            if filled < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Compressed bytes consumed so far.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`GzipError::Truncated`] if the stream ends inside a member or before the first.
    pub fn finish(self) -> Result<(), GzipError> {
        self.gzip.map_or(Ok(()), |(members, _)| members.finish())
    }
}

/// Inflates one gzip member after the other.
#[derive(Debug)]
pub(crate) struct Members {
    inflate: Inflate,
    /// True between members: the next byte begins one.
    is_between: bool,
    has_member: bool,
    consumed: u64,
}

impl Members {
    pub(crate) fn new() -> Result<Self, GzipError> {
        Ok(Self {
            inflate: Inflate::new(Wrapper::Gzip).map_err(|_| GzipError::Memory)?,
            is_between: true,
            has_member: false,
            consumed: 0,
        })
    }

    /// Fills `out` from `input` and returns how many bytes it wrote. Fewer than `out` has room for
    /// means that all of `input` is consumed and nothing is held back.
    pub(crate) fn fill(&mut self, input: &mut &[u8], out: &mut [u8]) -> Result<usize, GzipError> {
        let (mut filled, mut idle) = (0, 0);
        while let Some(room) = out.get_mut(filled..).filter(|room| !room.is_empty()) {
            if self.is_between && !self.begin(input)? {
                break;
            }
            let step = self
                .inflate
                .step(input, room, Stop::Never)
                .map_err(|failure| error(failure, self.consumed))?;
            *input = input.get(step.consumed..).unwrap_or_default();
            self.consumed += step.consumed as u64;
            filled += step.produced;
            self.is_between = step.at == At::End;
            if step.produced > 0 || step.consumed > 0 {
                idle = 0;
                continue;
            }
            if input.is_empty() && !self.is_between {
                break;
            }
            idle += 1;
            if idle > MAX_IDLE {
                return Err(GzipError::Data {
                    offset: self.consumed,
                });
            }
        }
        Ok(filled)
    }

    /// Begins the next member, if there is a byte of it.
    fn begin(&mut self, input: &[u8]) -> Result<bool, GzipError> {
        if input.is_empty() {
            return Ok(false);
        }
        if self.has_member {
            let reset = self.inflate.reset();
            reset.map_err(|failure| error(failure, self.consumed))?;
        }
        (self.is_between, self.has_member) = (false, true);
        Ok(true)
    }

    pub(crate) fn finish(self) -> Result<(), GzipError> {
        if self.is_between && self.has_member {
            Ok(())
        } else {
            Err(GzipError::Truncated {
                offset: self.consumed,
            })
        }
    }
}

fn error(failure: Failure, offset: u64) -> GzipError {
    match failure {
        Failure::Data => GzipError::Data { offset },
        Failure::Memory => GzipError::Memory,
    }
}
