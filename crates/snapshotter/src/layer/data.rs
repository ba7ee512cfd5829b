//! The on-disk part of a layer: its files, the places of its tar in them, and the marks of its
//! spans and headers.
//!
//! Reads require that the caller knows that the bytes are present ([`Data::needs`]) or has them in
//! memory ([`Held`]). Writes take bytes from a verified span. Nothing here knows the network or
//! waiting reads. Errors are reported to [`Trouble`].

use std::{fmt, io};

use soci_oci::Digest;

use super::{Context, ReadError, Subject, trouble::Trouble};
use crate::{
    cpu::Cpu,
    metrics::{self, LayerSeries},
    store::{LayerFiles, ZtocFile},
    sync::{Arc, Mutex, atomic::AtomicUsize},
};

mod disk;
mod entries;
mod headers;
mod read;
mod readers;
mod write;

pub use entries::Entries;
pub(super) use read::{Held, Needs};

use headers::Headers;

/// The on-disk part of a layer.
pub(super) struct Data {
    pub(super) files: LayerFiles,
    /// The first image that named the layer. Used in messages.
    image: Arc<str>,
    headers: Headers,
    cpu: Arc<Cpu>,
    trouble: Arc<Trouble>,
    /// Counts readers that rely on present bytes.
    readers: Arc<AtomicUsize>,
    /// An error of a background write. The next sync reports it.
    lost: Mutex<Option<io::Error>>,
    /// `None` unless metrics are served.
    series: Option<LayerSeries>,
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data")
            .field("number", &self.files.number)
            .field("key", &self.files.key)
            .finish_non_exhaustive()
    }
}

impl Data {
    pub(super) fn new(context: &Context, files: LayerFiles, trouble: Arc<Trouble>) -> Data {
        let known = context.options.trust_headers || files.present.is_complete();
        Data {
            image: Arc::from(files.sources.image()),
            headers: Headers::new(files.places.entries(), known),
            cpu: Arc::clone(&context.cpu),
            readers: Arc::default(),
            lost: Mutex::default(),
            series: metrics::global().operations.layer(&files.key.layer),
            files,
            trouble,
        }
    }

    /// Digest of the compressed layer.
    pub(super) fn digest(&self) -> &Digest {
        &self.files.key.layer
    }

    /// The image name for messages.
    pub(super) fn image(&self) -> Arc<str> {
        Arc::clone(&self.image)
    }

    /// Counts something in the metrics of the layer.
    pub(super) fn count(&self, count: impl FnOnce(&LayerSeries)) {
        if let Some(series) = &self.series {
            count(series);
        }
    }

    /// `None` if the layer was downloaded whole.
    pub(super) fn ztoc(&self) -> Option<&ZtocFile> {
        self.files.ztoc.as_ref()
    }

    /// The subject of an error.
    pub(super) fn subject(&self, span: Option<u32>) -> Arc<Subject> {
        Arc::new(Subject {
            image: self.image(),
            layer: *self.digest(),
            span,
        })
    }

    /// Creates and reports an error of reading or writing the files.
    pub(super) fn store_error(&self, source: io::Error) -> ReadError {
        let error = ReadError::Store {
            subject: self.subject(None),
            source: Arc::new(source),
        };
        self.trouble.note(&error);
        error
    }

    /// The number of spans in the layer.
    pub(super) fn span_count(&self) -> u32 {
        u32::try_from(self.files.present.len()).unwrap_or(u32::MAX)
    }

    /// Whether every span is stored.
    pub(super) fn has_all(&self) -> bool {
        self.files.present.count() == self.files.present.len()
    }
}
