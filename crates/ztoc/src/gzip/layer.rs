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
    gzip: Option<Gzip>,
    consumed: u64,
}

#[derive(Debug)]
struct Gzip {
    inflate: Inflate,
    buffer: Box<[u8]>,
    /// True between members: the next byte begins one.
    is_between: bool,
    has_member: bool,
}

impl LayerInflate {
    /// Starts a stream. [`Compression::sniff`] detects the compression from a layer's first bytes.
    ///
    /// # Errors
    /// [`GzipError::Memory`] if there is no memory for the decoder.
    pub fn new(compression: Compression) -> Result<Self, GzipError> {
        let gzip = match compression {
            Compression::Plain => None,
            Compression::Gzip => Some(Gzip {
                inflate: Inflate::new(Wrapper::Gzip).map_err(|_| GzipError::Memory)?,
                buffer: vec![0; ROOM].into(),
                is_between: true,
                has_member: false,
            }),
        };
        Ok(Self { gzip, consumed: 0 })
    }

    /// Takes the next compressed bytes and passes archive bytes to `out`, in order, in pieces of at
    /// most 256 KiB (of any size if the layer is not compressed).
    ///
    /// # Errors
    /// [`GzipError`] if the stream is damaged; the value cannot be used afterwards.
    pub fn push(&mut self, mut input: &[u8], mut out: impl FnMut(&[u8])) -> Result<(), GzipError> {
        let Some(gzip) = &mut self.gzip else {
            self.consumed += input.len() as u64;
            if !input.is_empty() {
                out(input);
            }
            return Ok(());
        };
        let mut idle = 0;
        let mut has_more = true;
        while has_more || !input.is_empty() {
            if gzip.is_between {
                if input.is_empty() {
                    break;
                }
                if gzip.has_member {
                    gzip.inflate
                        .reset()
                        .map_err(|failure| error(failure, self.consumed))?;
                }
                gzip.is_between = false;
                gzip.has_member = true;
            }
            let step = gzip
                .inflate
                .step(input, &mut gzip.buffer, Stop::Never)
                .map_err(|failure| error(failure, self.consumed))?;
            input = input.get(step.consumed..).unwrap_or_default();
            self.consumed += step.consumed as u64;
            if step.produced > 0 {
                out(gzip.buffer.get(..step.produced).unwrap_or_default());
            }
            idle = if step.produced == 0 && step.consumed == 0 {
                idle + 1
            } else {
                0
            };
            if idle > MAX_IDLE {
                return Err(GzipError::Data {
                    offset: self.consumed,
                });
            }
            gzip.is_between = step.at == At::End;
            has_more = step.produced == gzip.buffer.len() || gzip.is_between;
        }
        Ok(())
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
        match self.gzip {
            Some(gzip) if !(gzip.is_between && gzip.has_member) => Err(GzipError::Truncated {
                offset: self.consumed,
            }),
            _ => Ok(()),
        }
    }
}

fn error(failure: Failure, offset: u64) -> GzipError {
    match failure {
        Failure::Data => GzipError::Data { offset },
        Failure::Memory => GzipError::Memory,
    }
}
