//! The repository that receives a converted image.
//!
//! Blobs are uploaded as they become available, unless the repository already has them or the
//! registry can mount them from another repository. Manifests are held back until everything that
//! they refer to is present; then children are written first and the tag last. Interrupted work
//! leaves only unreferenced blobs, which registries collect, and no image.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::stream::Tee;
use crate::{Blob, Content, ContentStore, Labels, Put, StoreError};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::media_type;
use soci_oci::reference::ImageRef;
use soci_registry::{BlobSource, Registry, RegistryError, Sent};

mod file;
mod finish;

use file::InFile;

/// Number of concurrent uploads and copies unless the caller says otherwise.
pub const UPLOADS_AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");
/// Number of chunks buffered between a layer's reader and its upload.
const TEE_CHUNKS: usize = 16;

type Uploads = JoinSet<Result<(), StoreError>>;

/// The repository of an image under construction. Clones share one target; when the last clone is
/// dropped, its uploads end. [`RegistryTarget::abort`] and [`RegistryTarget::cancel`] end them
/// sooner.
#[derive(Clone)]
pub struct RegistryTarget {
    shared: Arc<Shared>,
    /// The upload tasks hold `shared` but not this field; otherwise they would keep themselves
    /// alive.
    uploads: Arc<Mutex<Uploads>>,
}

struct Shared {
    registry: Registry,
    image: ImageRef,
    /// Repositories of the same registry that may have blobs of the image.
    others: Vec<String>,
    state: Mutex<State>,
    at_once: NonZeroUsize,
    slots: Arc<Semaphore>,
    /// Has no permits. Closed when the image is no longer needed.
    ended: Semaphore,
}

#[derive(Default)]
struct State {
    held: HashMap<Digest, (Descriptor, Bytes)>,
    /// Blobs that the repository is known to have.
    present: HashSet<Digest>,
    /// Why the upload of a layer that was sent while it was read failed.
    broken: HashMap<Digest, RegistryError>,
}

impl fmt::Debug for RegistryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryTarget")
            .field("image", &self.shared.image)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, digest: &Digest) -> bool {
        self.state().present.contains(digest)
    }

    fn mark_present(&self, digest: &Digest) {
        self.state().present.insert(*digest);
    }

    async fn upload(&self, blob: &Descriptor, source: &dyn BlobSource) -> Result<(), StoreError> {
        if self.has(&blob.digest) {
            return Ok(());
        }
        let Self {
            registry,
            image,
            others,
            ..
        } = self;
        let nobody: Sent = Arc::new(|_| {});
        let upload = registry.upload_blob(image, blob, others, source, nobody);
        self.unless_ended(&blob.digest, upload).await??;
        self.mark_present(&blob.digest);
        Ok(())
    }

    /// Runs a request until the image is no longer needed. The waiting thread or task may not know
    /// about that.
    async fn unless_ended<T>(
        &self,
        blob: &Digest,
        request: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        tokio::select! {
            biased;
            _ = self.ended.acquire() => Err(StoreError::NotFound(*blob)),
            done = request => Ok(done),
        }
    }
}

