//! An image in a store, as what is built from it sees it: members with platforms.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use soci_oci::manifest::{self, DocumentError, MAX_DOCUMENT_BYTES};
use soci_oci::store::{ContentStore, DocumentBudget, StoreError};
use soci_oci::{Descriptor, Digest, ImageConfig, ImageIndex, Manifest, Platform, media_type};

use crate::model::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2};

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

/// Why something is no image that an index can be built for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
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
        /// What was looked at.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The store does not give something.
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
}

/// What a platform of an image is made of.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// As it was asked for.
    pub(crate) platform: Platform,
    /// The image's manifest for it.
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
    /// Bytes of that manifest; a descriptor may state others.
    bytes: u64,
}

/// An image: an index, or one manifest as the only member of one.
pub(crate) struct Image {
    pub(crate) store: Arc<dyn ContentStore>,
    root: Digest,
    pub(crate) index: ImageIndex,
    /// The platform of the only manifest.
    pub(crate) only: Option<Platform>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// The manifests of an image for these platforms, or for all that it has; each once, and whether they are in
/// the store or not.
pub async fn manifests(
    store: &Arc<dyn ContentStore>,
    target: &Descriptor,
    platforms: &[Platform],
) -> Result<Vec<Descriptor>, ImageError> {
    let image = Image::open(store, target).await?;
    let platforms = if platforms.is_empty() {
        image.platforms().await?
    } else {
        platforms.to_vec()
    };
    let mut found: Vec<Descriptor> = Vec::new();
    for platform in platforms {
        let member = image.member(&platform)?;
        if !found.iter().any(|known| known.digest == member.digest) {
            found.push(member.clone());
        }
    }
    Ok(found)
}

impl Image {
    /// Reads the image that `target` describes.
    pub(crate) async fn open(
        store: &Arc<dyn ContentStore>,
        target: &Descriptor,
    ) -> Result<Self, ImageError> {
        let mut image = Self {
            store: Arc::clone(store),
            root: target.digest,
            index: ImageIndex::new(Vec::new()),
            only: None,
        };
        if media_type::is_index(&target.media_type) {
            image.index = image.document(target).await?;
            return Ok(image);
        }
        if !media_type::is_manifest(&target.media_type) {
            let (digest, media_type) = (target.digest, target.media_type.clone());
            return Err(ImageError::NoImage { digest, media_type });
        }
        let platform = match &target.platform {
            Some(platform) if platform.is_unknown() => return Err(ImageError::NoPlatforms),
            Some(platform) => platform.clone(),
            None => image.config_platform(target).await?,
        };
        let target = Descriptor {
            platform: Some(platform.clone()),
            ..target.clone()
        };
        image.index.manifests = Some(vec![target]);
        image.only = Some(platform);
        Ok(image)
    }

    /// All platforms, in order. Members without one are asked for it; SOCI indexes have none of their own.
    pub(crate) async fn platforms(&self) -> Result<Vec<Platform>, ImageError> {
        let mut platforms = Vec::new();
        for member in self.index.manifests() {
            if matches!(&*member.artifact_type, ARTIFACT_TYPE_V1 | ARTIFACT_TYPE_V2) {
                continue;
            }
            match &member.platform {
                Some(platform) if platform.is_unknown() => {}
                Some(platform) => platforms.push(platform.clone()),
                None if media_type::is_manifest(&member.media_type) => {
                    platforms.push(self.config_platform(member).await?);
                }
                None => {}
            }
        }
        if platforms.is_empty() {
            return Err(ImageError::NoPlatforms);
        }
        Ok(platforms)
    }

    /// The platforms that are meant, each once.
    pub(crate) async fn wanted(&self, platforms: &Platforms) -> Result<Vec<Platform>, ImageError> {
        let all = self.platforms().await?;
        Ok(distinct(match platforms {
            Platforms::Default => vec![self.only.clone().unwrap_or_else(Platform::host)],
            Platforms::All => all,
            Platforms::Listed(listed) => listed.clone(),
        }))
    }

    /// The manifests for these platforms, as far as memory may hold them all.
    pub(crate) async fn parts(&self, platforms: Vec<Platform>) -> Result<Vec<Part>, ImageError> {
        let mut budget = DocumentBudget::new(self.root);
        let mut parts = Vec::new();
        for platform in platforms {
            let part = self.part(platform).await?;
            budget.take(part.bytes)?;
            parts.push(part);
        }
        Ok(parts)
    }

    /// The manifest for a platform: the first that matches.
    pub(crate) async fn part(&self, platform: Platform) -> Result<Part, ImageError> {
        let descriptor = self.member(&platform)?.clone();
        let bytes = self.read(&descriptor).await?;
        Ok(Part {
            platform,
            manifest: parse(&descriptor, &bytes)?,
            bytes: bytes.len() as u64,
            descriptor,
        })
    }

    /// What the image says of its manifest for a platform, which need not be in the store.
    fn member(&self, platform: &Platform) -> Result<&Descriptor, ImageError> {
        for member in self.index.manifests() {
            let offered = member
                .platform
                .as_ref()
                .ok_or(ImageError::PlatformMissing)?;
            if platform.matches(offered) {
                return Ok(member);
            }
        }
        Err(ImageError::NoManifest(platform.clone()))
    }

    /// The platform that a manifest's configuration states, normalised.
    async fn config_platform(&self, target: &Descriptor) -> Result<Platform, ImageError> {
        let manifest: Manifest = self.document(target).await?;
        let config: ImageConfig = self.document(&manifest.config).await?;
        Ok(config.platform.normalised())
    }

    pub(crate) async fn document<T: manifest::Kind>(
        &self,
        from: &Descriptor,
    ) -> Result<T, ImageError> {
        parse(from, &self.read(from).await?)
    }

    async fn read(&self, from: &Descriptor) -> Result<Bytes, StoreError> {
        self.store.read(&from.digest, MAX_DOCUMENT_BYTES).await
    }
}

fn parse<T: manifest::Kind>(from: &Descriptor, bytes: &[u8]) -> Result<T, ImageError> {
    manifest::parse(bytes, &from.media_type).map_err(|source| ImageError::Document {
        digest: from.digest,
        source: Box::new(source),
    })
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
