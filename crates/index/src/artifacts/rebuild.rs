//! Updates the records to match a content store.
//!
//! The scan reads every blob that may be an index. Records of missing blobs are removed. Indexes
//! without a record are added, with their zTOCs and prefetch artifacts. A version 1 index states
//! its manifest, and a version 2 index is listed by its image, so images are needed, but only if
//! there are new indexes. Added records may describe pulled content, so they are marked as found,
//! and indexes are never built from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use soci_oci::manifest::{self, DocumentError, MAX_DOCUMENT_BYTES, Manifest};
use soci_oci::{Descriptor, Digest, ImageConfig, ImageIndex, media_type};
use soci_store::{ContentStore, StoreError};

use super::{Artifacts, ArtifactsError, Entry, Kind};
use crate::model::{
    ARTIFACT_TYPE_V2, LAYER_DIGEST, MANIFEST_DIGEST, PREFETCH_MEDIA_TYPE, SPAN_SIZE, SociIndex,
    Version,
};
use crate::records::{self, IndexOf};

/// Smaller blobs are not indexes: the configuration alone has two bytes.
const MIN_BYTES: u64 = 10;
/// Blobs up to this size in bytes are read completely. For larger ones, the first byte is checked
/// first.
const SMALL: u64 = 64 << 10;

/// Why a rebuild failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// The records failed.
    #[error(transparent)]
    Artifacts(#[from] ArtifactsError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An index that was not recorded, and the reason.
#[derive(Debug)]
pub struct LeftOut {
    /// The index.
    pub index: Digest,
    /// What is missing from its image.
    pub cause: ImageGone,
}

/// What is missing from an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageGone {
    /// A blob of the image cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A document of the image is invalid.
    #[error("{digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// Why it is invalid.
        #[source]
        source: Box<DocumentError>,
    },
}

/// The images that indexes may belong to.
#[derive(Debug)]
pub struct Images {
    /// Contains their manifests and configurations.
    pub store: Arc<dyn ContentStore>,
    /// The manifests or indexes that their names refer to.
    pub targets: Vec<Descriptor>,
}

/// The content of a store and of the records.
#[derive(Debug)]
pub struct Scan<'a> {
    artifacts: &'a Artifacts,
    recorded: BTreeMap<Digest, Entry>,
    blobs: BTreeMap<Digest, u64>,
    indexes: Vec<(Digest, SociIndex)>,
}

impl<'a> Scan<'a> {
    /// Scans the store. Unreadable blobs are not treated as indexes.
    pub async fn of(
        artifacts: &'a Artifacts,
        content: &dyn ContentStore,
    ) -> Result<Self, RebuildError> {
        // Read the records first, so that entries added during the scan are not compared with an
        // older list of blobs.
        let recorded = artifacts.all()?.into_iter();
        let recorded = recorded.map(|entry| (entry.digest, entry)).collect();
        let blobs: BTreeMap<Digest, u64> = content.list().await?.into_iter().collect();
        let mut indexes = Vec::new();
        for (digest, &size) in &blobs {
            match index(content, digest, size).await {
                Ok(index) => indexes.extend(index.map(|index| (*digest, index))),
                Err(error) => tracing::debug!(%digest, %error, "a blob is passed over"),
            }
        }
        Ok(Self {
            artifacts,
            recorded,
            blobs,
            indexes,
        })
    }

    /// Removes the records of blobs that are not in the store.
    pub fn remove_lost(&mut self) -> Result<(), RebuildError> {
        let lost = self.recorded.keys();
        let lost: Vec<Digest> = lost
            .filter(|digest| !self.blobs.contains_key(digest))
            .copied()
            .collect();
        self.artifacts.remove(&lost)?;
        for digest in &lost {
            self.recorded.remove(digest);
        }
        Ok(())
    }

    /// Whether there is a version 1 index without a record.
    #[must_use]
    pub fn has_new(&self) -> bool {
        self.indexes.iter().any(|(digest, index)| {
            index.version() == Version::V1 && !self.recorded.contains_key(digest)
        })
    }

    /// Adds missing records. Without images, only the parts of recorded indexes are added.
    pub async fn add_new(&self, images: Option<&Images>) -> Result<Vec<LeftOut>, RebuildError> {
        let (mut entries, mut left_out) = (Vec::new(), Vec::new());
        let members = match images {
            Some(images) => Members::of(images).await?,
            None => Members::default(),
        };
        for (digest, index) in &self.indexes {
            if !self.recorded.contains_key(digest) {
                let entry = match (index.version(), images) {
                    (Version::V1, Some(images)) => {
                        self.first(images, &members, digest, index).await
                    }
                    (Version::V2, _) => Ok(self.second(&members, digest)),
                    (Version::V1, None) => Ok(None),
                };
                match entry {
                    Ok(Some(entry)) => entries.push(entry),
                    Ok(None) => continue,
                    Err(cause) => {
                        left_out.push(LeftOut {
                            index: *digest,
                            cause,
                        });
                        continue;
                    }
                }
            }
            for blob in index.blobs() {
                entries.extend(self.part(blob));
            }
        }
        for entry in &mut entries {
            entry.is_found = true;
        }
        self.artifacts.put(&entries)?;
        Ok(left_out)
    }

