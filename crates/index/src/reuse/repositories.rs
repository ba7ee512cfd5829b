//! zTOCs of images in registries.
//!
//! Indexes are found as on nodes: version 2 indexes that the image's OCI index lists or its
//! manifests name, and version 1 indexes that refer to its manifests. The first request for
//! candidates queries all images once. A missing image has no zTOCs. If an image cannot be read, a
//! warning is logged once and it has no zTOCs.
//!
//! The zTOCs are not compared with the layers: anyone who can push to these repositories controls
//! their content. Use this only for images that the user trusts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use soci_oci::manifest::{self, ImageIndex, MAX_DOCUMENT_BYTES, Manifest};
use soci_oci::reference::ImageRef;
use soci_oci::{Descriptor, Digest, media_type};
use soci_registry::{Registry, RegistryError};
use soci_store::registry::RegistryStore;
use soci_store::{Blob, ContentStore, StoreError};
use tokio::sync::OnceCell;

use super::{KnownError, ZtocSource};
use crate::builder::explain;
use crate::discover::{Discovery, annotated};
use crate::model::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2, INDEX_DIGEST, SPAN_SIZE, SociIndex};

/// Maximum number of manifests to visit, and of indexes to read, per image. Images have fewer
/// platforms.
const MAX_MANIFESTS: usize = 32;

/// The unverified zTOCs of these images.
#[derive(Debug)]
pub struct RepositoryZtocs {
    registry: Registry,
    images: Vec<ImageRef>,
    found: OnceCell<Vec<Found>>,
}

/// The zTOCs of one image.
#[derive(Debug)]
struct Found {
    store: Arc<RegistryStore>,
    /// The zTOCs by layer.
    ztocs: HashMap<Digest, Vec<Descriptor>>,
}

impl RepositoryZtocs {
    /// Uses these images in order of preference. The user must trust everyone who can push to them.
    #[must_use]
    pub fn new(registry: Registry, images: Vec<ImageRef>) -> Self {
        Self {
            registry,
            images,
            found: OnceCell::new(),
        }
    }

    async fn found(&self) -> &[Found] {
        let look = async |image: &ImageRef| {
            let search = Search::new(self.registry.clone(), image.clone());
            match search.run().await {
                Ok(found) => return Some(found),
                Err(error) if error.is_not_found() => {
                    tracing::debug!(%image, %error, "no image to take ztocs from");
                }
                Err(error) => {
                    let error = explain(&error);
                    tracing::warn!(%image, error, "no ztocs are taken over from there");
                }
            }
            None
        };
        // Query all images concurrently: each needs a few sequential requests.
        let search = || async {
            let all = join_all(self.images.iter().map(look)).await;
            all.into_iter().flatten().collect()
        };
        self.found.get_or_init(search).await
    }
}

#[async_trait]
impl ZtocSource for RepositoryZtocs {
    async fn candidates(
        &self,
        layer: &Descriptor,
        span_size: u64,
    ) -> Result<Vec<Descriptor>, KnownError> {
        let span_size = span_size.to_string();
        let mut candidates: Vec<Descriptor> = Vec::new();
        for found in self.found().await {
            for ztoc in found.ztocs.get(&layer.digest).into_iter().flatten() {
                let may_fit = ztoc.annotation(SPAN_SIZE).is_none_or(|it| it == span_size);
                if may_fit && !candidates.iter().any(|known| known.digest == ztoc.digest) {
                    // Drop the annotations: the builder writes new ones when it reuses the zTOC.
                    let Descriptor { media_type, .. } = ztoc;
                    candidates.push(Descriptor::new(media_type, ztoc.digest, ztoc.size));
                }
            }
        }
        Ok(candidates)
    }

    async fn open(&self, ztoc: &Descriptor) -> Result<Blob, StoreError> {
        for found in self.found().await {
            let mut all = found.ztocs.values().flatten();
            if all.any(|it| it.digest == ztoc.digest && it.size == ztoc.size) {
                return found.store.open(&ztoc.digest).await;
            }
        }
        Err(StoreError::NotFound(ztoc.digest))
    }
}

/// Finds the indexes of an image.
struct Search {
    registry: Registry,
    image: ImageRef,
    store: RegistryStore,
    indexes: Vec<Digest>,
    seen: HashSet<Digest>,
}

impl Search {
    fn new(registry: Registry, image: ImageRef) -> Self {
        Self {
            store: RegistryStore::new(registry.clone(), image.clone()),
            registry,
            image,
            indexes: Vec::new(),
            seen: HashSet::new(),
        }
    }

    async fn run(mut self) -> Result<Found, StoreError> {
        let root = self.store.root().await?;
        if media_type::is_index(&root.media_type) {
            let bytes = self.store.read(&root.digest, MAX_DOCUMENT_BYTES).await?;
            if let Ok(index) = manifest::parse::<ImageIndex>(&bytes, &root.media_type) {
                self.look_at_members(index.manifests()).await?;
            }
        } else {
            let bytes = self.store.read(&root.digest, MAX_DOCUMENT_BYTES).await?;
            if let Ok(manifest) = manifest::parse::<Manifest>(&bytes, &root.media_type)
                && let Ok(Discovery::Found(index, _)) = annotated(&manifest)
            {
                self.add(index);
            }
            self.look_at_referrers(&root.digest).await?;
        }
        let mut ztocs: HashMap<Digest, Vec<Descriptor>> = HashMap::new();
        for index in std::mem::take(&mut self.indexes) {
            for (layer, ztoc) in self.ztocs_of(&index).await? {
                ztocs.entry(layer).or_default().push(ztoc);
            }
        }
        Ok(Found {
            store: Arc::new(self.store),
            ztocs,
        })
    }

    async fn look_at_members(&mut self, members: &[Descriptor]) -> Result<(), StoreError> {
        let mut images = Vec::new();
        for member in members.iter().take(MAX_MANIFESTS) {
            if member.artifact_type == ARTIFACT_TYPE_V2 {
                self.add(member.digest);
            } else if let Some(index) = member.annotation(INDEX_DIGEST) {
                if let Ok(index) = index.parse() {
                    self.add(index);
                }
            } else if media_type::is_manifest(&member.media_type) {
                images.push(member.digest);
            }
        }
        // Without version 2 indexes, the image may have version 1 indexes.
        if self.indexes.is_empty() {
            for image in images {
                self.look_at_referrers(&image).await?;
            }
        }
        Ok(())
    }

    async fn look_at_referrers(&mut self, manifest: &Digest) -> Result<(), StoreError> {
        let found = self
            .registry
            .referrers(&self.image, manifest, ARTIFACT_TYPE_V1);
        match found.await {
            Ok(referrers) => {
                self.store.learn(&referrers);
                for referrer in referrers.iter().take(MAX_MANIFESTS) {
                    self.add(referrer.digest);
                }
                Ok(())
            }
            Err(RegistryError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn add(&mut self, index: Digest) {
        if self.indexes.len() < MAX_MANIFESTS && self.seen.insert(index) {
            self.indexes.push(index);
        }
    }

    /// Returns the zTOCs of an index. Empty if it is missing or not an index.
    async fn ztocs_of(&self, index: &Digest) -> Result<Vec<(Digest, Descriptor)>, StoreError> {
        let bytes = match self.store.read(index, MAX_DOCUMENT_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let Ok(index) = SociIndex::parse(&bytes) else {
            return Ok(Vec::new());
        };
        self.store.learn(index.blobs());
        let pairs = index.ztocs().map(|pair| (pair.layer, pair.ztoc.clone()));
        Ok(pairs.collect())
    }
}
