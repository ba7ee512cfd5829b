//! Converts an image to one that contains its own SOCI indexes.
//!
//! The result is an OCI index with the members of the source, whose manifests now name their SOCI
//! index, followed by the SOCI indexes. The binding is mutual: the descriptor of an index names its
//! manifest. Layers, configurations and the media types of layers are unchanged.
//!
//! The result depends only on the source and the options, so repeating a conversion, or converting
//! its result, gives the same digests. As in the reference, other manifests such as attestations
//! are re-encoded. Unlike the reference, an old SOCI index that is not replaced is kept as it is.

use std::collections::{BTreeMap, HashSet};

use soci_oci::{Descriptor, Digest, Manifest, Platform, json, media_type};
use soci_store::StoreError;

use crate::artifacts::{ArtifactsError, Entry};
use crate::blobs::{put, put_index, references};
use crate::builder::{self, BuildContext, BuildError, BuildOptions, Parts};
use crate::image::{Image, ImageError, Part, Platforms};
use crate::model::{ARTIFACT_TYPE_V2, INDEX_DIGEST, MANIFEST_DIGEST, SociIndex, Version};
use crate::records::{self, IndexOf};

/// Options of a conversion.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions {
    /// The platforms that get an index.
    pub platforms: Platforms,
    /// Options for building the indexes.
    pub build: BuildOptions,
    /// Whether to return an image without any layer to index unchanged instead of failing.
    pub allow_empty: bool,
}

/// Why an image was not converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The source is not a valid image for these platforms.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A store operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An index could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The results could not be recorded.
    #[error(transparent)]
    Records(#[from] ArtifactsError),
}

/// A converted image.
#[derive(Debug, Clone)]
pub struct Converted {
    /// The new image, or the source if there was nothing to index.
    pub image: Descriptor,
    /// The result for each manifest of the requested platforms, in order.
    pub platforms: Vec<ConvertedPlatform>,
}

/// The result for one manifest; see [`Converted`].
#[derive(Debug, Clone)]
pub struct ConvertedPlatform {
    /// The requested platform.
    pub platform: Platform,
    /// The source's manifest.
    pub source: Digest,
    /// The SOCI index and the manifest that names it. `None` if no layer has a zTOC.
    pub index: Option<BoundIndex>,
    /// The results for its layers.
    pub parts: Parts,
}

/// A SOCI index and its manifest.
#[derive(Debug, Clone)]
pub struct BoundIndex {
    /// The SOCI index.
    pub index: Descriptor,
    /// The manifest that names it.
    pub manifest: Digest,
}

/// Converts the image that `target` describes. New blobs are stored with labels that protect them
/// as long as the result exists.
pub async fn convert(
    context: &BuildContext,
    target: &Descriptor,
    options: &ConvertOptions,
) -> Result<Converted, ConvertError> {
    let mut image = Image::open(&context.source, target).await?;
    media_type::OCI_INDEX.clone_into(&mut image.index.media_type);
    let wanted = image.wanted(&options.platforms).await?;
    let sources = image.parts(wanted).await?;
    image
        .check_configs(&sources, context.observer.as_ref())
        .await?;
    let manifests: Vec<Manifest> = sources.iter().map(|part| part.manifest.clone()).collect();
    let built = builder::build(context, &manifests, &options.build).await?;
    let mut indexed = Vec::new();
    for (number, (source, parts)) in sources.iter().zip(&built).enumerate() {
        if let Some(index) = parts.index(Version::V2, None) {
            indexed.push(Indexed {
                number,
                source,
                index,
            });
        }
    }
    let mut bound = BTreeMap::new();
    let result = if !indexed.is_empty() {
        let (result, indexes) = Binding { context, image }.bind(&indexed).await?;
        bound.extend(indexes);
        result
    } else if options.allow_empty {
        target.clone()
    } else {
        return Err(Parts::nothing(&built).into());
    };
    let platform = |(number, (source, parts)): (usize, (Part, Parts))| ConvertedPlatform {
        platform: source.platform,
        source: source.descriptor.digest,
        index: bound.remove(&number),
        parts,
    };
    let platforms = sources.into_iter().zip(built).enumerate();
    Ok(Converted {
        image: result,
        platforms: platforms.map(platform).collect(),
    })
}

/// A platform with an index.
struct Indexed<'a> {
    /// Its position in the requested platforms.
    number: usize,
    source: &'a Part,
    index: SociIndex,
}

type Bound = Vec<(usize, BoundIndex)>;

/// Writes the SOCI indexes, the manifests that name them, and the image index.
struct Binding<'a> {
    context: &'a BuildContext,
    image: Image,
}

