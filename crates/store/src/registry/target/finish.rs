//! The last step of an image: missing blobs, manifests, and the tag.

use std::sync::Arc;

use futures_util::{TryStreamExt as _, stream};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_registry::RegistryError;

use super::{RegistryTarget, Shared};
use crate::registry::graph::{Node, graph};
use crate::{ContentStore, FromStore, ReachableError, Stacked, StoreError};

impl RegistryTarget {
    /// Completes the image: copies blobs that the repository lacks from the source, writes the
    /// manifests and tags the root.
    ///
    /// # Errors
    /// The error of an earlier upload, of the source, or of the registry. The tag is then not
    /// written.
    pub async fn finish(
        &self,
        source: Arc<dyn ContentStore>,
        root: &Descriptor,
    ) -> Result<(), ReachableError> {
        self.settle().await?;
        let at_once = self.shared.at_once.get();
        let store: Arc<dyn ContentStore> = Arc::new(Stacked {
            upper: Arc::new(self.clone()),
            lower: Arc::clone(&source),
        });
        let graph = graph(store.as_ref(), root).await?;
        let missing = graph.blobs.values();
        let missing = missing.filter(|blob| !self.shared.has(&blob.digest));
        stream::iter(missing.cloned().map(Ok))
            .try_for_each_concurrent(at_once, |blob| self.copy(Arc::clone(&source), blob))
            .await?;
        let mut documents = graph.documents;
        // The root has depth 0 and is written last; the deepest documents are written first.
        documents.sort_by_key(|node| std::cmp::Reverse(node.depth));
        let deepest = documents.first().map_or(0, |node| node.depth);
        for depth in (1..=deepest).rev() {
            let level = documents.iter().filter(|node| node.depth == depth);
            stream::iter(level.map(Ok))
                .try_for_each_concurrent(at_once, |node| self.write(node))
                .await?;
        }
        if let Some(root) = documents.last() {
            let Shared {
                registry, image, ..
            } = self.shared.as_ref();
            let tag = image
                .tag()
                .map_or_else(|| root.descriptor.digest.to_string(), str::to_owned);
            let Node {
                descriptor, bytes, ..
            } = root;
            let pushed = registry.push_manifest(image, &tag, &descriptor.media_type, bytes.clone());
            pushed.await.map_err(StoreError::from)?;
        }
        Ok(())
    }

    /// Copies a blob that the repository lacks.
    async fn copy(&self, store: Arc<dyn ContentStore>, blob: Descriptor) -> Result<(), StoreError> {
        let broken = self.state().broken.remove(&blob.digest);
        if let Some(error) = broken {
            let layer = blob.digest;
            tracing::warn!(%error, %layer, "upload failed; the layer is read and sent again");
        }
        let from = FromStore {
            store,
            blob: blob.clone(),
        };
        match self.shared.upload(&blob, &from).await {
            Err(StoreError::Registry(error))
                if matches!(*error, RegistryError::Source { .. })
                    && from.store.distrust(&blob.digest) =>
            {
                self.shared.upload(&blob, &from).await
            }
            done => done,
        }
    }

    async fn write(&self, node: &Node) -> Result<(), StoreError> {
        let Shared {
            registry, image, ..
        } = self.shared.as_ref();
        let Descriptor {
            digest, media_type, ..
        } = &node.descriptor;
        // The registry is unlikely to have a new manifest, and writing it again is harmless.
        let is_new = self.state().held.contains_key(digest);
        if is_new || !registry.has_manifest(image, digest).await? {
            registry
                .push_manifest(image, &digest.to_string(), media_type, node.bytes.clone())
                .await?;
        }
        Ok(())
    }

    /// Writes a held-back manifest that has a subject, so that it can be found through that
    /// subject.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is no such manifest, or the error of an upload.
    pub async fn write_referrer(&self, digest: &Digest) -> Result<(), StoreError> {
        self.settle().await?;
        let held = self.state().held.get(digest).cloned();
        let (descriptor, bytes) = held.ok_or(StoreError::NotFound(*digest))?;
        let Shared {
            registry, image, ..
        } = self.shared.as_ref();
        let pushed = registry.push_referrer(image, &descriptor.media_type, bytes);
        pushed.await.map(drop).map_err(StoreError::from)
    }
}
