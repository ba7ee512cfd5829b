//! A whole layer as a stream: compressed bytes in, the archive out.

use super::GzipError;
use super::inflate::{At, Failure, Inflate, Stop, Wrapper};
use crate::checkpoint::Compression;

/// Room for output of one step.
const ROOM: usize = 256 * 1024;

/// Steps without progress after which the decoder is taken to be stuck.
const MAX_IDLE: u32 = 16;

/// Inflates a layer that is read in order. It takes what containerd takes: gzip of one or several
/// members, each with the right checksum and length and nothing behind the last; or a plain tar.
#[derive(Debug)]
pub struct LayerInflate {
    gzip: Option<Gzip>,
    consumed: u64,
}

#[derive(Debug)]
struct Gzip {
    inflate: Inflate,
    buffer: Box<[u8]>,
    /// Between members: the next byte begins one.
    is_between: bool,
    has_member: bool,
}

impl LayerInflate {
    /// A stream at its start. [`Compression::sniff`] tells what a layer is by its first bytes.
    ///
    /// # Errors
    /// [`GzipError::Memory`] where the decoder cannot be made.
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

    /// Takes the next compressed bytes and hands the archive's to `out`, in order, in pieces of at most
    /// 256 KiB (of any size where the layer is not compressed).
    ///
    /// # Errors
    /// [`GzipError`] where the stream is damaged; it is of no use afterwards.
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

    /// Compressed bytes taken so far.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`GzipError::Truncated`] where it ends inside a member, or before the first.
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
