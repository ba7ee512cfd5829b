//! Inflates layers: finds checkpoints, resumes at a checkpoint, or inflates a layer as a stream.
//!
//! * [`inflate`]: zlib-rs behind a safe type, the only module with `unsafe`.
//! * [`walk`]: reads a layer once and finds the positions at which a decoder can resume.
//! * [`run`]: inflates members of a layer ahead of the walk. [`pieces`]: bytes that threads share.
//! * [`graft`]: turns a span into a stream of its own, for a decoder that works on whole buffers.
//! * [`decode`]: decodes a span. [`arriving`]: decodes a span while its bytes arrive.
//! * [`layer`]: inflates a whole layer, without checkpoints.

use thiserror::Error;

pub(crate) mod arriving;
pub(crate) mod decode;
mod graft;
mod inflate;
pub(crate) mod layer;
pub(crate) mod pieces;
pub(crate) mod run;
pub(crate) mod walk;

/// Why a stream is not valid gzip. The codes in the messages are the reference's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GzipError {
    /// Invalid data, a wrong checksum, or bytes after the last member.
    #[error("gzip error: -3 (damaged data near compressed byte {offset})")]
    Data {
        /// Compressed bytes consumed when the error was detected.
        offset: u64,
    },
    /// The stream ends inside a member.
    #[error("gzip error: -3 (truncated after {offset} compressed bytes)")]
    Truncated {
        /// Length of the stream in compressed bytes.
        offset: u64,
    },
    /// There is no memory for the decoder.
    #[error("gzip error: -4 (out of memory)")]
    Memory,
}
