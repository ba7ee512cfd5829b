//! An image that carries its own index.
//!
//! The result is a new OCI index: the members of the source, their manifests rewritten to name the
//! SOCI index that was built for them, and the SOCI indexes themselves behind them. The binding goes
//! both ways: a manifest names its index by annotation, and the index's descriptor names the manifest.
//! Layers, configurations and their types in layer descriptors stay as they are.
//!
//! Everything is a function of the source and the options, so the same conversion gives the same
//! digests, also of its own result. Attestations and other manifests are re-encoded too, which the
//! reference does and digests depend on; an old SOCI index that is not replaced is left alone, unlike
//! there.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use soci_oci::manifest::{self, DocumentError, MAX_DOCUMENT_BYTES};
use soci_oci::store::{Content, ContentStore, Labels, StoreError};
use soci_oci::{Descriptor, Digest, ImageConfig, ImageIndex, Manifest, Platform, json, media_type};

use crate::builder::{self, BuildError, BuildOptions, Observer};
use crate::model::{ARTIFACT_TYPE_V2, CONFIG, INDEX_DIGEST, MANIFEST_DIGEST, SociIndex};

/// Which platforms of an image get an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// This machine's, or the only one that the image is for.
    Default,
    /// Every platform of the image.
    All,
    /// These.
    Listed(Vec<Platform>),
}

/// What a conversion is asked for.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Platforms that get an index.
    pub platforms: Platforms,
    /// How the indexes are built.
    pub build: BuildOptions,
}

/// Why an image was not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Nothing says what the image runs on.
    #[error("image does not support any platforms")]
    NoPlatforms,
    /// The image is not for this platform.
    #[error("image manifest for {0}: not found")]
    NoManifest(Platform),
    /// A member of the image's index without a platform.
    #[error("manifest should have proper platform")]
    PlatformMissing,
    /// Neither a manifest nor an index.
    #[error("{digest} is no image: media type {media_type:?}")]
    NoImage {
        /// What was to be converted.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The store does not give or take something.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A document is not what it should be.
    #[error("{digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<DocumentError>,
    },
    /// An index could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Converts the image that `target` describes; everything new is put into the store and labelled so
