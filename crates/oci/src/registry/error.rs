//! Why a registry did not do what it was asked.

use std::sync::Arc;

use super::{HostError, TlsError};
use crate::{fetch::FetchError, reference::ImageRef, url::RedactedUrl};

/// Why a registry did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The client cannot be made.
    #[error("set up the registry client")]
    Setup {
        /// What TLS or HTTP say.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The reference names no host that can be asked.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The reference has neither tag nor digest.
    #[error("{image} has neither tag nor digest")]
    NoObject {
        /// The reference.
        image: String,
    },
    /// There is no such image, manifest or blob.
    #[error("{image}: {what} not found")]
    NotFound {
        /// The reference.
        image: String,
        /// What was asked for, in the registry's terms.
        what: String,
    },
    /// Larger than what we are ready to read.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What was read.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Other bytes than the digest promises.
    #[error("{what} came with other bytes than its digest says")]
    WrongBytes {
        /// What was read.
        what: String,
    },
    /// Not the document that it should be.
    #[error("{what}")]
    BadDocument {
        /// What was read.
        what: String,
        /// What is wrong with it.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A list of referrers whose later pages are none.
    #[error("{what}: page {page} is no list of referrers")]
    BrokenList {
        /// What was read.
        what: String,
        /// Which page, from 1.
        page: usize,
    },
    /// The answer to a push makes no sense.
    #[error("{url} accepted an upload without saying where to")]
    NoUploadLocation {
        /// Who answered.
        url: RedactedUrl,
    },
    /// The bytes to push could not be read.
    #[error("read the bytes to push")]
    Source {
        /// The reader's error.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The request failed.
    #[error("{image}: {what}")]
    Fetch {
        /// The reference.
        image: String,
        /// What was asked for.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<FetchError>,
    },
}

impl RegistryError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, RegistryError::Fetch { source, .. } if source.is_transient())
    }
}

/// A failed request as the caller sees it.
pub(super) fn failed(image: &ImageRef, what: &str, error: FetchError) -> RegistryError {
    let (image, what) = (image.to_string(), what.to_owned());
    match error {
        FetchError::Status { status: 404, .. } => RegistryError::NotFound { image, what },
        FetchError::WrongBytes { .. } => RegistryError::WrongBytes {
            what: format!("{image}: {what}"),
        },
        source => {
            let source = Box::new(source);
            RegistryError::Fetch {
                image,
                what,
                source,
            }
        }
    }
}
