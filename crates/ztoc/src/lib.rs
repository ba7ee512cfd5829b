//! The zTOC of an image layer: what is in its tar, and where a decoder can begin in its middle.
//!
//! ```text
//! layer blob     [header| deflate ......|.............|........... |trailer]
//!                       ^               ^             ^
//! checkpoints           0               1             2      (offset, bits, window of 32 KiB)
//! spans                 |------ 0 ------|----- 1 -----|----- 2 ------------]   each with a SHA-256
//!                       v               v             v
//! archive (tar)         [hdr|file....|hdr|file|hdr|file...............|end]
//! TOC                        a            b        c          (header range, offset, size, attributes)
//! ```
//!
//! A span is decoded alone: fetch its compressed bytes, check their digest ([`VerifiedSpan`]), decode
//! from its checkpoint ([`Decoder`]). A file is a range of the archive, so it needs the spans that
//! cover it ([`SpanMap::covering`]), and its tar header must agree with the TOC ([`verify_header`]).
//!
//! * [`Builder`] makes a zTOC in one pass over a layer; its bytes are those of the reference.
//! * [`Ztoc`] is a verified, borrowed view of a zTOC's bytes. What holds for one: spans ascend and lie
//!   within the layer, there is a digest and a checkpoint for each, none claims more output than its
//!   bytes can give; entries ascend, do not overlap, and regular files lie within the archive.
//! * [`TarScanner`] and [`LayerInflate`] serve those who read a layer whole.
//!
//! ```
//! use soci_ztoc::{BuildOptions, Builder, Compression, Ztoc};
//!
//! let layer = [0u8; 1024]; // an archive without entries, not compressed
//! let mut built = Builder::new(BuildOptions::default()).build(&layer[..], Compression::Plain)?;
//! let mut bytes = Vec::new();
//! built.encode(&mut bytes)?;
//! let ztoc = Ztoc::parse(&bytes)?;
//! assert_eq!((ztoc.entry_count(), ztoc.spans().len()), (0, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! No I/O but through `Read` and `Write`, no paths; threads only where [`BuildOptions::threads`] asks for
//! them, and none outlives the call. Strings are bytes.

#![warn(missing_docs)]

pub use builder::{
    BuildError, BuildOptions, Builder, BuiltZtoc, DEFAULT_AHEAD, DEFAULT_SPAN_SIZE, TOOL, Warning,
    WarningKind,
};
pub use checkpoint::{Checkpoint, Compression, WINDOW};
pub use codec::decode::{DetachedZtoc, Ztoc};
pub use codec::encode::EncodeError;
pub use codec::{DecodeError, EntryProblem, MAX_ZTOC_SIZE};
pub use extract::{ReadError, read_archive};
pub use gzip::GzipError;
pub use gzip::decode::{Decoder, ExtractError, decode_span};
pub use gzip::layer::LayerInflate;
pub use span::{SpanDigest, SpanId, SpanMap};
pub use tar::{Policy, TarEnd, TarError, TarScanner, TarSink};
pub use toc::{Entries, Entry, FileKind, Pax, Time, Toc};
pub use verify::{HeaderMismatch, VerifiedSpan, VerifyError, disagreement, verify_header};
pub use zinfo::{GzipTable, PlainTable, Row, ZinfoError};

mod builder;
mod checkpoint;
mod codec;
mod extract;
mod flat;
mod gzip;
mod plain;
mod span;
mod tar;
mod toc;
mod verify;
mod zinfo;