/// that it stays as long as the result does. The result's descriptor is returned.
pub async fn convert(
    store: &Arc<dyn ContentStore>,
    target: &Descriptor,
    options: &ConvertOptions,
    observer: &Arc<dyn Observer>,
) -> Result<Descriptor, ConvertError> {
    let conversion = Conversion {
        store: Arc::clone(store),
    };
    let (base, default) = conversion.base(target).await?;
    let all = conversion.platforms(&base).await?;
    if all.is_empty() {
        return Err(ConvertError::NoPlatforms);
    }
    let wanted = match &options.platforms {
        Platforms::Default => vec![default.unwrap_or_else(Platform::host)],
        Platforms::All => all,
        Platforms::Listed(listed) => listed.clone(),
    };
    let mut parts = Vec::new();
    for platform in distinct(wanted) {
        parts.push(conversion.part(&base, platform).await?);
    }
    let manifests: Vec<Manifest> = parts.iter().map(|part| part.manifest.clone()).collect();
    let built = builder::build(store, &manifests, options.build, observer).await?;
    let mut indexed = Vec::new();
    for (part, index) in parts.into_iter().zip(built) {
        match index {
            Ok(index) => indexed.push((part, index)),
            Err(BuildError::Empty) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if indexed.is_empty() {
        return Err(BuildError::Empty.into());
    }
    conversion.bind(base, indexed).await
}

/// The first of each group that means the same.
fn distinct(platforms: Vec<Platform>) -> Vec<Platform> {
    let mut kept: Vec<Platform> = Vec::new();
    for platform in platforms {
        if !kept.iter().any(|known| platform.matches(known)) {
            kept.push(platform);
        }
    }
    kept
}

/// What a platform of the source is made of.
struct Part {
    /// As it was asked for.
    platform: Platform,
    /// The source's manifest for it.
    digest: Digest,
    manifest: Manifest,
}

struct Conversion {
    store: Arc<dyn ContentStore>,
}

impl Conversion {
    /// The index to start from, and the platform that a single manifest is for.
    async fn base(
        &self,
        target: &Descriptor,
    ) -> Result<(ImageIndex, Option<Platform>), ConvertError> {
        if media_type::is_index(&target.media_type) {
            let mut base: ImageIndex = self.document(target).await?;
            media_type::OCI_INDEX.clone_into(&mut base.media_type);
            return Ok((base, None));
        }
        if !media_type::is_manifest(&target.media_type) {
            let (digest, media_type) = (target.digest, target.media_type.clone());
            return Err(ConvertError::NoImage { digest, media_type });
        }
        let platform = match &target.platform {
            Some(platform) if platform.is_unknown() => return Err(ConvertError::NoPlatforms),
            Some(platform) => platform.clone(),
            None => self.config_platform(target).await?,
        };
        let target = Descriptor {
            platform: Some(platform.clone()),
            ..target.clone()
        };
        Ok((ImageIndex::new(vec![target]), Some(platform)))
    }

    /// All platforms of an index, in order. Members without one are asked for it.
    async fn platforms(&self, base: &ImageIndex) -> Result<Vec<Platform>, ConvertError> {
        let mut platforms = Vec::new();
        for member in base.manifests() {
            match &member.platform {
                Some(platform) if platform.is_unknown() => {}
                Some(platform) => platforms.push(platform.clone()),
                None if media_type::is_manifest(&member.media_type) => {
                    platforms.push(self.config_platform(member).await?);
                }
                None => {}
            }
        }
        Ok(platforms)
    }

    /// The platform that a manifest's configuration states, normalised.
    async fn config_platform(&self, target: &Descriptor) -> Result<Platform, ConvertError> {
        let manifest: Manifest = self.document(target).await?;
        let config: ImageConfig = self.document(&manifest.config).await?;
        Ok(config.platform.normalised())
    }

    /// The manifest for a platform: the first that matches.
    async fn part(&self, base: &ImageIndex, platform: Platform) -> Result<Part, ConvertError> {
        for member in base.manifests() {
            let offered = member
                .platform
                .as_ref()
                .ok_or(ConvertError::PlatformMissing)?;
            if platform.matches(offered) {
                let manifest = self.document(member).await?;
                return Ok(Part {
                    platform,
                    digest: member.digest,
                    manifest,
                });
            }
        }
        Err(ConvertError::NoManifest(platform))
    }

    /// Writes the SOCI indexes, the manifests that name them, and the index of all.
    async fn bind(
        &self,
        mut base: ImageIndex,
        indexed: Vec<(Part, SociIndex)>,
    ) -> Result<Descriptor, ConvertError> {
        let mut entries = Vec::new();
        let mut by_manifest = BTreeMap::new();
        for (part, index) in &indexed {
            let descriptor = self.put_soci_index(index).await?;
            by_manifest.insert(part.digest, descriptor.digest);
            entries.push(Descriptor {
                platform: Some(part.platform.clone()),
                artifact_type: ARTIFACT_TYPE_V2.to_owned(),
                ..descriptor
            });
        }
        let mut rewritten = BTreeMap::new();
        let mut members = base.manifests.take().unwrap_or_default();
        for member in &mut members {
            let source = member.digest;
            self.rewrite(member, by_manifest.get(&source)).await?;
            rewritten.entry(source).or_insert(member.digest);
        }
        for (mut entry, (part, _)) in entries.into_iter().zip(&indexed) {
            let manifest = rewritten.get(&part.digest).unwrap_or(&part.digest);
            entry.annotations = [(MANIFEST_DIGEST.to_owned(), manifest.to_string())].into();
            match members
                .iter_mut()
                .find(|member| is_index_for(member, &part.platform))
            {
                Some(old) => *old = entry,
                None => members.push(entry),
            }
        }
        base.manifests = Some(members);
        let labels = references("m.", base.manifests());
        self.put(media_type::OCI_INDEX, json::to_vec(&base), labels)
            .await
    }

    /// Puts a SOCI index and its configuration.
    async fn put_soci_index(&self, index: &SociIndex) -> Result<Descriptor, ConvertError> {
        let config = Descriptor::of(index.version().artifact_type(), CONFIG);
        self.store
            .put(&config, Content::Bytes(Bytes::from_static(CONFIG)))
            .await?;
        let mut labels = references("ztoc.", index.blobs());
        labels.extend(references("config", [&config]));
        self.put(media_type::OCI_MANIFEST, index.to_bytes(), labels)
            .await
    }

    /// Makes a member's manifest an OCI manifest that names its SOCI index, if it has one. Members
    /// that are no manifests, whose manifest is not there, and old SOCI indexes stay as they are.
    async fn rewrite(
        &self,
        member: &mut Descriptor,
        index: Option<&Digest>,
    ) -> Result<(), ConvertError> {
        let is_old_index = member.artifact_type == ARTIFACT_TYPE_V2;
        if index.is_none() && (is_old_index || !media_type::is_manifest(&member.media_type)) {
            return Ok(());
        }
        let mut manifest: Manifest = match self.document(member).await {
            Err(ConvertError::Store(error)) if error.is_not_found() && index.is_none() => {
                return Ok(());
            }
            other => other?,
        };
        media_type::OCI_MANIFEST.clone_into(&mut manifest.media_type);
        media_type::OCI_CONFIG.clone_into(&mut manifest.config.media_type);
        if let Some(index) = index {
            manifest
                .annotations
                .insert(INDEX_DIGEST.to_owned(), index.to_string());
        }
        let mut labels = references("l.", manifest.layers());
        labels.extend(references("config", [&manifest.config]));
        let new = self
            .put(media_type::OCI_MANIFEST, json::to_vec(&manifest), labels)
            .await?;
        member.media_type = new.media_type;
        member.digest = new.digest;
        member.size = new.size;
        member.annotations = manifest.annotations;
        // An embedded copy would be of the old manifest.
        member.data.clear();
        Ok(())
    }

    async fn put(
        &self,
        media_type: &str,
        bytes: Vec<u8>,
        labels: Labels,
    ) -> Result<Descriptor, ConvertError> {
        let descriptor = Descriptor::of(media_type, &bytes);
        self.store
            .put(&descriptor, Content::Bytes(bytes.into()))
            .await?;
        self.store.label(&descriptor.digest, &labels).await?;
        Ok(descriptor)
    }

    async fn document<T: manifest::Kind>(&self, from: &Descriptor) -> Result<T, ConvertError> {
        let bytes = self.store.read(&from.digest, MAX_DOCUMENT_BYTES).await?;
        manifest::parse(&bytes, &from.media_type).map_err(|source| ConvertError::Document {
            digest: from.digest,
            source: Box::new(source),
        })
    }
}

fn is_index_for(member: &Descriptor, platform: &Platform) -> bool {
    let offered = member.platform.as_ref();
    member.artifact_type == ARTIFACT_TYPE_V2 && offered.is_some_and(|it| platform.matches(it))
}

/// Labels that keep blobs alive in containerd as long as the labelled one: `<name>` for one blob, or
/// `<name><number>` for a name that ends in a dot.
fn references<'a>(name: &str, blobs: impl IntoIterator<Item = &'a Descriptor>) -> Labels {
    let label = |(number, blob): (usize, &Descriptor)| {
        let number = if name.ends_with('.') {
            number.to_string()
        } else {
            String::new()
        };
        (
            format!("containerd.io/gc.ref.content.{name}{number}"),
            blob.digest.to_string(),
        )
    };
    blobs.into_iter().enumerate().map(label).collect()
}
