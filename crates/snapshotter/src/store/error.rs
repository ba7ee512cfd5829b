//! Errors of creating and opening the files of a layer.

use std::{
    io,
    path::{Path, PathBuf},
};

use soci_oci::Digest;

use super::{LayerNumber, MAX_SPAN};
use crate::places::PlaceError;

/// Why the files of a layer cannot be created or opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An error of the system.
    #[error("{path}")]
    Io {
        /// The path in question.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The bytes of the zTOC do not match its descriptor.
    #[error("zTOC of {layer} does not have the digest {expected}")]
    ZtocDigest {
        /// The layer.
        layer: Box<Digest>,
        /// Digest of the zTOC according to its descriptor.
        expected: Box<Digest>,
    },
    /// The zTOC is malformed or describes a layer that cannot be served.
    #[error("zTOC of {layer}")]
    Ztoc {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: soci_ztoc::DecodeError,
    },
    /// A span is too large to be held in memory.
    #[error("zTOC of {layer}: span {span} has {bytes} bytes, more than {MAX_SPAN}")]
    Span {
        /// The layer.
        layer: Box<Digest>,
        /// The span.
        span: u32,
        /// Its size, compressed or not.
        bytes: u64,
    },
    /// The zTOC describes a layer of a different size.
    #[error("zTOC of {layer} is for a layer of {ztoc} bytes, not {size}")]
    Size {
        /// The layer.
        layer: Box<Digest>,
        /// Size according to the zTOC.
        ztoc: u64,
        /// Size according to the manifest.
        size: u64,
    },
    /// The entries cannot be placed in `data`.
    #[error("cannot place the entries of {layer}")]
    Places {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: PlaceError,
    },
    /// A file is intact, but this version does not understand its content.
    #[error("layer {number} of the store: this version does not understand the format of {file}")]
    Foreign {
        /// The layer's number.
        number: LayerNumber,
        /// The file.
        file: &'static str,
    },
    /// A file is damaged and cannot be rebuilt without the registry.
    #[error("layer {number} of the store is damaged: {file}")]
    Damaged {
        /// The layer's number.
        number: LayerNumber,
        /// The file.
        file: &'static str,
    },
}

impl StoreError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<'_> {
        |source| StoreError::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// Whether a retry would fail in the same way, because this version cannot use the files on
    /// this disk.
    pub fn is_lasting(&self) -> bool {
        use rustix::io::Errno;
        const BROKEN: [Errno; 4] = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::ILSEQ];
        match self {
            StoreError::Io { source, .. } => source
                .raw_os_error()
                .is_some_and(|code| BROKEN.iter().any(|errno| errno.raw_os_error() == code)),
            _ => true,
        }
    }
}
