//! An image in a store as a list of members with platforms.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use soci_oci::manifest::{self, DocumentError, MAX_DOCUMENT_BYTES};
use soci_oci::{Descriptor, Digest, ImageConfig, ImageIndex, Manifest, Platform, media_type};
use soci_store::{ContentStore, DocumentBudget, StoreError};

use crate::builder::{Note, Observer};
use crate::model::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2, MANIFEST_DIGEST};

/// The platforms of an image that get an index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Platforms {
    /// The host's platform, or the only platform of the image.
    #[default]
    Default,
    /// Every platform of the image.
    All,
    /// The listed platforms.
    Listed(Vec<Platform>),
}

/// Why no index can be built for an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The image does not state any platform.
    #[error("image does not support any platforms")]
    NoPlatforms,
    /// The image has no manifest for a platform.
    #[error("image manifest for {platform}: not found{}", Offered(.offered))]
    NoManifest {
        /// The platform. Boxed to keep the error small.
        platform: Box<Platform>,
        /// The platforms of the image.
        offered: Vec<Platform>,
    },
    /// A member of the image's index has no platform.
    #[error("manifest should have proper platform")]
    PlatformMissing,
    /// The target is neither a manifest nor an index.
    #[error("{digest} is no image: media type {media_type:?}")]
    NoImage {
        /// The digest of the target.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The configuration of a manifest is missing.
    #[error("config {config} of manifest {manifest}: not found")]
    NoConfig {
        /// The digest of the manifest. Boxed to keep the error small.
        manifest: Box<Digest>,
        /// The digest of the configuration.
        config: Digest,
    },
    /// A store operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A document is invalid.
    #[error("{digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// Why it is invalid.
        #[source]
        source: Box<DocumentError>,
    },
}

/// The end of a message about a missing platform: the platforms that there are.
pub(crate) struct Offered<'a>(pub(crate) &'a [Platform]);

impl fmt::Display for Offered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            return Ok(());
        }
        let names = names.join(", ");
        write!(f, "; the image has {names} (select with --platform or -p)")
    }
}

/// A manifest of a requested platform.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The requested platform.
    pub(crate) platform: Platform,
    /// The descriptor of the manifest.
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
    /// Size of the manifest in bytes. The descriptor may state another size.
    bytes: u64,
}

