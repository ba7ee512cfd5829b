//! Copies the blobs of an image into a layout, a few concurrently, and verifies them.

use std::sync::Arc;

use soci_oci::Descriptor;
use soci_store::layout::Layout;
use soci_store::registry::{RegistryStore, graph};
use soci_store::{Content, ContentStore, Stacked, reachable};
use tokio::task::JoinSet;

use super::error::Error;
use super::observer::{ConversionObserver, Phase};
use super::stop::{StopOnDrop, Stoppable, blocking};
use super::{Job, counter};
use crate::convert::Converted;

/// Downloads an image from a registry into a layout and verifies everything.
pub(super) async fn fetch(
    job: &Job,
    source: &RegistryStore,
    to: &Layout,
) -> Result<Descriptor, Error> {
    let root = source.root().await?;
    let all = graph(source, &root).await?;
    let bytes = all.blobs.values().map(|blob| blob.size).sum();
    job.observer.phase(Phase::Fetching, Some(bytes));
    for node in all.documents {
        to.put(&node.descriptor, Content::Bytes(node.bytes)).await?;
    }
    let from: Arc<dyn ContentStore> = Arc::new(source.clone());
    receive(job, &from, to, all.blobs.into_values()).await?;
    Ok(root)
}

/// Copies the missing blobs of an image and verifies them.
pub(super) async fn copy(
    job: &Job,
    source: Arc<dyn ContentStore>,
    to: &Layout,
    converted: &Converted,
) -> Result<(), Error> {
    let both = Stacked {
        upper: Arc::new(to.clone()),
        lower: Arc::clone(&source),
    };
    let blobs = reachable(&both, &converted.image).await?;
    job.observer
        .phase(Phase::Copying, Some(blobs.values().sum()));
    let mut missing = Vec::new();
    for (digest, size) in blobs {
        if to.size(&digest).await? != Some(size) {
            missing.push(Descriptor::new("", digest, size));
        }
    }
    receive(job, &source, to, missing.into_iter()).await
}

/// Copies a few blobs concurrently.
async fn receive(
    job: &Job,
    from: &Arc<dyn ContentStore>,
    to: &Layout,
    mut blobs: impl Iterator<Item = Descriptor>,
) -> Result<(), Error> {
    let mut copies = JoinSet::new();
    loop {
        while copies.len() < job.copies.get()
            && let Some(blob) = blobs.next()
        {
            let count = counter(&job.observer);
            copies.spawn(copy_one(Arc::clone(from), to.clone(), blob, count));
        }
        match copies.join_next().await {
            // The tasks are never aborted, so an error is a panic: propagate it.
            Some(copied) => {
                copied.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
            }
            None => return Ok(()),
        }
    }
}

async fn copy_one(
    from: Arc<dyn ContentStore>,
    to: Layout,
    blob: Descriptor,
    count: impl Fn(u64) + Clone + Send + 'static,
) -> Result<(), Error> {
    match copy_from(&from, to.clone(), blob.clone(), count.clone()).await {
        Err(error) if error.is_about_bytes() && from.distrust(&blob.digest) => {
            copy_from(&from, to, blob, count).await
        }
        done => done,
    }
}

async fn copy_from(
    from: &Arc<dyn ContentStore>,
    to: Layout,
    blob: Descriptor,
    count: impl Fn(u64) + Send + 'static,
) -> Result<(), Error> {
    let stop = StopOnDrop::default();
    let reader = Stoppable::new(from.open(&blob.digest).await?.reader, &stop);
    blocking(move || to.receive(&blob, reader, &count)).await?;
    Ok(())
}
