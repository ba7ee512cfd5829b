//! The zTOC of an image layer: the entries of its tar, and the positions at which a decoder can
//! start. [`Builder`] makes a zTOC in one pass over a layer.
//!
//! [`Ztoc`] is a verified view of a zTOC's bytes. A file is a range of the archive and needs the
//! spans that cover it ([`SpanMap::covering`]). Download their bytes, verify them
//! ([`VerifiedSpan`]) and decode each from its checkpoint ([`Decoder`]).
//!
//! I/O is only through `Read`, `Write` and temporary files. Threads start only if
//! [`BuildOptions::threads`] asks for them, and none outlives the call. Strings are bytes.

#![warn(missing_docs)]

pub use builder::{
    BuildError, BuildOptions, Builder, BuiltZtoc, DEFAULT_AHEAD, DEFAULT_SPAN_SIZE, LayerIndexer,
    TOOL, Warning, WarningKind,
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
pub use layer::{LayerDecoder, LayerError, LayerFormat};
pub use span::{SpanDigest, SpanId, SpanMap};
pub use tar::{Policy, TarEnd, TarError, TarScanner, TarSink};
pub use toc::{Entries, Entry, FileKind, Pax, Time, Toc};
pub use verify::{HeaderMismatch, VerifiedSpan, VerifyError, disagreement, verify_header};
pub use zinfo::{GzipTable, PlainTable, Row, ZinfoError};
pub use zstd::ZstdError;

mod builder;
mod checkpoint;
mod codec;
mod extract;
mod flat;
mod gzip;
mod layer;
mod plain;
mod span;
mod tar;
mod toc;
mod verify;
mod zinfo;
mod zstd;
