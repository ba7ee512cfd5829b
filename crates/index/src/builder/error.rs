//! Why a layer has no zTOC, or a manifest no index.

use std::io;

use soci_oci::Digest;
use soci_oci::media_type;
use soci_store::StoreError;

use crate::artifacts::ArtifactsError;

/// Why building the zTOC of a layer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// An entry in the manifest's layers is not a layer.
    #[error("not a layer mediaType: {digest} is {media_type:?}")]
    NoLayer {
        /// The digest of the entry.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The media type of the layer is unknown.
    #[error("could not determine layer compression: {0}")]
    Type(#[from] media_type::UnknownLayerType),
    /// The span size is zero, which only block-compressed layers support.
    #[error("layer {0} is not compressed: span size must be > 0")]
    SpanSize(Digest),
    /// The store failed to return the layer or to store the zTOC.
    #[error("layer {layer}")]
    Store {
        /// The layer.
        layer: Digest,
        /// The store's error.
        source: Box<StoreError>,
    },
    /// No zTOC can be built for the layer.
    #[error("layer {layer}")]
    Build {
        /// The layer.
        layer: Digest,
        /// The reason.
        source: soci_ztoc::BuildError,
    },
    /// The zTOC cannot be encoded.
    #[error("layer {layer}: write ztoc")]
    Encode {
        /// The layer.
        layer: Digest,
        /// The reason.
        source: soci_ztoc::EncodeError,
    },
    /// The temporary file of the zTOC cannot be written.
    #[error("layer {layer}: write ztoc to a temporary file")]
    Temporary {
        /// The layer.
        layer: Digest,
        /// The reason.
        source: io::Error,
    },
    /// The zTOC was stored but cannot be recorded.
    #[error("layer {layer}")]
    Records {
        /// The layer.
        layer: Digest,
        /// The reason.
        source: Box<ArtifactsError>,
    },
    /// Another layer failed first, or the caller canceled the build.
    #[error("layer {0}: given up")]
    Stopped(Digest),
}

/// Why a manifest has no index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No layer qualifies for a zTOC.
    #[error("no ztocs created, all layers either skipped or produced errors")]
    Empty,
    /// Building the zTOCs of some layers failed.
    #[error("errors encountered while building soci layers; {}", joined(.0))]
    Layers(Vec<LayerError>),
    /// No layer has a zTOC. These layers were rejected because of their content.
    #[error("errors encountered while building soci layers; {}", joined(.0))]
    Refused(Vec<LayerError>),
    /// A prefetch artifact cannot be stored.
    #[error("prefetch artifact of layer {layer}")]
    Prefetch {
        /// The layer.
        layer: Digest,
        /// The store's error.
        source: Box<StoreError>,
    },
    /// A prefetch artifact cannot be recorded.
    #[error(transparent)]
    Records(#[from] ArtifactsError),
    /// A thread panicked.
    #[error("a thread that builds ztocs ended without a result")]
    Lost,
    /// No thread could be started.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

fn joined(errors: &[LayerError]) -> String {
    let texts: Vec<String> = errors.iter().map(|error| explain(error)).collect();
    texts.join("; ")
}

/// Formats an error and its causes in one line. A cause that is already part of its error's text is
/// not repeated.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}
