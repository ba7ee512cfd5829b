//! Why a read fails, with what it was about. Only the device makes errnos of it.

use std::{fmt, io};

use soci_oci::Digest;
use soci_ztoc::{HeaderMismatch, VerifyError};

use crate::{fetch::DemandError, sync::Arc};

/// What a read was about, as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The image that first named the layer.
    pub image: Arc<str>,
    /// The layer.
    pub layer: Digest,
    /// The span, if it was one.
    pub span: Option<u32>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}, layer {}", self.image, self.layer)?;
        self.span.map_or(Ok(()), |span| write!(f, ", span {span}"))
    }
}

/// Why bytes of a layer cannot be had. Cheap to clone: one failure may be told to many waiters.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// What the registry sent is not what the zTOC says.
    #[error("{subject}: corrupt bytes")]
    Corrupt {
        /// Which span.
        subject: Arc<Subject>,
        /// How it differs.
        #[source]
        source: Arc<VerifyError>,
    },
    /// Its digest is right, but the zTOC's checkpoint does not lead to the bytes it promises.
    #[error("{subject}: cannot be decoded: {reason}")]
    Undecodable {
        /// Which span.
        subject: Arc<Subject>,
        /// The decoder's account.
        reason: Arc<str>,
    },
    /// A file's tar header does not agree with the zTOC.
    #[error("{subject}: zTOC and tar header of {file} disagree")]
    Header {
        /// The span in which the header begins.
        subject: Arc<Subject>,
        /// The file.
        file: Arc<str>,
        /// What differs.
        #[source]
        source: Arc<HeaderMismatch>,
    },
    /// The bytes did not come.
    #[error("{subject}: cannot be fetched")]
    Fetch {
        /// Which span.
        subject: Arc<Subject>,
        /// Why.
        #[source]
        source: Arc<DemandError>,
    },
    /// The store's files cannot be read or written.
    #[error("{subject}: the store fails")]
    Store {
        /// Which layer.
        subject: Arc<Subject>,
        /// The system's account.
        #[source]
        source: Arc<io::Error>,
    },
    /// The range does not lie in the layer's data.
    #[error("{subject}: no bytes {start}..{end}")]
    Outside {
        /// Which layer.
        subject: Arc<Subject>,
        /// First byte asked for.
        start: u64,
        /// Exclusive end asked for.
        end: u64,
    },
    /// The layer was removed.
    #[error("{subject}: removed")]
    Removed {
        /// Which layer.
        subject: Arc<Subject>,
    },
}

impl ReadError {
    /// What it is about.
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
