//! Why a layer gets no zTOC though it should, and a manifest no index.

use std::io;

use soci_oci::Digest;
use soci_oci::media_type;
use soci_oci::store::StoreError;

use crate::artifacts::ArtifactsError;

/// Why a layer gets no zTOC though it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// A member of the manifest's layers that is no layer.
    #[error("not a layer mediaType: {digest} is {media_type:?}")]
    NoLayer {
        /// The member.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// A layer of unknown kind.
    #[error("could not determine layer compression: {0}")]
    Type(#[from] media_type::UnknownLayerType),
    /// A span size of zero, which only compressed layers can have: they have blocks.
    #[error("layer {0} is not compressed: span size must be > 0")]
    SpanSize(Digest),
    /// The store does not give the layer or take the zTOC.
    #[error("layer {layer}")]
    Store {
        /// The layer.
        layer: Digest,
        /// What the store says.
        source: Box<StoreError>,
    },
    /// Not a layer that can have a zTOC.
    #[error("layer {layer}")]
    Build {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        source: soci_ztoc::BuildError,
    },
    /// The zTOC cannot be written.
    #[error("layer {layer}: write ztoc")]
    Encode {
        /// The layer.
        layer: Digest,
        /// Why.
        source: soci_ztoc::EncodeError,
    },
    /// The temporary file of a zTOC cannot be written.
    #[error("layer {layer}: write ztoc to a temporary file")]
    Temporary {
        /// The layer.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// The zTOC is stored, and cannot be recorded.
    #[error("layer {layer}")]
    Records {
        /// The layer.
        layer: Digest,
        /// Why.
        source: Box<ArtifactsError>,
    },
    /// Another layer failed first, or the caller went away.
    #[error("layer {0}: given up")]
    Stopped(Digest),
}

/// Why a manifest gets no index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No layer qualified.
    #[error("no ztocs created, all layers either skipped or produced errors")]
    Empty,
    /// Some layers should have a zTOC and cannot.
    #[error("errors encountered while building soci layers; {}", joined(.0))]
    Layers(Vec<LayerError>),
    /// No layer has a zTOC, and these because of what is in them.
    #[error("errors encountered while building soci layers; {}", joined(.0))]
    Refused(Vec<LayerError>),
    /// A prefetch artifact cannot be stored.
    #[error("prefetch artifact of layer {layer}")]
    Prefetch {
        /// The layer.
        layer: Digest,
        /// What the store says.
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

/// An error and its causes in one line; a cause that its error repeats is told once.
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
