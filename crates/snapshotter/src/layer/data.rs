//! What a layer has on the disk: its files, the places of its tar in them, the marks of its spans and of its headers.
//!
//! Bytes are read that the caller knows to be there ([`Data::needs`]) or holds ([`Held`]); bytes are written that
//! came out of a verified span. Nothing here knows the network, or who waits: what is missing is the caller's affair.
//! What fails is noted as the layer's trouble.

use std::{fmt, io};

use soci_oci::Digest;

use super::{Context, ReadError, Subject, trouble::Trouble};
use crate::{
    cpu::Cpu,
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

/// The disk's part of a layer.
pub(super) struct Data {
    pub(super) files: LayerFiles,
    /// The first image that named the layer: for messages.
    image: Arc<str>,
    headers: Headers,
    cpu: Arc<Cpu>,
    trouble: Arc<Trouble>,
    /// Who reads what it was told is there.
    readers: Arc<AtomicUsize>,
    /// The disk did not take what was written: the next sync says so.
    lost: Mutex<Option<io::Error>>,
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
            files,
            trouble,
        }
    }

    /// Digest of the compressed layer.
    pub(super) fn digest(&self) -> &Digest {
        &self.files.key.layer
    }

    /// The image that messages name.
    pub(super) fn image(&self) -> Arc<str> {
        Arc::clone(&self.image)
    }

    /// None if the layer was pulled whole.
    pub(super) fn ztoc(&self) -> Option<&ZtocFile> {
        self.files.ztoc.as_ref()
    }

    /// What an error is about.
    pub(super) fn subject(&self, span: Option<u32>) -> Arc<Subject> {
        Arc::new(Subject {
            image: self.image(),
            layer: *self.digest(),
            span,
        })
    }

    /// The files cannot be read or written.
    pub(super) fn store_error(&self, source: io::Error) -> ReadError {
        let error = ReadError::Store {
            subject: self.subject(None),
            source: Arc::new(source),
        };
        self.trouble.note(&error);
        error
    }

    /// How many spans the layer has.
    pub(super) fn span_count(&self) -> u32 {
        u32::try_from(self.files.present.len()).unwrap_or(u32::MAX)
    }

    /// Whether every span is there.
    pub(super) fn has_all(&self) -> bool {
        self.files.present.count() == self.files.present.len()
    }
}
