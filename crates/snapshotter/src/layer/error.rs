//! Why a read fails, and what it was about. Only the device maps these errors to errnos.

use std::{fmt, io};

use soci_oci::Digest;
use soci_ztoc::{HeaderMismatch, VerifyError};

use crate::{fetch::DemandError, metrics::ReadFailure, sync::Arc};

/// The subject of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The image that first named the layer.
    pub image: Arc<str>,
    /// The layer.
    pub layer: Digest,
    /// The span, if the error is about one.
    pub span: Option<u32>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}, layer {}", self.image, self.layer)?;
        self.span.map_or(Ok(()), |span| write!(f, ", span {span}"))
    }
}

/// Why bytes of a layer are unavailable. Cheap to clone, because one failure may go to many
/// readers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes from the registry do not match the zTOC.
    #[error("{subject}: corrupt bytes")]
    Corrupt {
        /// The span.
        subject: Arc<Subject>,
        /// The mismatch.
        #[source]
        source: Arc<VerifyError>,
    },
    /// The digest matches, but the span does not decompress to the bytes that the zTOC promises.
    #[error("{subject}: cannot be decoded: {reason}")]
    Undecodable {
        /// The span.
        subject: Arc<Subject>,
        /// The decoder's error.
        reason: Arc<str>,
    },
    /// The tar header of a file does not match the zTOC.
    #[error("{subject}: zTOC and tar header of {file} disagree")]
    Header {
        /// The span that contains the start of the header.
        subject: Arc<Subject>,
        /// The file.
        file: Arc<str>,
        /// The mismatch.
        #[source]
        source: Arc<HeaderMismatch>,
    },
    /// The bytes could not be downloaded.
    #[error("{subject}: cannot be downloaded")]
    Fetch {
        /// The span.
        subject: Arc<Subject>,
        /// The cause.
        #[source]
        source: Arc<DemandError>,
    },
    /// The files of the store cannot be read or written.
    #[error("{subject}: cannot read or write the store")]
    Store {
        /// The layer.
        subject: Arc<Subject>,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The range is outside the layer's data.
    #[error("{subject}: bytes {start}..{end} are outside its data")]
    Outside {
        /// The layer.
        subject: Arc<Subject>,
        /// First byte of the request.
        start: u64,
        /// Exclusive end of the request.
        end: u64,
    },
    /// The layer was removed.
    #[error("{subject}: the layer was removed")]
    Removed {
        /// The layer.
        subject: Arc<Subject>,
    },
}

impl ReadError {
    /// The cause, for metrics.
    pub(crate) fn cause(&self) -> ReadFailure {
        match self {
            Self::Corrupt { .. } => ReadFailure::Corrupt,
            Self::Undecodable { .. } => ReadFailure::Undecodable,
            Self::Header { .. } => ReadFailure::Header,
            Self::Fetch { .. } => ReadFailure::Download,
            Self::Store { .. } => ReadFailure::Store,
            Self::Outside { .. } => ReadFailure::Internal,
            Self::Removed { .. } => ReadFailure::Removed,
        }
    }

    /// The subject of the error.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        match self {
            Self::Corrupt { subject, .. }
            | Self::Undecodable { subject, .. }
            | Self::Header { subject, .. }
            | Self::Fetch { subject, .. }
            | Self::Store { subject, .. }
            | Self::Outside { subject, .. }
            | Self::Removed { subject } => subject,
        }
    }
}
