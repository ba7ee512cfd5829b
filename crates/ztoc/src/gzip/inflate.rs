//! zlib-rs through its C-style functions, behind a safe type.
//!
//! JUSTIFICATION: the safe interface of zlib-rs can neither stop at the end of a block nor start
//! inside a byte, and the crate depends on both. The functions are `extern "C"`: a panic in them
//! would abort the process. No input is known to cause one, and fuzz targets look for it.
//!
//! SAFETY, for the whole module: the stream is boxed, because the library points back to it, is
//! only accessed through `&mut self`, and lives from a successful `inflateInit2_` to `inflateEnd`
//! in `drop`. Input and output are borrowed for one call; its pointers are null afterwards.

#![allow(
    unsafe_code,
    reason = "the C-shaped interface of zlib-rs; see the module documentation"
)]

use std::ffi::c_int;
use std::fmt;
use std::ptr;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_MEM_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd,
    inflateInit2_, inflatePrime, inflateReset, inflateSetDictionary, z_stream, zlibVersion,
};

/// The format around the deflate data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapper {
    /// A gzip or zlib header, detected from the data.
    Either,
    /// A gzip header.
    Gzip,
    /// No header.
    Raw,
}

/// Where a step may end before input or output is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nowhere else.
    Never,
    /// After a header and after each block.
    Block,
}

/// Where a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Anywhere: the decoder needs more input or more output space.
    Inside,
    /// After a header, or after a block that is not the last: the next block begins at this bit.
    /// `held` is the number of consumed input bits that are not used yet.
    Boundary { held: u8 },
    /// After the end of a stream. A trailer, if any, has been read and verified.
    End,
}

/// The result of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) consumed: usize,
    pub(super) produced: usize,
    pub(super) at: At,
}

/// The stream is damaged, or there is no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Data,
    Memory,
}

/// An inflate stream.
pub(super) struct Inflate {
    stream: Box<z_stream>,
}

// SAFETY: the stream owns everything that its pointers reach (its state; input and output pointers
// are null between calls), the library keeps no per-thread state, and the type is not `Sync`.
unsafe impl Send for Inflate {}

impl fmt::Debug for Inflate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflate").finish_non_exhaustive()
    }
}

impl Inflate {
    pub(super) fn new(wrapper: Wrapper) -> Result<Self, Failure> {
        let window_bits = match wrapper {
            Wrapper::Either => 32 + 15,
            Wrapper::Gzip => 16 + 15,
            Wrapper::Raw => -15,
        };
        let mut stream = Box::new(z_stream {
            next_in: ptr::null(),
            avail_in: 0,
            total_in: 0,
            next_out: ptr::null_mut(),
            avail_out: 0,
            total_out: 0,
            msg: ptr::null_mut(),
            state: ptr::null_mut(),
            zalloc: None,
            zfree: None,
            opaque: ptr::null_mut(),
            data_type: 0,
            adler: 0,
            reserved: 0,
        });
        let size = c_int::try_from(size_of::<z_stream>()).map_err(|_| Failure::Memory)?;
        // SAFETY: the stream is initialized as the library requires (no state, default allocators),
        // and the version and the structure size are the library's own.
        let code = unsafe { inflateInit2_(&raw mut *stream, window_bits, zlibVersion(), size) };
        if code == Z_OK {
            Ok(Self { stream })
        } else {
            Err(Failure::Memory)
        }
    }

    /// Consumes input and produces output until one of them is exhausted, or a position in `stop`
    /// is reached.
    ///
    /// The decoder may write anywhere in `output`, even after the bytes that it reports, so history
    /// must not be kept there.
    pub(super) fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stop: Stop,
    ) -> Result<Step, Failure> {
        let avail_in = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let avail_out = u32::try_from(output.len()).unwrap_or(u32::MAX);
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = avail_in;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = avail_out;
        let flush = match stop {
            Stop::Never => Z_NO_FLUSH,
            Stop::Block => Z_BLOCK,
        };
        // SAFETY: initialized stream; `next_in` and `next_out` point to `avail_in` and `avail_out`
        // bytes that are borrowed for this call, the latter exclusively.
        let code = unsafe { inflate(&raw mut *self.stream, flush) };
        self.stream.next_in = ptr::null();
        self.stream.next_out = ptr::null_mut();
        let at = match code {
            Z_STREAM_END => At::End,
            Z_OK | Z_BUF_ERROR => self.place(),
            Z_MEM_ERROR => return Err(Failure::Memory),
            _ => return Err(Failure::Data),
        };
        let consumed = (avail_in - self.stream.avail_in) as usize;
        let produced = (avail_out - self.stream.avail_out) as usize;
        Ok(Step {
            consumed,
            produced,
            at,
        })
    }

    /// Reads the stream's state word: 128 means after a header or block, 64 means in the last
    /// block, and the low bits are the number of held bits.
    fn place(&self) -> At {
        let state = self.stream.data_type;
        if state & 128 != 0 && state & 64 == 0 {
            At::Boundary {
                held: u8::try_from(state & 63).unwrap_or(0),
            }
        } else {
            At::Inside
        }
    }

    /// Prepares the stream for another input with the same wrapper.
    pub(super) fn reset(&mut self) -> Result<(), Failure> {
        // SAFETY: initialized stream.
        let code = unsafe { inflateReset(&raw mut *self.stream) };
        if code == Z_OK {
            Ok(())
        } else {
            Err(Failure::Data)
        }
    }

    /// Inserts the low `bits` bits of `value` before the input of a raw stream that has not
    /// started.
    pub(super) fn prime(&mut self, bits: u8, value: u8) -> Result<(), Failure> {
        // SAFETY: initialized stream.
        let code = unsafe { inflatePrime(&raw mut *self.stream, bits.into(), value.into()) };
        if code == Z_OK {
            Ok(())
        } else {
            Err(Failure::Data)
        }
    }

    /// Sets the history of a raw stream, at most 32 KiB.
    pub(super) fn set_history(&mut self, window: &[u8]) -> Result<(), Failure> {
        let len = u32::try_from(window.len()).map_err(|_| Failure::Data)?;
        // SAFETY: initialized stream; the pointer is valid for `len` bytes, which are copied.
        let code = unsafe { inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), len) };
        if code == Z_OK {
            Ok(())
        } else {
            Err(Failure::Data)
        }
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: initialized stream, not used again.
        unsafe { inflateEnd(&raw mut *self.stream) };
    }
}
