//! Copies an index and everything that it refers to, children before parents.
//!
//! Each digest is copied once; concurrent requests for it wait for the first. An upload slot is
//! held while a blob or manifest is queried or sent, but never while its children are copied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, try_join_all};
use soci_oci::manifest::{self, ImageIndex, Manifest};
use soci_oci::reference::ImageRef;
use soci_oci::{Descriptor, Digest, media_type};
use soci_registry::{Listing, MAX_MANIFEST, Registry, Sent, Uploaded};
use soci_store::FromStore;
use soci_store::{ContentStore, DocumentBudget, MAX_DEPTH, StoreError};
use tokio::sync::{OnceCell, Semaphore};

use super::{CopiedBlob, GraphError, Note, Outcome, PushObserver};
use crate::model::LAYER_DIGEST;

/// The remedy if a part of the index is missing.
const CREATE_AGAIN: &str = "`soci create` makes it again";
/// The remedy if a part of the image is missing.
const PUSH_IMAGE: &str = "push the image first, or pull all of it";

type Done = Arc<OnceCell<()>>;

pub(super) struct Graph<'a> {
    registry: &'a Registry,
    image: &'a ImageRef,
    store: &'a Arc<dyn ContentStore>,
    observer: &'a Arc<dyn PushObserver>,
    places: Semaphore,
    /// Parents stay in memory while they wait for their children.
    budget: Mutex<DocumentBudget>,
    begun: Mutex<HashMap<Digest, Done>>,
    copied: Mutex<Vec<CopiedBlob>>,
}

/// A blob or manifest to copy, and its role in the index.
#[derive(Clone)]
struct Item {
    blob: Descriptor,
    of_index: bool,
    /// Number of enclosing indexes.
    depth: usize,
}

impl<'a> Graph<'a> {
    pub(super) fn new(
        registry: &'a Registry,
        image: &'a ImageRef,
        store: &'a Arc<dyn ContentStore>,
        observer: &'a Arc<dyn PushObserver>,
        uploads: usize,
        index: &Digest,
    ) -> Self {
        Self {
            registry,
            image,
            store,
            observer,
            places: Semaphore::new(uploads.clamp(1, Semaphore::MAX_PERMITS)),
            budget: Mutex::new(DocumentBudget::new(*index)),
            begun: Mutex::default(),
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
        let root = Item {
            blob: index.clone(),
            of_index: true,
            depth: 0,
        };
        let bytes = self.read(&root, "index").await?;
        let manifest: Manifest = parse(index, &bytes)?;
        self.observer.note(&Note::Pushing(index.digest));
        let subject = manifest.subject.as_ref().map(|it| of_image(it, 0));
        let parts = std::iter::once(&manifest.config).chain(manifest.layers());
        let parts = parts.map(|part| Item {
            blob: part.clone(),
            of_index: true,
            depth: 0,
        });
        self.copy_all(subject.into_iter().chain(parts)).await?;
        let place = self.place().await;
        let listing = self
            .registry
            .push_referrer(self.image, &index.media_type, bytes)
            .await?;
        drop(place);
        self.pushed(index, Outcome::Pushed);
        Ok(listing)
    }

    async fn copy_all(&self, items: impl Iterator<Item = Item>) -> Result<(), GraphError> {
        try_join_all(items.map(|item| self.copy(item)))
            .await
            .map(drop)
    }

    /// Copies an item unless it was copied or started before.
    fn copy(&self, item: Item) -> BoxFuture<'_, Result<(), GraphError>> {
        Box::pin(async move {
            let done = {
                let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(begun.entry(item.blob.digest).or_default())
            };
            let copied = done.get_or_try_init(|| async {
                if is_document(&item.blob) {
                    self.copy_manifest(&item).await
                } else {
                    self.copy_blob(&item).await
                }
            });
            copied.await.map(drop)
        })
    }

    /// Copies a manifest or index of the image, with its content.
    async fn copy_manifest(&self, item: &Item) -> Result<(), GraphError> {
        let blob = &item.blob;
        if item.depth > MAX_DEPTH {
            return Err(StoreError::TooDeep(blob.digest).into());
        }
        let place = self.place().await;
        if self.registry.has_manifest(self.image, &blob.digest).await? {
            self.skipped(blob);
            return Ok(());
        }
        let bytes = self.read(item, "image manifest").await?;
        drop(place);
        self.observer.note(&Note::Pushing(blob.digest));
        let part = |it| of_image(it, item.depth + 1);
        let parts: Vec<Item> = if media_type::is_index(&blob.media_type) {
            let index: ImageIndex = parse(blob, &bytes)?;
            index.manifests().iter().map(part).collect()
        } else {
            let manifest: Manifest = parse(blob, &bytes)?;
            let config = std::iter::once(&manifest.config);
            config.chain(manifest.layers()).map(part).collect()
        };
        self.copy_all(parts.into_iter()).await?;
        let place = self.place().await;
        let object = blob.digest.to_string();
        self.registry
            .push_manifest(self.image, &object, &blob.media_type, bytes)
            .await?;
        drop(place);
        self.pushed(blob, Outcome::Pushed);
        Ok(())
    }

    async fn copy_blob(&self, item: &Item) -> Result<(), GraphError> {
        let blob = &item.blob;
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
            return Err(item.missing("blob"));
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

    async fn read(&self, item: &Item, what: &'static str) -> Result<Bytes, GraphError> {
        match self.store.read(&item.blob.digest, MAX_MANIFEST).await {
            Err(StoreError::NotFound(_)) => Err(item.missing(what)),
            read => {
                let bytes = read?;
                let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
                budget.take(bytes.len() as u64)?;
                Ok(bytes)
            }
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

impl Item {
    fn missing(&self, what: &'static str) -> GraphError {
        GraphError::Missing {
            what: if self.of_index && what == "blob" {
                "zTOC"
            } else {
                what
            },
            digest: self.blob.digest,
            remedy: if self.of_index {
                CREATE_AGAIN
            } else {
                PUSH_IMAGE
            },
        }
    }
}

fn of_image(blob: &Descriptor, depth: usize) -> Item {
    Item {
        blob: blob.clone(),
        of_index: false,
        depth,
    }
}

fn is_document(blob: &Descriptor) -> bool {
    media_type::is_manifest(&blob.media_type) || media_type::is_index(&blob.media_type)
}

fn parse<T: manifest::Kind>(blob: &Descriptor, bytes: &[u8]) -> Result<T, GraphError> {
    manifest::parse(bytes, &blob.media_type).map_err(|source| GraphError::Document {
        digest: blob.digest,
        source: Box::new(source),
    })
}
