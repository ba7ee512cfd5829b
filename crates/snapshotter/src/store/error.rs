//! Why a layer's files cannot be made or opened, and what is to be done with them then.

use std::{
    io,
    path::{Path, PathBuf},
};

use soci_oci::Digest;

use super::{LayerNumber, MAX_SPAN};
use crate::places::PlaceError;

/// Why a layer's files cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system's account.
    #[error("{path}")]
    Io {
        /// What was being worked on.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The zTOC's bytes are not those its descriptor names.
    #[error("zTOC of {layer} does not have the digest {expected}")]
    ZtocDigest {
        /// The layer.
        layer: Box<Digest>,
        /// The zTOC's digest by its descriptor.
        expected: Box<Digest>,
    },
    /// The zTOC is malformed or describes what cannot be served.
    #[error("zTOC of {layer}")]
    Ztoc {
        /// The layer.
        layer: Box<Digest>,
        /// What is wrong with it.
        #[source]
        source: soci_ztoc::DecodeError,
    },
    /// A span that would have to lie in memory as a whole is too large for that.
    #[error("zTOC of {layer}: span {span} has {bytes} bytes, more than {MAX_SPAN}")]
    Span {
        /// The layer.
        layer: Box<Digest>,
        /// The span.
        span: u32,
        /// Its size, compressed or not.
        bytes: u64,
    },
    /// The zTOC is about a layer of another size.
    #[error("zTOC of {layer} is for a layer of {ztoc} bytes, not {size}")]
    Size {
        /// The layer.
        layer: Box<Digest>,
        /// Size by the zTOC.
        ztoc: u64,
        /// Size by the manifest.
        size: u64,
    },
    /// The entries have no places.
    #[error("entries of {layer}")]
    Places {
        /// The layer.
        layer: Box<Digest>,
        /// What is wrong with them.
        #[source]
        source: PlaceError,
    },
    /// A file is whole and says what this version does not understand.
    #[error("layer {number} of the store: {file} is not of a form that this version knows")]
    Foreign {
        /// Its number.
        number: LayerNumber,
        /// Which file.
        file: &'static str,
    },
    /// A file that cannot be made again without the registry is torn.
    #[error("layer {number} of the store is damaged: {file}")]
    Damaged {
        /// Its number.
        number: LayerNumber,
        /// Which file.
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

    /// Whether trying again later would find the same: the layer's files are of no use to this version on this disk.
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
