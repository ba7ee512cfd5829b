//! Why an archive is rejected.

use thiserror::Error;

/// Why an archive is rejected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TarError {
    /// A header block, PAX record or number does not parse.
    #[error("error while reading tar header: archive/tar: invalid tar header (at byte {offset})")]
    InvalidHeader {
        /// Offset of its block in the uncompressed stream.
        offset: u64,
    },
    /// Records or names are larger than 1 MiB.
    #[error(
        "error while reading tar header: archive/tar: header field too long (at byte {offset})"
    )]
    FieldTooLong {
        /// Offset of the header.
        offset: u64,
    },
    /// The stream ends inside a header or inside the content of a file.
    #[error("error while reading tar header: unexpected EOF (at byte {offset})")]
    UnexpectedEof {
        /// Length of the stream.
        offset: u64,
    },
    /// The type of the entry is not allowed in a layer.
    #[error("unsupported input tar entry '{}' ({})", [*flag].escape_ascii(), name.escape_ascii())]
    Unsupported {
        /// Its type flag.
        flag: u8,
        /// Its name.
        name: Vec<u8>,
    },
    /// The name of a global PAX header would have an effect when the layer is unpacked.
    #[error(
        "a global PAX header named '{}', which unpacking takes for an entry",
        name.escape_ascii()
    )]
    Global {
        /// Its name.
        name: Vec<u8>,
    },
    /// The entry is a sparse file, and the policy rejects those.
    #[error("sparse file {}", name.escape_ascii())]
    Sparse {
        /// Its name.
        name: Vec<u8>,
    },
}
