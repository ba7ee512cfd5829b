//! Deflate: walking a layer for checkpoints, resuming at one, inflating a layer as it streams by.
//!
//! * [`inflate`] is the one module with `unsafe`: the C-shaped functions of zlib-rs behind a safe type.
//! * [`walk`] runs through a layer once and finds the places where a decoder can begin again.
//! * [`run`] inflates members of a layer ahead of the walk, which takes them over; [`pieces`] are what
//!   several threads read from.
//! * [`graft`] turns a span into a stream of its own, for a decoder that takes whole buffers.
//! * [`decode`] gives a span's bytes, by graft where it can and streaming where it must.
//! * [`layer`] inflates a whole layer, no checkpoints.

use thiserror::Error;

pub(crate) mod decode;
mod graft;
mod inflate;
pub(crate) mod layer;
pub(crate) mod pieces;
pub(crate) mod run;
pub(crate) mod walk;

/// A stream that is not sound gzip. Codes in the texts are the reference's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GzipError {
    /// Wrong data, a checksum that does not fit, bytes behind the last member.
    #[error("gzip error: -3 (damaged data near compressed byte {offset})")]
    Data {
        /// Compressed bytes taken when it was noticed.
        offset: u64,
    },
    /// The stream ends inside a member.
    #[error("gzip error: -3 (truncated after {offset} compressed bytes)")]
    Truncated {
        /// Compressed bytes there were.
        offset: u64,
    },
    /// No memory for the decoder.
    #[error("gzip error: -4 (out of memory)")]
    Memory,
}
