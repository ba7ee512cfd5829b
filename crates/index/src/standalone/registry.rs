//! Writes a converted image to a registry.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use soci_oci::reference::ImageRef;
use soci_store::registry::RegistryTarget;
use soci_store::{ContentStore, Stacked};

use super::error::Error;
use super::observer::{ConversionObserver, Phase};
use super::{Input, Job, RemoteImage};
use crate::convert::Converted;

pub(super) async fn to_registry(
    job: &Job,
    input: Input,
    to: RemoteImage,
    mount_from: &[&ImageRef],
) -> Result<Converted, Error> {
    if to.image.digest().is_some() {
        return Err(Error::Pinned(Box::new(to.image)));
    }
    let target = RegistryTarget::new(to.registry, to.image, mount_from, job.copies);
    let work = upload(job, input, &target);
    uploading(&target, work).await
}

/// Runs work that uploads to the target. If it fails or is dropped, its uploads end.
pub(super) async fn uploading<T>(
    target: &RegistryTarget,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let uploading = Uploading {
        _target: AbortOnDrop(target.clone()),
        work: Box::pin(work),
    };
    let done = uploading.await;
    if done.is_err() {
        // The caller may cancel the upload sessions now.
        target.cancel().await;
    }
    done
}

async fn upload(job: &Job, input: Input, target: &RegistryTarget) -> Result<Converted, Error> {
    let new: Arc<dyn ContentStore> = Arc::new(target.clone());
    let (converted, source): (Converted, Arc<dyn ContentStore>) = match input {
        Input::Registry(source) => {
            let root = source.root().await?;
            let read = Arc::new(source.copying_to(target));
            (job.convert(read, new, &root).await?, Arc::new(source))
        }
        Input::Local(source) => {
            let root = source.root(new.as_ref()).await?;
            let read = Arc::new(Stacked {
                upper: Arc::clone(&new),
                lower: source.store(),
            });
            (job.convert(read, new, &root).await?, source.store())
        }
    };
    job.observer.phase(Phase::Copying, None);
    target.finish(source, &converted.image).await?;
    Ok(converted)
}

/// Ends all uploads when it is dropped. Threads that read layers may hold the target for longer.
struct AbortOnDrop(RegistryTarget);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Work that uploads. If it is dropped, uploads end before the work: a thread that waits for an
/// upload would delay its end.
struct Uploading<W> {
    _target: AbortOnDrop,
    work: Pin<Box<W>>,
}

impl<W: Future> Future for Uploading<W> {
    type Output = W::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<W::Output> {
        self.work.as_mut().poll(context)
    }
}