impl RegistryTarget {
    /// Creates the target for this image. Blobs may be mounted from the repositories in `others`
    /// that belong to the same registry. At most `at_once` blobs are uploaded or copied
    /// concurrently, besides layers that are sent while they are read.
    #[must_use]
    pub fn new(
        registry: Registry,
        image: ImageRef,
        others: &[&ImageRef],
        at_once: NonZeroUsize,
    ) -> Self {
        let same = others.iter().filter(|other| {
            other.host() == image.host() && other.repository() != image.repository()
        });
        let mut names: Vec<String> = Vec::new();
        for other in same {
            if !names.iter().any(|name| name == other.repository()) {
                names.push(other.repository().to_owned());
            }
        }
        let shared = Arc::new(Shared {
            registry,
            image,
            others: names,
            state: Mutex::default(),
            at_once,
            slots: Arc::new(Semaphore::new(at_once.get().min(Semaphore::MAX_PERMITS))),
            ended: Semaphore::new(0),
        });
        Self {
            shared,
            uploads: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn uploads(&self) -> MutexGuard<'_, Uploads> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Aborts all uploads and starts no new ones, because the image is no longer needed. Does not
    /// wait until they have ended.
    pub fn abort(&self) {
        self.shared.slots.close();
        self.shared.ended.close();
        self.uploads().abort_all();
    }

    /// Like [`RegistryTarget::abort`], and waits until all uploads have ended.
    /// [`Registry::cancel_uploads`] can then delete the upload sessions.
    pub async fn cancel(&self) {
        self.abort();
        let mut uploads = std::mem::take(&mut *self.uploads());
        uploads.shutdown().await;
    }

    /// Returns the sender for the bytes of a layer that is being read, or `None` if no upload is
    /// needed.
    pub(super) async fn receive(&self, layer: &Descriptor) -> Result<Option<Tee>, StoreError> {
        let Shared {
            registry,
            image,
            others,
            slots,
            ..
        } = self.shared.as_ref();
        let shared = &self.shared;
        let mut is_there = shared.has(&layer.digest);
        if !is_there {
            let asked = registry.has_blob(image, &layer.digest);
            is_there = shared.unless_ended(&layer.digest, asked).await??;
        }
        if is_there {
            shared.mark_present(&layer.digest);
            return Ok(None);
        }
        for other in others {
            let mount = registry.mount_blob(image, &layer.digest, other);
            match shared.unless_ended(&layer.digest, mount).await? {
                Ok(true) => {
                    shared.mark_present(&layer.digest);
                    return Ok(None);
                }
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, other, "blob not mounted"),
            }
        }
        let (sender, mut chunks) = mpsc::channel(TEE_CHUNKS);
        let (shared, layer) = (Arc::clone(shared), layer.clone());
        let mut uploads = self.uploads();
        if slots.is_closed() {
            return Ok(None);
        }
        uploads.spawn(async move {
            let Shared {
                registry, image, ..
            } = shared.as_ref();
            let bytes = stream::poll_fn(move |context| chunks.poll_recv(context));
            match registry.push_blob(image, &layer, bytes).await {
                Ok(()) => shared.mark_present(&layer.digest),
                // The reader stopped and knows the reason. In either case `finish` copies the layer
                // again.
                Err(error @ RegistryError::Source { .. }) => {
                    tracing::debug!(%error, layer = %layer.digest, "upload broke off");
                }
                Err(error) => {
                    shared.state().broken.insert(layer.digest, error);
                }
            }
            Ok(())
        });
        Ok(Some(sender))
    }

    /// Waits until all uploads have finished.
    ///
    /// # Errors
    /// The first error of an upload.
    pub async fn settle(&self) -> Result<(), StoreError> {
        // Leave the tasks in the set while waiting, so that `cancel` can abort them if this call is
        // dropped.
        while let Some(done) = poll_fn(|context| self.uploads().poll_join_next(context)).await {
            match done {
                Ok(result) => result?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

impl From<RegistryError> for StoreError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

#[async_trait]
impl ContentStore for RegistryTarget {
    /// The size of a document that is held back.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self
            .state()
            .held
            .get(digest)
            .map(|(descriptor, _)| descriptor.size))
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let held = self
            .state()
            .held
            .get(digest)
            .map(|(_, bytes)| bytes.clone());
        let bytes = held.ok_or(StoreError::NotFound(*digest))?;
        Ok(Blob {
            size: bytes.len() as u64,
            reader: Box::new(io::Cursor::new(bytes)),
        })
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        let media_type = &descriptor.media_type;
        let is_document = media_type::is_index(media_type) || media_type::is_manifest(media_type);
        match content {
            Content::Bytes(bytes) if is_document => {
                let held = (descriptor.clone(), bytes);
                self.state().held.insert(descriptor.digest, held);
            }
            Content::Bytes(bytes) => self.shared.upload(descriptor, &bytes).await?,
            Content::File(file) => {
                // A file needs no memory while it waits, so the next layer does not have to wait
                // for it.
                let Ok(slot) = Arc::clone(&self.shared.slots).acquire_owned().await else {
                    return Err(StoreError::NotFound(descriptor.digest));
                };
                let (shared, blob) = (Arc::clone(&self.shared), descriptor.clone());
                let mut uploads = self.uploads();
                if shared.slots.is_closed() {
                    return Err(StoreError::NotFound(descriptor.digest));
                }
                uploads.spawn(async move {
                    let _slot = slot;
                    let size = blob.size;
                    let file = Arc::new(file);
                    shared.upload(&blob, &InFile { file, size }).await
                });
            }
        }
        Ok(Put::Stored)
    }

    async fn label(&self, _: &Digest, _: &Labels) -> Result<(), StoreError> {
        Ok(())
    }
}
