//! Copies an index and everything that it refers to, children before parents.
//!
//! The documents that the registry lacks are found first ([`Traversal`]). Each blob is copied once,
//! all blobs before the documents. An upload slot is held while a blob or document is queried or
//! sent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join;
use futures_util::{TryStreamExt as _, stream};
use soci_oci::manifest::{self, Manifest};
use soci_oci::reference::ImageRef;
use soci_oci::{Descriptor, Digest};
use soci_registry::{Listing, MAX_MANIFEST, Registry, Sent, Uploaded};
use soci_store::{
    ContentStore, Document, FromStore, Limits, ReachableError, StoreError, Traversal,
};
use tokio::sync::Semaphore;

use super::{CopiedBlob, GraphError, Note, Outcome, PushObserver};
use crate::model::LAYER_DIGEST;

/// The remedy if a part of the index is missing.
const CREATE_AGAIN: &str = "`soci create` makes it again";
/// The remedy if a part of the image is missing.
const PUSH_IMAGE: &str = "push the image first, or pull all of it";

pub(super) struct Graph<'a> {
    registry: &'a Registry,
    image: &'a ImageRef,
    store: &'a Arc<dyn ContentStore>,
    observer: &'a Arc<dyn PushObserver>,
    places: Semaphore,
    /// Number of futures that wait for a place. More would only take memory.
    at_once: usize,
    copied: Mutex<Vec<CopiedBlob>>,
}

/// The parts of an image that the registry may lack.
#[derive(Default)]
struct Image {
    /// The manifests and indexes that it lacks.
    documents: Vec<(Descriptor, Bytes)>,
    /// The length of the longest path from the subject to each document.
    depths: HashMap<Digest, usize>,
    blobs: Vec<Descriptor>,
}

/// Whose part a blob or document is.
#[derive(Clone, Copy)]
enum Of {
    Index,
    Image,
}

