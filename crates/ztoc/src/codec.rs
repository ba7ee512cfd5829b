//! Encodes and decodes zTOCs, without generated FlatBuffers code.
//!
//! [`encode`] creates every object in the same order as the reference, because the order determines
//! the bytes and therefore the digest. Its [`writer`] does not keep all of them in memory.
//! [`decode`] verifies the buffer with the runtime's verifier (strings as bytes, limits scaled to
//! the size of the buffer), then checks the numbers, and returns borrowed views.

use flatbuffers::{
    ForwardsUOffset, InvalidFlatbuffer, VOffsetT, Vector, Verifiable, Verifier, VerifierOptions,
};
use thiserror::Error;

use crate::zinfo::ZinfoError;

pub(crate) mod decode;
pub(crate) mod encode;
mod writer;

/// Largest zTOC in bytes, for writing and reading. The reference's builder doubles its buffer and
/// stops at 1 GiB.
pub const MAX_ZTOC_SIZE: u64 = 1 << 30;

/// The version string of every zTOC.
pub(crate) const VERSION: &str = "0.9";

/// Values of the algorithm field. Gzip is the default and never written.
pub(crate) const ALGORITHM_GZIP: i8 = 1;
pub(crate) const ALGORITHM_UNCOMPRESSED: i8 = 2;

/// Field ids (vtable slots) of the tables.
pub(crate) mod field {
    pub(crate) const XATTR_KEY: u16 = 0;
    pub(crate) const XATTR_VALUE: u16 = 1;

    pub(crate) const FILE_NAME: u16 = 0;
    pub(crate) const FILE_TYPE: u16 = 1;
    pub(crate) const FILE_OFFSET: u16 = 2;
    pub(crate) const FILE_SIZE: u16 = 3;
    pub(crate) const FILE_LINKNAME: u16 = 4;
    pub(crate) const FILE_MODE: u16 = 5;
    pub(crate) const FILE_UID: u16 = 6;
    pub(crate) const FILE_GID: u16 = 7;
    pub(crate) const FILE_UNAME: u16 = 8;
    pub(crate) const FILE_GNAME: u16 = 9;
    pub(crate) const FILE_MOD_TIME: u16 = 10;
    pub(crate) const FILE_DEVMAJOR: u16 = 11;
    pub(crate) const FILE_DEVMINOR: u16 = 12;
    pub(crate) const FILE_XATTRS: u16 = 13;

    pub(crate) const COMPRESSION_ALGORITHM: u16 = 0;
    pub(crate) const COMPRESSION_MAX_SPAN_ID: u16 = 1;
    pub(crate) const COMPRESSION_SPAN_DIGESTS: u16 = 2;
    pub(crate) const COMPRESSION_CHECKPOINTS: u16 = 3;

    pub(crate) const TOC_METADATA: u16 = 0;

    pub(crate) const ZTOC_VERSION: u16 = 0;
    pub(crate) const ZTOC_TOOL: u16 = 1;
    pub(crate) const ZTOC_COMPRESSED_SIZE: u16 = 2;
    pub(crate) const ZTOC_UNCOMPRESSED_SIZE: u16 = 3;
    pub(crate) const ZTOC_TOC: u16 = 4;
    pub(crate) const ZTOC_COMPRESSION: u16 = 5;
}

/// Offset of a field's entry in a vtable.
pub(crate) const fn slot(id: u16) -> VOffsetT {
    4 + 2 * id
}

