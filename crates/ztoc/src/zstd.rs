//! Decompresses zstd frames with the C library.

use std::fmt;

use thiserror::Error;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// The largest window of a frame, as a power of two: 128 MiB, the limit of the `zstd` program. The
/// levels that image builders use need at most 8 MiB.
const WINDOW_LOG: u32 = 27;

/// Why a stream is not usable zstd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ZstdError {
    /// Invalid data, a wrong checksum, a window of more than 128 MiB, or bytes after the last
    /// frame.
    #[error("zstd error near compressed byte {offset}: {reason}")]
    Data {
        /// Compressed bytes consumed when the error was detected.
        offset: u64,
        /// What the library says.
        reason: &'static str,
    },
    /// The stream ends inside a frame.
    #[error("zstd error: truncated after {offset} compressed bytes")]
    Truncated {
        /// Length of the stream in compressed bytes.
        offset: u64,
    },
    /// There is no memory for the decoder.
    #[error("zstd error: out of memory")]
    Memory,
}

/// Decompresses one frame after the other. Skips frames that are to be skipped.
pub(crate) struct Frames {
    context: DCtx<'static>,
    /// True between frames.
    is_between: bool,
    consumed: u64,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames")
            .field("consumed", &self.consumed)
            .finish_non_exhaustive()
    }
}

impl Frames {
    pub(crate) fn new() -> Result<Self, ZstdError> {
        let mut context = DCtx::try_create().ok_or(ZstdError::Memory)?;
        let limited = context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG));
        limited.map_err(|code| data(code, 0))?;
        Ok(Self {
            context,
            is_between: false,
            consumed: 0,
        })
    }

    /// The same contract as that of the gzip decoder.
    pub(crate) fn fill(&mut self, input: &mut &[u8], out: &mut [u8]) -> Result<usize, ZstdError> {
        let mut filled = 0;
        while let Some(room) = out.get_mut(filled..).filter(|room| !room.is_empty()) {
            if self.is_between && input.is_empty() {
                break;
            }
            let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(room));
            let hint = self.context.decompress_stream(&mut to, &mut from);
            let (consumed, produced) = (from.pos(), to.pos());
            self.consumed += consumed as u64;
            let hint = hint.map_err(|code| data(code, self.consumed))?;
            *input = input.get(consumed..).unwrap_or_default();
            filled += produced;
            // The library expects nothing more: the frame is complete, and all of it was written.
            self.is_between = hint == 0;
            if consumed == 0 && produced == 0 {
                break;
            }
        }
        Ok(filled)
    }

    pub(crate) fn finish(self) -> Result<(), ZstdError> {
        if self.is_between {
            Ok(())
        } else {
            Err(ZstdError::Truncated {
                offset: self.consumed,
            })
        }
    }
}

fn data(code: zstd_safe::ErrorCode, offset: u64) -> ZstdError {
    ZstdError::Data {
        offset,
        reason: zstd_safe::get_error_name(code),
    }
}
