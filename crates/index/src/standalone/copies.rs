//! Copies the blobs of an image into a layout, a few concurrently, and verifies them.

use std::sync::Arc;

use soci_oci::Descriptor;
use soci_store::layout::Layout;
use soci_store::{ContentStore, Stacked, blocking, reachable};
use tokio::task::JoinSet;

use super::error::{Error, OutputError};
use super::observer::{ConversionObserver, Phase};
use super::stop::{Stop, StopOnDrop, Stoppable};
use super::{Job, counter};
use crate::convert::Converted;

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
pub(super) async fn receive(
    job: &Job,
    from: &Arc<dyn ContentStore>,
    to: &Layout,
    mut blobs: impl Iterator<Item = Descriptor>,
) -> Result<(), Error> {
    let mut copies = JoinSet::new();
    // The tasks of the set are dropped later than this future and the caller's temporary folder.
    let stop = StopOnDrop::default();
    loop {
        while copies.len() < job.copies.get()
            && let Some(blob) = blobs.next()
        {
            let count = counter(&job.observer);
            let (from, to) = (Arc::clone(from), to.clone());
            copies.spawn(copy_one(from, to, blob, stop.flag(), count));
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
    stop: Stop,
    count: impl Fn(u64) + Clone + Send + 'static,
) -> Result<(), Error> {
    match copy_from(&from, to.clone(), blob.clone(), stop.clone(), count.clone()).await {
        Err(error) if error.is_about_bytes() && from.distrust(&blob.digest) => {
            copy_from(&from, to, blob, stop, count).await
        }
        done => done,
    }
}

async fn copy_from(
    from: &Arc<dyn ContentStore>,
    to: Layout,
    blob: Descriptor,
    stop: Stop,
    count: impl Fn(u64) + Send + 'static,
) -> Result<(), Error> {
    let reader = from.open(&blob.digest).await?.reader;
    let received = blocking(move || {
        // The thread may start late, and must not create the folder again.
        stop.check().map_err(|source| OutputError::Write {
            path: to.root().to_owned(),
            source,
        })?;
        to.receive(&blob, Stoppable::of(reader, stop), &count)?;
        Ok(())
    });
    received.await
}

#[cfg(test)]
mod tests {
    use soci_store::Content;

    use super::*;

    #[tokio::test]
    async fn a_copy_that_starts_late_creates_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let source = Layout::create(folder.path().join("from")).unwrap();
        let blob = Descriptor::of("blob", b"blob");
        let content = Content::Bytes(b"blob".as_slice().into());
        source.store(&blob, content).unwrap();
        let source: Arc<dyn ContentStore> = Arc::new(source);
        let to = Layout::at(folder.path().join("removed"));
        let stop = StopOnDrop::default();
        let flag = stop.flag();
        drop(stop);
        let copied = copy_from(&source, to.clone(), blob.clone(), flag, |_| {});
        copied.await.unwrap_err();
        assert!(!to.root().exists());
        let stop = StopOnDrop::default();
        let copied = copy_from(&source, to.clone(), blob.clone(), stop.flag(), |_| {});
        copied.await.unwrap();
        assert!(to.blob_path(&blob.digest).is_file());
    }
}
