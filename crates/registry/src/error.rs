//! Errors of the registry client.

use std::sync::Arc;

use super::{HostError, TlsError};
use crate::{fetch::FetchError, url::RedactedUrl};
use soci_oci::reference::ImageRef;

/// Why a registry operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The client cannot be created.
    #[error("set up the registry client")]
    Setup {
        /// The error of the TLS or HTTP library.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The reference names no host that can be contacted.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The reference has neither tag nor digest.
    #[error("{image} has neither tag nor digest")]
    NoObject {
        /// The reference.
        image: String,
    },
    /// The image, manifest or blob does not exist.
    #[error("{image}: {what} not found")]
    NotFound {
        /// The reference.
        image: String,
        /// The requested object, as a path in the registry API.
        what: String,
    },
    /// An object exceeds its size limit.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// The object.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes do not match the digest.
    #[error("{what} came with other bytes than its digest says")]
    WrongBytes {
        /// The object.
        what: String,
    },
    /// A document is malformed.
    #[error("{what}")]
    BadDocument {
        /// The document.
        what: String,
        /// Why it is malformed.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A later page of a list of referrers is malformed.
    #[error("{what}: page {page} is no list of referrers")]
    BrokenList {
        /// The list.
        what: String,
        /// Number of the page, starting at 1.
        page: usize,
    },
    /// The registry accepted an upload without a valid `Location`.
    #[error("{url} accepted an upload without saying where to")]
    NoUploadLocation {
        /// The address that responded.
        url: RedactedUrl,
    },
    /// The upload was canceled while it began.
    #[error("{image}: the upload was canceled")]
    Canceled {
        /// The reference.
        image: String,
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
        /// The requested object.
        what: String,
        /// Why the request failed.
        #[source]
        source: Box<FetchError>,
    },
}

impl RegistryError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, RegistryError::Fetch { source, .. } if source.is_transient())
    }
}

/// Converts a failed request to the caller's error type.
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
