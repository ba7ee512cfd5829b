//! Creates indexes for an image in a registry and pushes them as its referrers.

use std::sync::Arc;

use soci_oci::reference::ImageRef;
use soci_store::registry::{RegistryStore, RegistryTarget, UPLOADS_AT_ONCE};

use super::registry::uploading;
use super::{Error, LAYERS_AT_ONCE, RemoteImage};
use crate::builder::{BuildContext, Observer};
use crate::create::{CreateOptions, Creation};
use crate::reuse::ZtocSource;

/// Indexes to create: see [`create`].
#[derive(Debug)]
pub struct CreateRequest {
    /// The image to index. Its layers are streamed.
    pub image: RemoteImage,
    /// The platforms and the zTOCs. If `options.build.at_once` is `None`, [`LAYERS_AT_ONCE`] layers
    /// are read concurrently.
    pub options: CreateOptions,
    /// As [`Request::known`](super::Request::known).
    pub known: Vec<Arc<dyn ZtocSource>>,
    /// As [`Request::mount_from`](super::Request::mount_from).
    pub mount_from: Vec<ImageRef>,
}

impl CreateRequest {
    /// A request that builds all zTOCs.
    #[must_use]
    pub fn new(image: RemoteImage, options: CreateOptions) -> Self {
        Self {
            image,
            options,
            known: Vec::new(),
            mount_from: Vec::new(),
        }
    }
}

/// Creates a version 1 index for each platform of an image in a registry, and pushes it to the
/// image's repository as a referrer of the platform's manifest. The image itself stays as it is.
/// Needs a multi-threaded runtime, as [`convert`](super::convert) does.
///
/// If a platform has no index, [`Creation::failure`] has the reason, and the indexes of earlier
/// platforms are in the registry.
///
/// # Cancellation
/// If the future is dropped, all uploads are aborted. Indexes that are already pushed remain.
/// [`Registry::cancel_uploads`](soci_registry::Registry::cancel_uploads) removes unfinished uploads.
///
/// # Errors
/// [`Error::Store`] if the image does not exist or an index cannot be pushed.
pub async fn create(
    request: CreateRequest,
    observer: Arc<dyn Observer>,
) -> Result<Creation, Error> {
    let RemoteImage { registry, image } = &request.image;
    let others: Vec<&ImageRef> = request.mount_from.iter().collect();
    let target = RegistryTarget::new(registry.clone(), image.clone(), &others, UPLOADS_AT_ONCE);
    let work = push_indexes(&request, &target, observer);
    let creation = uploading(&target, work).await?;
    if creation.failure.is_some() {
        // zTOCs of the platform that has no index may still be on their way.
        target.cancel().await;
    }
    Ok(creation)
}

async fn push_indexes(
    request: &CreateRequest,
    target: &RegistryTarget,
    observer: Arc<dyn Observer>,
) -> Result<Creation, Error> {
    let RemoteImage { registry, image } = &request.image;
    let source = RegistryStore::new(registry.clone(), image.clone());
    let root = source.root().await?;
    let context = BuildContext {
        source: Arc::new(source),
        store: Arc::new(target.clone()),
        known: request.known.clone(),
        records: None,
        observer,
    };
    let mut options = request.options.clone();
    options.build.at_once.get_or_insert(LAYERS_AT_ONCE);
    let creation = crate::create::create(&context, &root, &options).await;
    for made in &creation.indexes {
        target.write_referrer(&made.index.digest).await?;
    }
    Ok(creation)
}
