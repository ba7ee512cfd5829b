//! Why a layer could not be downloaded whole.

use std::io;

use soci_oci::{Digest, digest::DigestMismatch};
use soci_ztoc::{LayerError, TarError};

use crate::{cpu::Lost, fetch::DemandError, places::PlaceError, store::StoreError};

/// Why a layer could not be downloaded whole.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The download failed.
    #[error("cannot download layer {layer}")]
    Fetch {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: Box<DemandError>,
    },
    /// The downloaded bytes have the wrong digest.
    #[error("layer {layer} has the wrong digest")]
    Layer {
        /// The layer.
        layer: Box<Digest>,
        /// The mismatch.
        #[source]
        source: Box<DigestMismatch>,
    },
    /// The tar does not match the diff-ID in the image configuration.
    #[error("the tar in layer {layer} does not match its diff-ID")]
    DiffId {
        /// The layer.
        layer: Box<Digest>,
        /// The mismatch.
        #[source]
        source: Box<DigestMismatch>,
    },
    /// The layer cannot be decompressed.
    #[error("cannot decompress layer {layer}")]
    Decompress {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: LayerError,
    },
    /// The content is not a tar, or one that unpacking rejects too.
    #[error("cannot use the tar in layer {layer}")]
    Tar {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: TarError,
    },
    /// The tar has too many entries, or its files cannot be placed in `data`.
    #[error("cannot place the files of layer {layer}")]
    Places {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: PlaceError,
    },
    /// The files cannot be written.
    #[error("cannot store layer {layer}")]
    Write {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program of `decompress_streams` failed.
    #[error("{program} cannot decompress layer {layer}: {reason}")]
    Program {
        /// The layer.
        layer: Box<Digest>,
        /// The path of the program.
        program: String,
        /// How it ended, and what it wrote to its standard error.
        reason: String,
    },
    /// The files cannot be created or finished.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl StreamError {
    /// Whether other bytes than those of the layer may have arrived.
    pub(super) fn is_about_bytes(&self) -> bool {
        matches!(
            self,
            StreamError::Layer { .. } | StreamError::Decompress { .. } | StreamError::Tar { .. }
        )
    }

    /// Whether a program that wrote another tar, or none, can be the cause.
    pub(super) fn may_be_of_a_program(&self) -> bool {
        matches!(
            self,
            StreamError::Program { .. }
                | StreamError::DiffId { .. }
                | StreamError::Tar { .. }
                | StreamError::Places { .. }
        )
    }
}