    /// Creates the record of a version 1 index. Returns `None` if it has no subject.
    async fn first(
        &self,
        images: &Images,
        members: &Members,
        digest: &Digest,
        index: &SociIndex,
    ) -> Result<Option<Entry>, ImageGone> {
        let Some(subject) = index.subject() else {
            return Ok(None);
        };
        let manifest = subject.digest;
        let platform = platform(images.store.as_ref(), subject).await?;
        let of = IndexOf {
            version: Version::V1,
            built_for: &manifest,
            manifest: &manifest,
            image: members.images.get(&manifest).unwrap_or(&manifest),
            platform,
        };
        Ok(Some(records::index(*digest, self.size(digest), of)))
    }

    /// Creates the record of a version 2 index that an image lists.
    fn second(&self, members: &Members, digest: &Digest) -> Option<Entry> {
        let listed = members.indexes.get(digest)?;
        let of = IndexOf {
            version: Version::V2,
            built_for: &listed.manifest,
            manifest: &listed.manifest,
            image: &listed.image,
            platform: listed.platform.clone(),
        };
        Some(records::index(*digest, self.size(digest), of))
    }

    /// Creates the record of a blob in an index, if the blob is present and not yet recorded with
    /// the same kind.
    fn part(&self, blob: &Descriptor) -> Option<Entry> {
        let kind = if blob.media_type == PREFETCH_MEDIA_TYPE {
            Kind::Prefetch
        } else {
            Kind::Layer
        };
        let known = self.recorded.get(&blob.digest);
        if !self.blobs.contains_key(&blob.digest) || known.is_some_and(|entry| entry.kind == kind) {
            return None;
        }
        let layer = blob.annotations.get(LAYER_DIGEST).cloned();
        let layer = layer.unwrap_or_default();
        match kind {
            Kind::Prefetch => Some(records::prefetch_of(layer, blob)),
            _ => Some(records::ztoc_of(layer, blob, span_size(blob)?)),
        }
    }

    fn size(&self, digest: &Digest) -> u64 {
        self.blobs.get(digest).copied().unwrap_or_default()
    }
}

/// Reads a blob and returns the index in it, if it is one.
async fn index(
    content: &dyn ContentStore,
    digest: &Digest,
    size: u64,
) -> Result<Option<SociIndex>, StoreError> {
    if !(MIN_BYTES..=MAX_DOCUMENT_BYTES).contains(&size) {
        return Ok(None);
    }
    // Most blobs of this size are layers.
    if size > SMALL && content.read_range(digest, 0..1).await? != b"{"[..] {
        return Ok(None);
    }
    let bytes = content.read(digest, MAX_DOCUMENT_BYTES).await?;
    Ok(SociIndex::parse(&bytes).ok())
}

/// The span size in a zTOC's descriptor. `None` if it is not a number.
fn span_size(ztoc: &Descriptor) -> Option<u64> {
    let Some(text) = ztoc.annotation(SPAN_SIZE) else {
        return Some(0);
    };
    let size = text.parse();
    if size.is_err() {
        tracing::warn!(
            "zTOC {} is not recorded: its index states the span size {text:?}, which is no number; \
             `soci create` makes a new index",
            ztoc.digest
        );
    }
    size.ok()
}

/// The platform in the configuration of a manifest.
async fn platform(store: &dyn ContentStore, subject: &Descriptor) -> Result<String, ImageGone> {
    let document = |digest| {
        move |source| ImageGone::Document {
            digest,
            source: Box::new(source),
        }
    };
    let bytes = store.read(&subject.digest, MAX_DOCUMENT_BYTES).await?;
    let manifest: Manifest =
        manifest::parse(&bytes, &subject.media_type).map_err(document(subject.digest))?;
    let config = &manifest.config;
    let bytes = store.read(&config.digest, MAX_DOCUMENT_BYTES).await?;
    let parsed: ImageConfig =
        manifest::parse(&bytes, &config.media_type).map_err(document(config.digest))?;
    Ok(parsed.platform.normalised().to_string())
}

/// The members of all images.
#[derive(Default)]
struct Members {
    /// Manifests, each with the image that contains it.
    images: BTreeMap<Digest, Digest>,
    /// Version 2 indexes.
    indexes: BTreeMap<Digest, Listed>,
}

struct Listed {
    manifest: Digest,
    image: Digest,
    platform: String,
}

impl Members {
    async fn of(images: &Images) -> Result<Self, RebuildError> {
        let mut members = Self::default();
        for target in &images.targets {
            members.images.entry(target.digest).or_insert(target.digest);
            if !media_type::is_index(&target.media_type) {
                continue;
            }
            match images.store.read(&target.digest, MAX_DOCUMENT_BYTES).await {
                Ok(bytes) => match manifest::parse::<ImageIndex>(&bytes, &target.media_type) {
                    Ok(index) => members.add(&target.digest, &index),
                    Err(error) => tracing::debug!(image = %target.digest, %error, "passed over"),
                },
                Err(error) => tracing::debug!(image = %target.digest, %error, "passed over"),
            }
        }
        Ok(members)
    }

    fn add(&mut self, image: &Digest, index: &ImageIndex) {
        for member in index.manifests() {
            let manifest = member.annotations.get(MANIFEST_DIGEST);
            match manifest.and_then(|text| text.parse().ok()) {
                Some(manifest) if member.artifact_type == ARTIFACT_TYPE_V2 => {
                    let platform = member.platform.as_ref();
                    let listed = Listed {
                        manifest,
                        image: *image,
                        platform: platform.map(ToString::to_string).unwrap_or_default(),
                    };
                    self.indexes.insert(member.digest, listed);
                }
                _ => {
                    self.images.entry(member.digest).or_insert(*image);
                }
            }
        }
    }
}
