//! The outcome of each layer as values, from which messages, records, JSON and exit codes are
//! derived.

use std::fmt;
use std::time::Duration;

use soci_oci::{Descriptor, Digest};
use soci_ztoc::TarError;

/// The outcome for one layer of a manifest.
#[derive(Debug, Clone)]
pub struct LayerOutcome {
    /// The layer's descriptor in the manifest.
    pub layer: Descriptor,
    /// The outcome.
    pub outcome: Outcome,
    /// How long the layer took. Zero if there was nothing to do.
    pub time: Duration,
}

/// See [`LayerOutcome`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The entry is not a layer but an artifact that layers may contain.
    Ignored,
    /// The layer has no zTOC.
    Skipped(Skip),
    /// The zTOC was built. This is its descriptor in the index.
    Built(Descriptor),
    /// An existing zTOC was reused.
    Reused(Descriptor),
}

/// Why a layer has no zTOC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// The layer is too small.
    Small {
        /// The minimum size in bytes.
        limit: u64,
    },
    /// The compression is not supported.
    Compression(&'static str),
    /// The archive has an entry that zTOCs cannot describe.
    Entry(TarError),
    /// The layer is non-distributable, and the store does not have it.
    Elsewhere,
}

impl LayerOutcome {
    pub(super) fn new(layer: &Descriptor, outcome: Outcome) -> Self {
        Self {
            layer: layer.clone(),
            outcome,
            time: Duration::ZERO,
        }
    }

    /// The descriptor of the zTOC, if there is one.
    #[must_use]
    pub fn ztoc(&self) -> Option<&Descriptor> {
        match &self.outcome {
            Outcome::Built(ztoc) | Outcome::Reused(ztoc) => Some(ztoc),
            Outcome::Ignored | Outcome::Skipped(_) => None,
        }
    }

    /// Whether the layer is large enough for a zTOC but has none.
    #[must_use]
    pub fn is_left_out(&self) -> bool {
        match &self.outcome {
            Outcome::Skipped(Skip::Compression(_) | Skip::Entry(_) | Skip::Elsewhere) => true,
            Outcome::Skipped(Skip::Small { .. })
            | Outcome::Ignored
            | Outcome::Built(_)
            | Outcome::Reused(_) => false,
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Small { limit } => write!(f, "size is less than min-layer-size {limit}"),
            Self::Compression(name) => write!(
                f,
                "is compressed in an unsupported format. expect: [tar, gzip, unknown] but got \"{name}\""
            ),
            Self::Entry(error) => write!(f, "cannot have a ztoc: {error}"),
            Self::Elsewhere => f.write_str("is non-distributable and not stored with the image"),
        }
    }
}

/// Formats the reference's line about the layer. Empty if the layer is ignored.
impl fmt::Display for LayerOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Descriptor {
            digest,
            media_type,
            size,
            ..
        } = &self.layer;
        match &self.outcome {
            Outcome::Ignored => Ok(()),
            Outcome::Built(ztoc) => write!(f, "layer {digest} -> ztoc {}", ztoc.digest),
            Outcome::Reused(ztoc) => {
                let ztoc = ztoc.digest;
                write!(f, "layer {digest} -> ztoc {ztoc} (already exists)")
            }
            Outcome::Skipped(skip) => {
                write!(f, "ztoc skipped - layer {digest} ({media_type}) ")?;
                match skip {
                    Skip::Small { limit } => {
                        write!(f, "size {size} is less than min-layer-size {limit}")
                    }
                    other => other.fmt(f),
                }
            }
        }
    }
}

/// A message about an index under construction. [`Note::Layer`] and [`Note::Prefetch`] format as
/// the reference's lines on standard output, the others as warnings.
#[derive(Debug, Clone)]
pub enum Note {
    /// The outcome for a layer.
    Layer(Box<LayerOutcome>),
    /// The zTOC matches the reference's, but cannot be served.
    Warning {
        /// The layer.
        layer: Digest,
        /// The reason.
        warning: soci_ztoc::Warning,
    },
    /// The configuration of a manifest has another number of diff-IDs than there are layers.
    DiffIds {
        /// The manifest.
        manifest: Digest,
        /// The number of diff-IDs.
        diff_ids: usize,
        /// The number of layers.
        layers: usize,
    },
    /// An existing zTOC was not reused, so a new one is built.
    NotReused {
        /// The layer.
        layer: Digest,
        /// The reason.
        reason: String,
    },
    /// A prefetch artifact was created for a layer.
    Prefetch {
        /// The layer.
        layer: Digest,
        /// The digest of the artifact.
        artifact: Digest,
    },
    /// Files of a recorded start are in no layer with a zTOC.
    NotInLayers {
        /// The recorded files of layers that have changed.
        files: usize,
        /// How many of them were not found.
        lost: usize,
    },
    /// No layer with a zTOC contains this file to prefetch.
    NotFound {
        /// Its normalized path.
        path: String,
    },
}

impl Note {
    /// Whether the message belongs on standard error.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        match self {
            Self::Layer(_) | Self::Prefetch { .. } => false,
            Self::DiffIds { .. }
            | Self::Warning { .. }
            | Self::NotReused { .. }
            | Self::NotInLayers { .. }
            | Self::NotFound { .. } => true,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(outcome) => outcome.fmt(f),
            Self::DiffIds {
                manifest,
                diff_ids,
                layers,
            } => write!(
                f,
                "manifest {manifest}: its config has {diff_ids} diff-IDs for {layers} layers, which containerd refuses"
            ),
            Self::Warning { layer, warning } => write!(f, "layer {layer}: {warning}"),
            Self::NotReused { layer, reason } => {
                write!(f, "layer {layer}: its ztoc is built again: {reason}")
            }
            Self::Prefetch { layer, artifact } => {
                write!(f, "Created prefetch artifact for layer {layer}: {artifact}")
            }
            Self::NotInLayers { files, lost } => write!(
                f,
                "{lost} of {files} recorded files are not found in any layer; record a start of this image to have them downloaded first"
            ),
            Self::NotFound { path } => {
                write!(f, "prefetch file {path} not found in any layer")
            }
        }
    }
}

/// The progress of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Work has started: first the search for an existing zTOC, then reading the layer.
    Begun,
    /// The zTOC is complete and is being stored.
    Storing,
    /// The layer is finished.
    Done,
}

/// Receives progress and messages from several threads. All methods do nothing by default.
///
/// `()` is an observer that ignores everything.
pub trait Observer: Send + Sync {
    /// Announces the number of layer bytes to read.
    fn planned(&self, _bytes: u64) {}
    /// Reports that a layer has reached a stage.
    fn stage(&self, _layer: &Descriptor, _stage: Stage) {}
    /// Reports the bytes of a layer that were read since the last call.
    fn read(&self, _layer: &Descriptor, _bytes: u64) {}
    /// Reports a message. Messages arrive in the order of the layers.
    fn note(&self, _note: &Note) {}
}

impl Observer for () {}