/// Why a zTOC is rejected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Larger than [`MAX_ZTOC_SIZE`].
    #[error("zTOC of {0} bytes is larger than 1 GiB")]
    TooLarge(u64),
    /// Not a valid FlatBuffers buffer of this schema.
    #[error("cannot unmarshal ztoc")]
    Flatbuffer(#[source] Box<InvalidFlatbuffer>),
    /// A required part is missing.
    #[error("zTOC has no {0}")]
    Missing(&'static str),
    /// A size is negative.
    #[error("zTOC states {field} {value}")]
    Negative {
        /// The name of the field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The algorithm is neither gzip nor uncompressed.
    #[error("unexpected compression algorithm: {0}")]
    Algorithm(i8),
    /// The checkpoint table is invalid.
    #[error("checkpoint table of the zTOC is unsound")]
    Zinfo(#[from] ZinfoError),
    /// The parts of the zTOC disagree about the number of spans.
    #[error("{checkpoints} checkpoints, {digests} span digests, last span id {max_span_id}")]
    SpanCount {
        /// Number of spans according to the checkpoint table.
        checkpoints: u64,
        /// Number of digests.
        digests: usize,
        /// Id of the last span according to its own field.
        max_span_id: i32,
    },
    /// A span digest is not the text form of a SHA-256.
    #[error("digest of span {span} is unreadable")]
    Digest {
        /// The span.
        span: u32,
    },
    /// Spans are not in ascending order, exceed the layer, or claim more output than their bytes
    /// can decode to.
    #[error("span {span} is impossible: {problem}")]
    Span {
        /// The span.
        span: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An entry of the table of contents is wrong.
    #[error("invalid toc entry {index} ({}): {problem}", .name.escape_ascii())]
    Entry {
        /// Its index in archive order.
        index: usize,
        /// Its name.
        name: Vec<u8>,
        /// What is wrong with it.
        problem: EntryProblem,
    },
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntryProblem {
    /// The kind is unknown.
    #[error("unknown type")]
    Kind,
    /// The offset or the size is negative, or their sum is too large.
    #[error("impossible offset or size")]
    Extent,
    /// The entry begins before the end of the previous one.
    #[error("overlaps the entry before it")]
    Overlap,
    /// The content lies beyond the end of the archive.
    #[error("content behind the end of the archive")]
    BehindEnd,
    /// An entry other than a regular file states a size, so the headers after it cannot be found.
    #[error("size without content")]
    SizeWithoutContent,
    /// The entry is a sparse file, so the stored bytes are not the content.
    #[error("sparse file")]
    Sparse,
}

/// Byte strings: `[u8]`, never `str`, because names need not be UTF-8.
type Bytes<'a> = ForwardsUOffset<Vector<'a, u8>>;
/// Vectors of tables or strings.
type Offsets<'a, T> = ForwardsUOffset<Vector<'a, ForwardsUOffset<T>>>;

/// The shapes of the tables, for the verifier.
pub(crate) struct ZtocShape;
struct TocShape;
struct FileShape;
struct XattrShape;
struct CompressionShape;

impl Verifiable for ZtocShape {
    fn run_verifier(v: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
        v.visit_table(pos)?
            .visit_field::<Bytes<'_>>("version", slot(field::ZTOC_VERSION), false)?
            .visit_field::<Bytes<'_>>("build_tool_identifier", slot(field::ZTOC_TOOL), false)?
            .visit_field::<i64>(
                "compressed_archive_size",
                slot(field::ZTOC_COMPRESSED_SIZE),
                false,
            )?
            .visit_field::<i64>(
                "uncompressed_archive_size",
                slot(field::ZTOC_UNCOMPRESSED_SIZE),
                false,
            )?
            .visit_field::<ForwardsUOffset<TocShape>>("toc", slot(field::ZTOC_TOC), false)?
            .visit_field::<ForwardsUOffset<CompressionShape>>(
                "compression_info",
                slot(field::ZTOC_COMPRESSION),
                false,
            )?
            .finish();
        Ok(())
    }
}

impl Verifiable for TocShape {
    fn run_verifier(v: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
        v.visit_table(pos)?
            .visit_field::<Offsets<'_, FileShape>>("metadata", slot(field::TOC_METADATA), false)?
            .finish();
        Ok(())
    }
}

impl Verifiable for FileShape {
    fn run_verifier(v: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
        v.visit_table(pos)?
            .visit_field::<Bytes<'_>>("name", slot(field::FILE_NAME), false)?
            .visit_field::<Bytes<'_>>("type", slot(field::FILE_TYPE), false)?
            .visit_field::<i64>("uncompressed_offset", slot(field::FILE_OFFSET), false)?
            .visit_field::<i64>("uncompressed_size", slot(field::FILE_SIZE), false)?
            .visit_field::<Bytes<'_>>("linkname", slot(field::FILE_LINKNAME), false)?
            .visit_field::<i64>("mode", slot(field::FILE_MODE), false)?
            .visit_field::<u32>("uid", slot(field::FILE_UID), false)?
            .visit_field::<u32>("gid", slot(field::FILE_GID), false)?
            .visit_field::<Bytes<'_>>("uname", slot(field::FILE_UNAME), false)?
            .visit_field::<Bytes<'_>>("gname", slot(field::FILE_GNAME), false)?
            .visit_field::<Bytes<'_>>("mod_time", slot(field::FILE_MOD_TIME), false)?
            .visit_field::<i64>("devmajor", slot(field::FILE_DEVMAJOR), false)?
            .visit_field::<i64>("devminor", slot(field::FILE_DEVMINOR), false)?
            .visit_field::<Offsets<'_, XattrShape>>("xattrs", slot(field::FILE_XATTRS), false)?
            .finish();
        Ok(())
    }
}

impl Verifiable for XattrShape {
    fn run_verifier(v: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
        v.visit_table(pos)?
            .visit_field::<Bytes<'_>>("key", slot(field::XATTR_KEY), false)?
            .visit_field::<Bytes<'_>>("value", slot(field::XATTR_VALUE), false)?
            .finish();
        Ok(())
    }
}

impl Verifiable for CompressionShape {
    fn run_verifier(v: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
        v.visit_table(pos)?
            .visit_field::<i8>(
                "compression_algorithm",
                slot(field::COMPRESSION_ALGORITHM),
                false,
            )?
            .visit_field::<i32>("max_span_id", slot(field::COMPRESSION_MAX_SPAN_ID), false)?
            .visit_field::<Offsets<'_, Vector<'_, u8>>>(
                "span_digests",
                slot(field::COMPRESSION_SPAN_DIGESTS),
                false,
            )?
            .visit_field::<Bytes<'_>>("checkpoints", slot(field::COMPRESSION_CHECKPOINTS), false)?
            .finish();
        Ok(())
    }
}

/// Verifies that `bytes` is a buffer of this schema.
///
/// The runtime's default limits are too small (there is a table for every file and every PAX
/// record) and too large (shared objects could be expanded to 2 GiB). Both limits are scaled to the
/// buffer.
fn verify(bytes: &[u8]) -> Result<(), DecodeError> {
    let options = VerifierOptions {
        max_depth: 8,
        // A table takes at least the four bytes of its vtable offset.
        max_tables: bytes.len() / 4 + 1,
        // The verifier counts a shared vtable once per table. Writers share nothing else.
        max_apparent_size: bytes.len().saturating_mul(4).saturating_add(1024),
        ignore_missing_null_terminator: true,
    };
    let mut verifier = Verifier::new(&options, bytes);
    <ForwardsUOffset<ZtocShape>>::run_verifier(&mut verifier, 0)
        .map_err(|error| DecodeError::Flatbuffer(Box::new(error)))
}
