//! Progress and warnings of a conversion.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use soci_oci::Descriptor;

use crate::builder::{Note, Observer, Stage};

/// Most warnings in a report. The observer receives all of them.
const MAX_WARNINGS: usize = 1000;

/// What moves bytes, besides indexing, which [`Observer`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The image is downloaded to disk.
    Fetching,
    /// Blobs without changes are copied to the destination.
    Copying,
    /// The archive is written.
    Writing,
}

impl Phase {
    /// The name of the phase in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Copying => "copying",
            Self::Writing => "writing",
        }
    }
}

/// Receives the progress of a conversion from several threads. All methods do nothing by default.
///
/// `()` is an observer that ignores everything.
pub trait ConversionObserver: Observer {
    /// Announces a phase and the number of bytes to move, if it is known.
    fn phase(&self, _phase: Phase, _bytes: Option<u64>) {}
    /// Reports the bytes that were moved in the current phase since the last call.
    fn moved(&self, _bytes: u64) {}
}

impl ConversionObserver for () {}

/// Collects warnings for the report, and passes everything on.
pub(super) struct Recorder {
    observer: Arc<dyn ConversionObserver>,
    warnings: Mutex<Vec<Note>>,
}

impl Recorder {
    pub(super) fn new(observer: Arc<dyn ConversionObserver>) -> Self {
        Self {
            observer,
            warnings: Mutex::default(),
        }
    }

    pub(super) fn warnings(&self) -> Vec<Note> {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *warnings)
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

impl Observer for Recorder {
    fn planned(&self, bytes: u64) {
        self.observer.planned(bytes);
    }

    fn stage(&self, layer: &Descriptor, stage: Stage) {
        self.observer.stage(layer, stage);
    }

    fn read(&self, layer: &Descriptor, bytes: u64) {
        self.observer.read(layer, bytes);
    }

    fn note(&self, note: &Note) {
        if note.is_warning() {
            let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
            if warnings.len() < MAX_WARNINGS {
                warnings.push(note.clone());
            }
        }
        self.observer.note(note);
    }
}

impl ConversionObserver for Recorder {
    fn phase(&self, phase: Phase, bytes: Option<u64>) {
        self.observer.phase(phase, bytes);
    }

    fn moved(&self, bytes: u64) {
        self.observer.moved(bytes);
    }
}
