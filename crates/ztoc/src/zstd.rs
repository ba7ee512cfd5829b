//! Decompresses zstd frames with the C library.

use std::fmt;

use thiserror::Error;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// The largest window of a frame, as a power of two: 128 MiB, the limit of the `zstd` program.
const WINDOW_LOG: u32 = 27;
/// The same for frames that need little memory: 8 MiB, which every decoder should support. The usual
/// levels of image builders need no more.
pub(crate) const SMALL_WINDOW_LOG: u32 = 23;
/// Of the window that a frame's header gives as an exponent, this is the smallest (RFC 8878).
const LEAST_WINDOW_LOG: u32 = 10;

/// Why a stream is not usable zstd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ZstdError {
    /// Invalid data, a wrong checksum, a window of more than the limit, or bytes after the last
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
    /// Accepts windows of 128 MiB.
    pub(crate) fn new() -> Result<Self, ZstdError> {
        Self::limited(WINDOW_LOG)
    }

    /// Accepts windows up to a power of two.
    pub(crate) fn limited(window_log: u32) -> Result<Self, ZstdError> {
        let mut context = DCtx::try_create().ok_or(ZstdError::Memory)?;
        let limited = context.set_parameter(DParameter::WindowLogMax(window_log));
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

/// The window of the first frame in bytes: the memory that decompressing it takes. `None` for a
/// frame that is skipped, for too few bytes, and for bytes that are not zstd.
pub(crate) fn window(start: &[u8]) -> Option<u64> {
    let (descriptor, rest) = start
        .strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?
        .split_first()?;
    let is_one_segment = descriptor & 0x20 != 0;
    if !is_one_segment {
        let (exponent, eighths) = (rest.first()? >> 3, rest.first()? & 7);
        let base = 1_u64 << (LEAST_WINDOW_LOG + u32::from(exponent));
        return Some(base + base / 8 * u64::from(eighths));
    }
    // The window is the content, whose size follows the identifier of a dictionary.
    let skipped = [0, 1, 2, 4].get(usize::from(descriptor & 3))?;
    let (length, added) = match descriptor >> 6 {
        0 => (1, 0),
        1 => (2, 256),
        2 => (4, 0),
        _ => (8, 0),
    };
    let mut size = [0; 8];
    let field = rest.get(*skipped..)?.get(..length)?;
    size.get_mut(..length)?.copy_from_slice(field);
    u64::from_le_bytes(size).checked_add(added)
}

fn data(code: zstd_safe::ErrorCode, offset: u64) -> ZstdError {
    ZstdError::Data {
        offset,
        reason: zstd_safe::get_error_name(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with the given bytes after the magic number.
    fn frame(rest: &[u8]) -> Vec<u8> {
        [&[0x28, 0xb5, 0x2f, 0xfd], rest].concat()
    }

    #[test]
    fn the_window_is_read_from_the_header_of_the_first_frame() {
        for (rest, wanted) in [
            (&[0x00, 0x00][..], Some(1 << 10)),
            (&[0x04, 13 << 3, 1, 2], Some(8 << 20)),
            (&[0x04, (13 << 3) | 1], Some(9 << 20)),
            (&[0x03, 17 << 3], Some(128 << 20)),
            (&[0x00, 0xff], Some((1 << 41) + (7 << 38))),
            (&[0x20, 9], Some(9)),
            (&[0x21, 7, 9], Some(9)),
            (&[0x62, 7, 7, 1, 1], Some(257 + 256)),
            (&[0xa3, 7, 7, 7, 7, 0, 0, 0, 1], Some(1 << 24)),
            (&[0xe0, 0, 0, 0, 0, 0, 1, 0, 0], Some(1 << 40)),
            (&[0xe0, 0, 0, 0, 0, 0, 1, 0], None),
            (&[0x23, 7, 7, 7, 7], None),
            (&[0x00], None),
            (&[], None),
        ] {
            assert_eq!(window(&frame(rest)), wanted, "{rest:x?}");
        }
        assert_eq!(window(&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]), None);
        assert_eq!(window(b"plain"), None);
        assert_eq!(window(&frame(&[0, 0])[1..]), None);
    }

    #[test]
    fn the_header_that_the_library_writes_is_understood() {
        let text = b"some text ".repeat(50_000);
        let mut out = vec![0; zstd_safe::compress_bound(text.len())];
        let mut context = zstd_safe::CCtx::create();
        let sized = zstd_safe::CParameter::ContentSizeFlag(false);
        context.set_parameter(sized).unwrap();
        let window_log = zstd_safe::CParameter::WindowLog(15);
        context.set_parameter(window_log).unwrap();
        context.compress2(&mut out[..], &text).unwrap();
        assert_eq!(window(&out), Some(1 << 15));
        zstd_safe::CCtx::create()
            .compress(&mut out[..], b"short", 3)
            .unwrap();
        assert_eq!(window(&out), Some(5));
    }
}
