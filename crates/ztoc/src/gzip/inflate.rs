//! zlib-rs through its C-shaped functions, behind a safe type.
//!
//! JUSTIFICATION: the safe interface of zlib-rs can neither stop at the end of a block nor begin inside
//! a byte, and the whole crate rests on both. Nothing outside this module uses `unsafe`.
//!
//! A panic in these functions would abort the process: they are `extern "C"`, and nothing unwinds through that.
//! No input is known to cause one; the fuzz targets that inflate would find it.
//!
//! SAFETY, for the whole module: the stream is boxed (the library keeps a pointer back to it and checks
//! it), is only touched through `&mut self`, and lives from a successful `inflateInit2_` to
//! `inflateEnd` in `drop`. Input and output are borrowed for the length of one call; afterwards the
//! pointers in the stream are null.

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

/// What surrounds the deflate data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapper {
    /// A gzip or a zlib header, whichever is there.
    Either,
    /// A gzip header.
    Gzip,
    /// Nothing.
    Raw,
}

/// Where a step may end before input or room do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nowhere.
    Never,
    /// Behind a header and behind each block.
    Block,
}

/// Where a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Anywhere: it wants more input or more room.
    Inside,
    /// Behind a header or a block that is not the last: the next block begins at this bit. `held` is
    /// the number of bits of the input taken so far that are not used yet.
    Boundary { held: u8 },
    /// Behind a stream's end, its trailer included and verified where it has one.
    End,
}

/// What a step did.
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

// SAFETY: the stream owns everything that its pointers reach (its state; input and output pointers are
// null between calls), the library keeps nothing per thread, and there is no way to share it by `&`.
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
        // SAFETY: the stream is initialised as the library demands (no state, default allocators), the
        // version is its own, the size is that of the structure.
        let code = unsafe { inflateInit2_(&raw mut *stream, window_bits, zlibVersion(), size) };
        if code == Z_OK {
            Ok(Self { stream })
        } else {
            Err(Failure::Memory)
        }
    }

    /// Takes input and gives output until one of them is used up, or a place in `stop` is reached.
    ///
    /// The decoder may write anywhere into `output`, also behind what it reports: history must not be
    /// kept there.
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
        // SAFETY: initialised stream; `next_in` and `next_out` point to `avail_in` and `avail_out`
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

    /// Reads the stream's state word: 128 behind a header or block, 64 in the last block, and the
    /// number of bits held.
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

    /// Makes the stream ready for another one with the same wrapper.
    pub(super) fn reset(&mut self) -> Result<(), Failure> {
        // SAFETY: initialised stream.
        let code = unsafe { inflateReset(&raw mut *self.stream) };
        if code == Z_OK {
            Ok(())
        } else {
            Err(Failure::Data)
        }
    }

    /// Puts the low `bits` bits of `value` in front of the input of a raw stream that is at its start.
    pub(super) fn prime(&mut self, bits: u8, value: u8) -> Result<(), Failure> {
        // SAFETY: initialised stream.
        let code = unsafe { inflatePrime(&raw mut *self.stream, bits.into(), value.into()) };
        if code == Z_OK {
            Ok(())
        } else {
            Err(Failure::Data)
        }
    }

    /// Gives a raw stream its history, at most 32 KiB.
    pub(super) fn set_history(&mut self, window: &[u8]) -> Result<(), Failure> {
        let len = u32::try_from(window.len()).map_err(|_| Failure::Data)?;
        // SAFETY: initialised stream; the pointer is good for `len` bytes, which are copied.
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
        // SAFETY: initialised stream, not used again.
        unsafe { inflateEnd(&raw mut *self.stream) };
    }
}