impl Binding<'_> {
    async fn bind(self, indexed: &[Indexed<'_>]) -> Result<(Descriptor, Bound), ConvertError> {
        let mut entries = Vec::new();
        let mut by_manifest = BTreeMap::new();
        for Indexed { source, index, .. } in indexed {
            let descriptor = put_index(&self.context.store, index).await?;
            by_manifest.insert(source.descriptor.digest, descriptor.digest);
            entries.push(Descriptor {
                platform: Some(source.platform.clone()),
                ..descriptor
            });
        }
        let mut rewritten = BTreeMap::new();
        let mut base = self.image.index.clone();
        let mut members = base.manifests.take().unwrap_or_default();
        for member in &mut members {
            let source = member.digest;
            self.rewrite(member, by_manifest.get(&source)).await?;
            rewritten.entry(source).or_insert(member.digest);
        }
        let mut bound = Bound::new();
        for (mut entry, Indexed { number, source, .. }) in entries.into_iter().zip(indexed) {
            let source_digest = source.descriptor.digest;
            let manifest = *rewritten.get(&source_digest).unwrap_or(&source_digest);
            entry.annotations = [(MANIFEST_DIGEST.to_owned(), manifest.to_string())].into();
            let index = entry.clone();
            bound.push((*number, BoundIndex { index, manifest }));
            let is_own = |digest: &Digest| *digest == source_digest || *digest == manifest;
            let named = rewritten.iter().flat_map(|(old, new)| [old, new]);
            let others: HashSet<String> = named
                .filter(|digest| !is_own(digest))
                .map(Digest::to_string)
                .collect();
            // Another manifest of the same platform keeps its index.
            let is_replaced = |member: &&mut Descriptor| {
                let stated = member.annotation(MANIFEST_DIGEST).unwrap_or_default();
                is_index_for(member, &source.platform) && !others.contains(stated)
            };
            match members.iter_mut().find(is_replaced) {
                Some(old) => *old = entry,
                None => members.push(entry),
            }
        }
        let labels = references("m.", &members);
        base.manifests = Some(members);
        let store = &self.context.store;
        let image = put(store, media_type::OCI_INDEX, json::to_vec(&base), labels).await?;
        let sources = rewritten.into_iter().map(|(source, new)| (new, source));
        let entries = entries_of(&image.digest, base.manifests(), &sources.collect());
        records::write(self.context.records.as_ref(), entries).await?;
        Ok((image, bound))
    }

    /// Rewrites a member's manifest as an OCI manifest, which names its SOCI index if there is one.
    /// Without a SOCI index, members that are not manifests, missing manifests and old SOCI indexes
    /// are unchanged.
    async fn rewrite(
        &self,
        member: &mut Descriptor,
        index: Option<&Digest>,
    ) -> Result<(), ConvertError> {
        let is_old_index = member.artifact_type == ARTIFACT_TYPE_V2;
        if index.is_none() && (is_old_index || !media_type::is_manifest(&member.media_type)) {
            return Ok(());
        }
        let mut manifest: Manifest = match self.image.document(member).await {
            Err(ImageError::Store(error)) if error.is_not_found() && index.is_none() => {
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
        let bytes = json::to_vec(&manifest);
        let new = put(&self.context.store, media_type::OCI_MANIFEST, bytes, labels).await?;
        member.media_type = new.media_type;
        member.digest = new.digest;
        member.size = new.size;
        member.annotations = manifest.annotations;
        // Embedded data would be the old manifest.
        member.data.clear();
        Ok(())
    }
}

fn is_index_for(member: &Descriptor, platform: &Platform) -> bool {
    let offered = member.platform.as_ref();
    member.artifact_type == ARTIFACT_TYPE_V2 && offered.is_some_and(|it| platform.matches(it))
}

/// The records for the indexes of a new image, whose manifests were made from `sources`. If two
/// platforms share an index, only the last one is recorded. Old indexes that are kept now belong to
/// the new image.
fn entries_of(
    image: &Digest,
    members: &[Descriptor],
    sources: &BTreeMap<Digest, Digest>,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    for member in members {
        if member.artifact_type != ARTIFACT_TYPE_V2 {
            continue;
        }
        let Some(platform) = &member.platform else {
            continue;
        };
        let named = member.annotation(MANIFEST_DIGEST);
        let Some(manifest) = named.and_then(|text| text.parse::<Digest>().ok()) else {
            continue;
        };
        let of = IndexOf {
            version: Version::V2,
            built_for: sources.get(&manifest).unwrap_or(&manifest),
            manifest: &manifest,
            image,
            platform: platform.to_string(),
        };
        entries.push(records::index(member.digest, member.size, of));
    }
    entries
}
