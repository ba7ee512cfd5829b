//! What became of each layer, as values: lines, records, JSON and exit codes are made of them.

use std::fmt;
use std::time::Duration;

use soci_oci::{Descriptor, Digest};
use soci_ztoc::TarError;

/// What became of one layer of a manifest.
#[derive(Debug, Clone)]
pub struct LayerOutcome {
    /// The layer, as the manifest describes it.
    pub layer: Descriptor,
    /// What became of it.
    pub outcome: Outcome,
    /// How long the work on it took; zero where there was none.
    pub time: Duration,
}

/// See [`LayerOutcome`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// No layer but an artifact that may stand among them.
    Ignored,
    /// It has no zTOC.
    Skipped(Skip),
    /// Its zTOC was made now; the descriptor as it stands in the index.
    Built(Descriptor),
    /// Its zTOC was there before.
    Reused(Descriptor),
}

/// Why a layer has no zTOC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// Too small to be worth it.
    Small {
        /// The limit in bytes.
        limit: u64,
    },
    /// No zTOC can be made of this compression.
    Compression(&'static str),
    /// Its archive has an entry that no zTOC can describe.
    Entry(TarError),
}

impl LayerOutcome {
    pub(super) fn new(layer: &Descriptor, outcome: Outcome) -> Self {
        Self {
            layer: layer.clone(),
            outcome,
            time: Duration::ZERO,
        }
    }

    /// Its zTOC, if it has one.
    #[must_use]
    pub fn ztoc(&self) -> Option<&Descriptor> {
        match &self.outcome {
            Outcome::Built(ztoc) | Outcome::Reused(ztoc) => Some(ztoc),
            Outcome::Ignored | Outcome::Skipped(_) => None,
        }
    }

    /// Whether the layer is large enough to be worth a zTOC and has none.
    #[must_use]
    pub fn is_left_out(&self) -> bool {
        match &self.outcome {
            Outcome::Skipped(Skip::Compression(_) | Skip::Entry(_)) => true,
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
        }
    }
}

/// The reference's line about the layer; empty for what is ignored.
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

/// Something to tell while an index is made. Displayed, [`Note::Layer`] and [`Note::Prefetch`] are the
/// reference's lines on standard output, the others warnings.
#[derive(Debug, Clone)]
pub enum Note {
    /// What became of a layer.
    Layer(Box<LayerOutcome>),
    /// The zTOC is as the reference's, and will not serve.
    Warning {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        warning: soci_ztoc::Warning,
    },
    /// A zTOC that might have been taken over was not, and the layer is indexed anew.
    NotReused {
        /// The layer.
        layer: Digest,
        /// Why.
        reason: String,
    },
    /// There is a prefetch artifact for a layer now.
    Prefetch {
        /// The layer.
        layer: Digest,
        /// The artifact.
        artifact: Digest,
    },
    /// A file to be prefetched is in no layer that has a zTOC.
    NotFound {
        /// Its cleaned path.
        path: String,
    },
}

impl Note {
    /// Whether this belongs on standard error.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        match self {
            Self::Layer(_) | Self::Prefetch { .. } => false,
            Self::Warning { .. } | Self::NotReused { .. } | Self::NotFound { .. } => true,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(outcome) => outcome.fmt(f),
            Self::Warning { layer, warning } => write!(f, "layer {layer}: {warning}"),
            Self::NotReused { layer, reason } => {
                write!(f, "layer {layer}: its ztoc is built again: {reason}")
            }
            Self::Prefetch { layer, artifact } => {
                write!(f, "Created prefetch artifact for layer {layer}: {artifact}")
            }
            Self::NotFound { path } => {
                write!(f, "prefetch file {path} not found in any layer")
            }
        }
    }
}

/// How far the work on a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is looked for an old zTOC, then the layer is read.
    Begun,
    /// The zTOC is complete, and is being stored.
    Storing,
    /// Nothing is left to do.
    Done,
}

/// Is told what happens, from several threads.
pub trait Observer: Send + Sync {
    /// This many bytes of layers will be read.
    fn planned(&self, bytes: u64);
    /// The work on a layer has come this far.
    fn stage(&self, layer: &Descriptor, stage: Stage);
    /// This many bytes of a layer were read since the last call.
    fn read(&self, layer: &Descriptor, bytes: u64);
    /// Something is to be told; in the order of the layers.
    fn note(&self, note: &Note);
}
