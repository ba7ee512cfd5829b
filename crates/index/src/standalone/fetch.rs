//! Downloads an image into a layout while it is converted.
//!
//! Layers that are indexed are stored while they are read, so each is downloaded once. Everything
//! else follows: layers without a zTOC, configurations, and documents.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use soci_oci::{Descriptor, Digest};
use soci_store::layout::Layout;
use soci_store::registry::{RegistryStore, graph};
use soci_store::{Blob, Content, ContentStore, Labels, Put, Stacked, StoreError, blocking};

use super::Job;
use super::copies::receive;
use super::error::Error;
use super::observer::{ConversionObserver as _, Phase};
use super::stop::{Stop, StopOnDrop, Stoppable};
use crate::builder::Outcome;
use crate::convert::Converted;

/// Converts an image from a registry. Afterwards the layout has all of the new image that is not
/// stored elsewhere, and everything is verified.
pub(super) async fn convert(
    job: &Job,
    from: RegistryStore,
    to: &Layout,
) -> Result<Converted, Error> {
    let root = from.root().await?;
    // A document that is missing must be an error before layers are downloaded.
    let before = graph(&from, &root).await?;
    let mut unverified = HashSet::new();
    for blob in before.blobs.values() {
        if to.size(&blob.digest).await? == Some(blob.size) {
            unverified.insert(blob.digest);
        }
    }
    // Dropped before the caller's folder.
    let stop = StopOnDrop::default();
    let source = Arc::new(Keeper {
        from: from.clone(),
        to: to.clone(),
        stop: stop.flag(),
        state: Mutex::default(),
    });
    let converted = job.convert(source, Arc::new(to.clone()), &root).await?;
    for layer in verified_layers(&converted) {
        unverified.remove(&layer);
    }
    rest(job, from, to, &converted.image, &unverified).await?;
    Ok(converted)
}

/// Downloads what the layout lacks. `unverified` blobs may have been damaged on disk.
async fn rest(
    job: &Job,
    from: RegistryStore,
    to: &Layout,
    image: &Descriptor,
    unverified: &HashSet<Digest>,
) -> Result<(), Error> {
    let from: Arc<dyn ContentStore> = Arc::new(from);
    let both = Stacked {
        upper: Arc::new(to.clone()),
        lower: Arc::clone(&from),
    };
    let after = graph(&both, image).await?;
    for node in after.documents {
        to.put(&node.descriptor, Content::Bytes(node.bytes)).await?;
    }
    let mut missing = Vec::new();
    for blob in after.blobs.into_values() {
        let mut is_there = to.size(&blob.digest).await? == Some(blob.size);
        if is_there && unverified.contains(&blob.digest) {
            let (to, blob) = (to.clone(), blob.clone());
            is_there = blocking(move || to.has(&blob)).await?;
        }
        if !is_there {
            missing.push(blob);
        }
    }
    let bytes = missing.iter().map(|blob| blob.size).sum();
    job.observer.phase(Phase::Fetching, Some(bytes));
    receive(job, &from, to, missing.into_iter()).await
}

/// Layers whose digests were verified when they were indexed.
pub(super) fn verified_layers(converted: &Converted) -> impl Iterator<Item = Digest> {
    let layers = converted.platforms.iter().flat_map(|it| &it.parts.layers);
    layers
        .filter(|layer| matches!(layer.outcome, Outcome::Built(_)))
        .map(|layer| layer.layer.digest)
}

/// A registry whose blobs are stored in a layout when they are read.
#[derive(Debug)]
struct Keeper {
    from: RegistryStore,
    to: Layout,
    stop: Stop,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Blobs that were read from the layout.
    local: HashSet<Digest>,
    /// Blobs that are damaged in the layout.
    damaged: HashSet<Digest>,
}

impl Keeper {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blob that the layout had before, or has by now.
    async fn stored(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        if self.state().damaged.contains(digest) {
            return Ok(None);
        }
        let stored = self.to.size(digest).await?;
        if stored.is_none() || stored != self.from.size(digest).await? {
            return Ok(None);
        }
        let blob = self.to.open(digest).await?;
        self.state().local.insert(*digest);
        Ok(Some(blob))
    }
}

#[async_trait]
impl ContentStore for Keeper {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.from.size(digest).await
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        if let Some(blob) = self.stored(digest).await? {
            return Ok(blob);
        }
        let Blob { size, reader } = self.from.open(digest).await?;
        let (to, stop) = (self.to.clone(), self.stop.clone());
        let blob = Descriptor::new("", *digest, size);
        let keeping = move || {
            // The thread may start late, and must not create the folder again.
            if stop.is_set() {
                return Err(StoreError::NotFound(blob.digest));
            }
            to.keeping(&blob, Stoppable::of(reader, stop))
        };
        Ok(Blob {
            size,
            reader: Box::new(blocking(keeping).await?),
        })
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        self.to.put(descriptor, content).await
    }

    async fn label(&self, _: &Digest, _: &Labels) -> Result<(), StoreError> {
        Ok(())
    }

    fn distrust(&self, digest: &Digest) -> bool {
        let mut state = self.state();
        if state.local.remove(digest) {
            return state.damaged.insert(*digest);
        }
        drop(state);
        self.from.distrust(digest)
    }
}