/// An image index, or a single manifest treated as an index with one member.
pub(crate) struct Image {
    pub(crate) store: Arc<dyn ContentStore>,
    root: Digest,
    pub(crate) index: ImageIndex,
    /// The platform if the image is a single manifest.
    pub(crate) only: Option<Platform>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// Returns the manifests of an image for these platforms, or all of them. Each manifest is listed
/// once, whether or not it is in the store. A platform can have several.
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
        for member in image.members(&platform)? {
            if !found.iter().any(|known| known.digest == member.digest) {
                found.push(member.clone());
            }
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

    /// Returns all platforms, in order. The platform of a member without one is read from its
    /// configuration. SOCI indexes and attestations are skipped.
    pub(crate) async fn platforms(&self) -> Result<Vec<Platform>, ImageError> {
        let mut platforms = Vec::new();
        for member in self.index.manifests() {
            if is_index(member) {
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

    /// Returns the selected platforms without duplicates.
    pub(crate) async fn wanted(&self, platforms: &Platforms) -> Result<Vec<Platform>, ImageError> {
        let all = self.platforms().await?;
        Ok(distinct(match platforms {
            Platforms::Default => vec![self.only.clone().unwrap_or_else(Platform::host)],
            Platforms::All => all,
            Platforms::Listed(listed) => listed.clone(),
        }))
    }

    /// Reads the manifests for these platforms, up to the limit for documents in memory.
    pub(crate) async fn parts(&self, platforms: Vec<Platform>) -> Result<Vec<Part>, ImageError> {
        let mut budget = DocumentBudget::new(self.root);
        let mut parts = Vec::new();
        for platform in platforms {
            for part in self.parts_of(&platform).await? {
                budget.take(part.bytes)?;
                parts.push(part);
            }
        }
        Ok(parts)
    }

    /// Reads the manifests for a platform that are in the store. Fails if there is none.
    pub(crate) async fn parts_of(&self, platform: &Platform) -> Result<Vec<Part>, ImageError> {
        let (mut parts, mut missing) = (Vec::new(), None);
        for descriptor in self.members(platform)? {
            let bytes = match self.read(descriptor).await {
                Ok(bytes) => bytes,
                Err(error) if error.is_not_found() => {
                    missing.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            parts.push(Part {
                platform: platform.clone(),
                manifest: parse(descriptor, &bytes)?,
                bytes: bytes.len() as u64,
                descriptor: descriptor.clone(),
            });
        }
        match missing {
            Some(error) if parts.is_empty() => Err(error.into()),
            _ => Ok(parts),
        }
    }

    /// Requires the configurations of these manifests, and warns if containerd would refuse one.
    pub(crate) async fn check_configs(
        &self,
        parts: &[Part],
        observer: &dyn Observer,
    ) -> Result<(), ImageError> {
        for Part {
            descriptor,
            manifest,
            ..
        } in parts
        {
            let config = &manifest.config;
            let bytes = match self.read(config).await {
                // No image configuration, but something that tools may know.
                Err(StoreError::TooLarge { .. }) => continue,
                read => read.map_err(no_config(descriptor, config))?,
            };
            if !media_type::is_config(&config.media_type) {
                continue;
            }
            let Ok(read) = parse::<ImageConfig>(config, &bytes) else {
                continue;
            };
            let is_layer = |layer: &&Descriptor| media_type::is_layer(&layer.media_type);
            let layers = manifest.layers().iter().filter(is_layer).count();
            let diff_ids = read.rootfs.diff_ids.len();
            if diff_ids != layers {
                observer.note(&Note::DiffIds {
                    manifest: descriptor.digest,
                    diff_ids,
                    layers,
                });
            }
        }
        Ok(())
    }

    /// The descriptors of the manifests for a platform: the first one that matches, and others of
    /// exactly its platform, such as a copy of the image with another compression.
    fn members(&self, platform: &Platform) -> Result<Vec<&Descriptor>, ImageError> {
        let first = self.member(platform)?;
        let of = |member: &Descriptor| member.platform.as_ref().map(Platform::normalised);
        let own = of(first);
        let mut members = vec![first];
        for member in self.index.manifests() {
            let is_other = media_type::is_manifest(&member.media_type)
                && member.artifact_type.is_empty()
                && member.annotation(MANIFEST_DIGEST).is_none()
                && members.iter().all(|known| known.digest != member.digest);
            if is_other && of(member) == own {
                members.push(member);
            }
        }
        Ok(members)
    }

    /// The first manifest that matches a platform. It may be missing from the store.
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
        Err(ImageError::NoManifest {
            platform: Box::new(platform.clone()),
            offered: self.offered(),
        })
    }

    /// The stated platforms of the manifests, without repetitions.
    fn offered(&self) -> Vec<Platform> {
        let members = self.index.manifests().iter();
        let manifests = members.filter(|member| !is_index(member));
        let stated = manifests.filter_map(|member| member.platform.as_ref());
        let mut offered: Vec<Platform> = Vec::new();
        for platform in stated.filter(|platform| !platform.is_unknown()) {
            if !offered.contains(platform) {
                offered.push(platform.clone());
            }
        }
        offered
    }

    /// The normalized platform in the configuration of a manifest.
    async fn config_platform(&self, target: &Descriptor) -> Result<Platform, ImageError> {
        let manifest: Manifest = self.document(target).await?;
        let config = &manifest.config;
        let bytes = self.read(config).await;
        let bytes = bytes.map_err(no_config(target, config))?;
        let config: ImageConfig = parse(config, &bytes)?;
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

/// Whether a member of an image index is a SOCI index.
fn is_index(member: &Descriptor) -> bool {
    matches!(&*member.artifact_type, ARTIFACT_TYPE_V1 | ARTIFACT_TYPE_V2)
}

/// Names the configuration and its manifest if the configuration is missing.
fn no_config(manifest: &Descriptor, config: &Descriptor) -> impl FnOnce(StoreError) -> ImageError {
    let (manifest, config) = (Box::new(manifest.digest), config.digest);
    move |error| match error.is_not_found() {
        true => ImageError::NoConfig { manifest, config },
        false => error.into(),
    }
}

fn parse<T: manifest::Kind>(from: &Descriptor, bytes: &[u8]) -> Result<T, ImageError> {
    manifest::parse(bytes, &from.media_type).map_err(|source| ImageError::Document {
        digest: from.digest,
        source: Box::new(source),
    })
}

/// Removes platforms that match an earlier one.
fn distinct(platforms: Vec<Platform>) -> Vec<Platform> {
    let mut kept: Vec<Platform> = Vec::new();
    for platform in platforms {
        if !kept.iter().any(|known| platform.matches(known)) {
            kept.push(platform);
        }
    }
    kept
}