impl<'a> Graph<'a> {
    pub(super) fn new(
        registry: &'a Registry,
        image: &'a ImageRef,
        store: &'a Arc<dyn ContentStore>,
        observer: &'a Arc<dyn PushObserver>,
        uploads: usize,
    ) -> Self {
        let at_once = uploads.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            registry,
            image,
            store,
            observer,
            places: Semaphore::new(at_once),
            at_once,
            copied: Mutex::default(),
        }
    }

    /// Copies the index. An index that is present is skipped only if it is also `listed` as a
    /// referrer.
    pub(super) async fn push_index(
        self,
        index: &Descriptor,
        listed: bool,
    ) -> Result<(Option<Listing>, Vec<CopiedBlob>), GraphError> {
        let there = self
            .registry
            .has_manifest(self.image, &index.digest)
            .await?;
        let listing = if there && listed {
            self.skipped(index);
            self.registry.listing(self.image)
        } else {
            Some(self.copy_index(index).await?)
        };
        let copied = self.copied.into_inner();
        Ok((listing, copied.unwrap_or_else(PoisonError::into_inner)))
    }

    async fn copy_index(&self, index: &Descriptor) -> Result<Listing, GraphError> {
        let bytes = self.read(index, "index", Of::Index).await?;
        let manifest: Manifest = parse(index, &bytes)?;
        self.observer.note(&Note::Pushing(index.digest));
        let parts = std::iter::once(&manifest.config).chain(manifest.layers());
        let parts: Vec<Descriptor> = parts.cloned().collect();
        // The registry is asked about the image first, but the zTOCs do not wait for its answers.
        let mut copied = HashSet::new();
        let copies = self.copy_blobs(&parts, Of::Index, &mut copied);
        match &manifest.subject {
            Some(subject) => {
                let image = self.missing_image(index.digest, subject);
                let (image, ()) = try_join(image, copies).await?;
                self.copy_image(image, copied).await?;
            }
            None => copies.await?,
        }
        let place = self.place().await;
        let listing = self
            .registry
            .push_referrer(self.image, &index.media_type, bytes)
            .await?;
        drop(place);
        self.pushed(index, Outcome::Pushed);
        Ok(listing)
    }

    /// Reads the documents that the registry lacks. What the registry has is complete.
    async fn missing_image(
        &self,
        index: Digest,
        subject: &Descriptor,
    ) -> Result<Image, GraphError> {
        let mut image = Image::default();
        let mut traversal = Traversal::new(index, subject, Limits::KEPT);
        while let Some(document) = traversal.next_document() {
            let Document { descriptor, .. } = &document;
            let place = self.place().await;
            let digest = &descriptor.digest;
            if self.registry.has_manifest(self.image, digest).await? {
                self.skipped(descriptor);
                continue;
            }
            drop(place);
            let bytes = self.read(descriptor, "image manifest", Of::Image).await?;
            let blobs = traversal.enter(&document, &bytes)?;
            self.observer.note(&Note::Pushing(descriptor.digest));
            image.blobs.extend(blobs);
            image.documents.push((document.descriptor, bytes));
        }
        image.depths = traversal.depths();
        Ok(image)
    }

    /// Copies the parts of an image, except the blobs in `copied`.
    async fn copy_image(
        &self,
        image: Image,
        mut copied: HashSet<Digest>,
    ) -> Result<(), GraphError> {
        let copies = self.copy_blobs(&image.blobs, Of::Image, &mut copied);
        copies.await?;
        let mut levels: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for (document, bytes) in &image.documents {
            let level = levels.entry(image.depths[&document.digest]).or_default();
            level.push(Ok((document, bytes)));
        }
        for level in levels.into_values().rev() {
            stream::iter(level)
                .try_for_each_concurrent(self.at_once, |(document, bytes)| {
                    self.copy_document(document, bytes)
                })
                .await?;
        }
        Ok(())
    }

    /// Copies each blob once, and adds it to `copied`.
    async fn copy_blobs(
        &self,
        blobs: &[Descriptor],
        of: Of,
        copied: &mut HashSet<Digest>,
    ) -> Result<(), GraphError> {
        let new = blobs.iter().filter(|blob| copied.insert(blob.digest));
        stream::iter(new.map(Ok))
            .try_for_each_concurrent(self.at_once, |blob| self.copy_blob(blob, of))
            .await
    }

    async fn copy_document(&self, document: &Descriptor, bytes: &Bytes) -> Result<(), GraphError> {
        let place = self.place().await;
        let object = document.digest.to_string();
        self.registry
            .push_manifest(self.image, &object, &document.media_type, bytes.clone())
            .await?;
        drop(place);
        self.pushed(document, Outcome::Pushed);
        Ok(())
    }

    async fn copy_blob(&self, blob: &Descriptor, of: Of) -> Result<(), GraphError> {
        let place = self.place().await;
        if self.registry.has_blob(self.image, &blob.digest).await? {
            self.skipped(blob);
            return Ok(());
        }
        if self.store.size(&blob.digest).await?.is_none() {
            if !blob.urls.is_empty() {
                // The layer is stored elsewhere and does not have to be in the registry.
                return Ok(());
            }
            let what = match of {
                Of::Index => "zTOC",
                Of::Image => "blob",
            };
            return Err(of.missing(what, blob.digest));
        }
        self.observer.note(&Note::Pushing(blob.digest));
        let others = self.known_repositories(blob).await?;
        let source = FromStore {
            store: Arc::clone(self.store),
            blob: blob.clone(),
        };
        let observer = Arc::clone(self.observer);
        let sent: Sent = Arc::new(move |bytes| observer.sent(bytes));
        let uploaded = self
            .registry
            .send_blob(self.image, blob, &others, &source, sent);
        let outcome = match uploaded.await? {
            Uploaded::AlreadyThere => Outcome::Skipped,
            Uploaded::Mounted => Outcome::Mounted,
            Uploaded::Sent => Outcome::Pushed,
        };
        drop(place);
        self.pushed(blob, outcome);
        Ok(())
    }

    /// Returns repositories of the same registry that have the blob. For a zTOC, also those that
    /// have its layer, because they may have an index too.
    async fn known_repositories(&self, blob: &Descriptor) -> Result<Vec<String>, GraphError> {
        let host = self.image.host();
        let mut known = self.store.repositories(&blob.digest, host).await?;
        let layer = blob.annotation(LAYER_DIGEST);
        if let Some(layer) = layer.and_then(|layer| layer.parse().ok()) {
            known.extend(self.store.repositories(&layer, host).await?);
        }
        known.dedup();
        Ok(known)
    }

    async fn read(
        &self,
        document: &Descriptor,
        what: &'static str,
        of: Of,
    ) -> Result<Bytes, GraphError> {
        match self.store.read(&document.digest, MAX_MANIFEST).await {
            Err(StoreError::NotFound(_)) => Err(of.missing(what, document.digest)),
            read => Ok(read?),
        }
    }

    async fn place(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // The semaphore is never closed. If it were, there would be no limit.
        self.places.acquire().await.ok()
    }

    fn skipped(&self, blob: &Descriptor) {
        self.observer.note(&Note::Skipped(blob.digest));
        self.keep(blob, Outcome::Skipped);
    }

    fn pushed(&self, blob: &Descriptor, outcome: Outcome) {
        self.observer.note(&Note::Pushed(blob.digest));
        self.keep(blob, outcome);
    }

    fn keep(&self, blob: &Descriptor, outcome: Outcome) {
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        copied.push(CopiedBlob {
            blob: blob.clone(),
            outcome,
        });
    }
}

impl Of {
    fn missing(self, what: &'static str, digest: Digest) -> GraphError {
        let remedy = match self {
            Self::Index => CREATE_AGAIN,
            Self::Image => PUSH_IMAGE,
        };
        GraphError::Missing {
            what,
            digest,
            remedy,
        }
    }
}

impl From<ReachableError> for GraphError {
    fn from(error: ReachableError) -> Self {
        match error {
            ReachableError::Store(error) => Self::Store(error),
            ReachableError::Document { digest, source } => Self::Document { digest, source },
        }
    }
}

fn parse(index: &Descriptor, bytes: &[u8]) -> Result<Manifest, GraphError> {
    manifest::parse(bytes, &index.media_type).map_err(|source| GraphError::Document {
        digest: index.digest,
        source: Box::new(source),
    })
}
