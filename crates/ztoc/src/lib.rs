//! The zTOC of an image layer: the entries of its tar, and the positions at which a decoder can
//! start.
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
//! Each span can be decoded on its own: download its compressed bytes, verify their digest
//! ([`VerifiedSpan`]), and decode from its checkpoint ([`Decoder`]). [`ArrivingSpan`] decodes during
//! the download and gives nothing before the digest is verified. A file is a range of the archive.
//! It needs the spans that cover the range ([`SpanMap::covering`]), and its tar header must match
//! the TOC ([`verify_header`]).
//!
//! * [`Builder`] makes a zTOC in one pass over a layer, byte for byte the same as the reference's.
//! * [`Ztoc`] is a verified, borrowed view of a zTOC's bytes. It guarantees that spans ascend and
//!   lie within the layer, that each has a digest and a checkpoint, and that none claims more
//!   output than its bytes can give. Entries ascend, do not overlap, and regular files lie within
//!   the archive.
//! * [`TarScanner`] and [`LayerInflate`] are for callers that read a whole layer.
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
//! The crate does no I/O except through `Read` and `Write` and temporary files, and takes no paths.
//! It starts threads only if [`BuildOptions::threads`] asks for them; none outlives the call.
//! Strings are bytes.

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
pub use gzip::arriving::{ArrivingError, ArrivingSpan};
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
