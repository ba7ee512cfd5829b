//! From a request to an open layer: the index, the zTOC, or one pass over the blob.

use std::time::Duration;

use bytes::Bytes;
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::{self, ImageConfig, Manifest};
use soci_oci::media_type::{self, LayerCompression};
use soci_oci::reference::ImageRef;
use soci_oci::registry::Registry;
use soci_ztoc::{Compression, MAX_ZTOC_SIZE};
use tracing::{debug, info};

use super::after::{After, Found, after};
use super::content::Document;
use super::discover::{Index, discover};
use super::trust::Standing;
use super::verdict::{Verdict, Way};
use super::{Arc, Attempt, ContentError, Discovery, Image, ImageName, Images, Request, explain};
use crate::fetch::Source;
use crate::layer::{Layer, Lazy, OpenError, Whole};
use crate::store::sources::Origin;
use crate::store::{LayerKey, StoreError};
use crate::sync::atomic::Ordering;

/// Bytes of zTOCs that are fetched before they are asked for: they take disk until then. Those of a large image (30 GB) have
/// about half of it.
const AHEAD: u64 = 256 << 20;

/// How long the first byte of an image's layers is waited for before they are mounted all the same.
const PROBE: Duration = Duration::from_secs(2);

/// First bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// An open layer, and how it was got.
pub(super) struct Opened {
    pub(super) layer: Arc<Layer>,
    pub(super) verdict: Verdict,
    /// The image has an index.
    pub(super) indexed: bool,
}

/// Why a layer is left to containerd.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) why: String,
    /// The image has an index.
    pub(super) indexed: bool,
}

impl Left {
    /// The answer to the request, naming image and layer.
    pub(super) fn into_attempt(self, request: &Request) -> Attempt {
        let Self { why, indexed } = self;
        let why = format!("{}: layer {}: {why}", request.image.text, request.layer);
        Attempt::Left { why, indexed }
    }
}

/// What the image says about the layer.
struct Asked {
    found: Found,
    why: String,
    index: Option<Index>,
    /// Without bytes where the store has the layer.
    ztoc: Option<(Descriptor, Option<Bytes>)>,
}

impl Asked {
    fn unindexed(found: Found, why: String) -> Self {
        Self {
            found,
            why,
            index: None,
            ztoc: None,
        }
    }
}

impl Images {
    /// Opens the layer of a request in the way that the plan says.
    pub(super) async fn open(&self, image: &Arc<Image>, request: &Request) -> Result<Opened, Left> {
        if request.small {
            return self
                .whole(image, request, None, "smaller than min_layer_size")
                .await;
        }
        let asked = self.ask(image, request).await;
        match after(asked.found) {
            After::Defer => {
                request.subject.not_remote(&asked.why);
                Err(Left {
                    why: asked.why,
                    indexed: false,
                })
            }
            After::Whole => {
                request.subject.not_remote(&asked.why);
                self.whole(image, request, asked.index.as_ref(), &asked.why)
                    .await
            }
            After::Lazy => self.lazy(image, request, asked).await,
        }
    }

    /// Asks the image about the layer, for as long as a request may wait. What takes longer goes on.
    async fn ask(&self, image: &Arc<Image>, request: &Request) -> Asked {
        let (images, image) = (self.clone(), Arc::clone(image));
        let name = request.image.clone();
        let (layer, subject) = (request.layer, request.subject.clone());
        let mountpoint = request.at.display().to_string();
        let asking = self.0.tasks.spawn(async move {
            // A start waits for this, and it does not go through the scheduler.
            let _line = images.0.parts.layers.hold_back();
            let answer = images
                .find_index(&image, &name, &subject, &mountpoint)
                .await;
            match answer {
                Ok(Discovery::Found(index)) => images.find_ztoc(&image, &name, layer, index).await,
                Ok(Discovery::None(why)) => Asked::unindexed(Found::NoIndex, why),
                Err(error) => {
                    let why = format!("unable to fetch SOCI artifacts: {}", explain(&error));
                    Asked::unindexed(Found::Unreachable, why)
                }
            }
        });
        match tokio::time::timeout(self.0.options.patience, asking).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(lost)) => Asked::unindexed(Found::Unreachable, lost.to_string()),
            Err(_) => {
                let layer = request.layer;
                info!(
                    layer = layer.to_string(),
                    "timeout waiting for layer to resolve"
                );
                let why = format!("timeout waiting for layer {layer} to resolve");
                Asked::unindexed(Found::Unreachable, why)
            }
        }
    }

    async fn find_index(
        &self,
        image: &Image,
        name: &ImageName,
        subject: &super::Subject,
        mountpoint: &str,
    ) -> Result<Discovery, ContentError> {
        let modes = self.0.options.modes;
        let manifest = self.manifest(image, name).await;
        let content = &self.0.parts.content;
        let discovery = image.discovery.get_or_try_init(|| async {
            match manifest {
                Ok(manifest) => discover(name, manifest, content, modes, subject, mountpoint).await,
                Err(Unread::Content(error)) if !error.is_final() => Err(error),
                Err(error) => Ok(Discovery::None(explain(&error))),
            }
        });
        discovery.await.cloned()
    }

    /// The image's manifest, read once.
    async fn manifest<'a>(
        &self,
        image: &'a Image,
        name: &ImageName,
    ) -> Result<&'a Manifest, Unread> {
        let read = image.manifest.get_or_try_init(|| async {
            let wanted = Descriptor::new(media_type::OCI_MANIFEST, name.manifest, 0);
            let content = &self.0.parts.content;
            let bytes = content
                .document(name.place(), Document::Manifest, &wanted)
                .await?;
            Ok(manifest::parse(&bytes, media_type::OCI_MANIFEST)?)
        });
        read.await
    }

    /// The layer's zTOC; those of the other layers are fetched behind it.
    async fn find_ztoc(
        &self,
        image: &Arc<Image>,
        name: &ImageName,
        layer: Digest,
        index: Index,
    ) -> Asked {
        let Some(ztoc) = index.ztocs.get(&layer).cloned() else {
            info!(
                layerDigest = layer.to_string(),
                image = name.text,
                "skipping mounting layer as FUSE mount: no ztoc for layer"
            );
            let why = "no ztoc for layer".to_owned();
            return Asked {
                found: Found::NoZtoc,
                why,
                index: Some(index),
                ztoc: None,
            };
        };
        let bytes = if self.is_stored(layer, &ztoc) {
            Ok(None)
        } else {
            self.ztoc(image, name, &ztoc).await.map(Some)
        };
        self.fetch_ahead(image, name, &index);
        match bytes {
            Ok(bytes) => Asked {
                found: Found::Ztoc,
                why: format!("index {} {}", index.digest, index.found),
                index: Some(index),
                ztoc: Some((ztoc, bytes)),
            },
            Err(error) => {
                let why = format!("zTOC {}: {}", ztoc.digest, explain(&error));
                let found = if error.is_final() {
                    Found::BadZtoc
                } else {
                    Found::Unreachable
                };
                Asked {
                    found,
                    why,
                    index: Some(index),
                    ztoc: None,
                }
            }
        }
    }

    async fn ztoc(
        &self,
        image: &Image,
        name: &ImageName,
        ztoc: &Descriptor,
    ) -> Result<Bytes, ContentError> {
        let cell = Arc::clone(image.ztocs.lock().entry(ztoc.digest).or_default());
        let content = &self.0.parts.content;
        let bytes = cell.get_or_try_init(|| content.blob(name.place(), ztoc, MAX_ZTOC_SIZE));
        bytes.await.cloned()
    }

    fn is_stored(&self, layer: Digest, ztoc: &Descriptor) -> bool {
        let key = LayerKey {
            layer,
            ztoc: Some(ztoc.digest),
        };
        self.0.parts.layers.store().number(&key).is_some()
    }

    /// Fetches the zTOCs of all layers, so many at once as configured. Failures are left to who needs them.
    fn fetch_ahead(&self, image: &Arc<Image>, name: &ImageName, index: &Index) {
        if image.ahead.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(manifest) = image.manifest.get() else {
            return;
        };
        for (layer, ztoc) in worth_ahead(manifest, index) {
            if self.is_stored(layer, ztoc) || image.ztocs.lock().contains_key(&ztoc.digest) {
                continue;
            }
            let (images, image) = (self.clone(), Arc::clone(image));
            let (name, ztoc) = (name.clone(), ztoc.clone());
            let ahead = Arc::clone(&self.0.ahead);
            self.0.tasks.spawn(async move {
                let Ok(_permit) = ahead.acquire().await else {
                    return;
                };
                if let Err(error) = images.ztoc(&image, &name, &ztoc).await {
                    let (digest, error) = (ztoc.digest.to_string(), explain(&error));
                    debug!(digest, error, "zTOC not fetched ahead");
                }
            });
        }
    }

    async fn lazy(
        &self,
        image: &Arc<Image>,
        request: &Request,
        asked: Asked,
    ) -> Result<Opened, Left> {
        let Asked {
            why, index, ztoc, ..
        } = asked;
        let left = |why| Left { why, indexed: true };
        let Some((ztoc, bytes)) = ztoc else {
            return Err(left(why));
        };
        let standing = self.standing(request.layer, Some(ztoc.digest), &request.expected);
        match &standing {
            Standing::Verified | Standing::Claimed => {}
            Standing::Foreign(why) => return Err(left(why.clone())),
            Standing::False(why) => {
                request.subject.not_remote(why);
                return self.whole(image, request, index.as_ref(), why).await;
            }
        }
        let (layer, _) = self.layer(image, request).await.map_err(left)?;
        let registry = &self.0.parts.registry;
        let source = source_at(registry, &request.image.reference, &layer).map_err(left)?;
        let digest = ztoc.digest;
        let lazy = Lazy {
            layer,
            ztoc,
            bytes,
            expected: request.expected,
            origin: origin(&request.image, index.as_ref()),
            source: source.clone(),
        };
        match self.0.parts.layers.open_lazy(lazy).await {
            Ok(layer) => {
                if let Some(refusal) = refusal(image, &layer, &source).await {
                    return Err(left(refusal));
                }
                // The store has its own copy.
                image.ztocs.lock().remove(&digest);
                let verdict = Verdict {
                    way: Way::Lazy,
                    why: format!("{why}; {standing}"),
                };
                Ok(Opened {
                    layer,
                    verdict,
                    indexed: true,
                })
            }
            Err(error) if is_bad_ztoc(&error) => {
                // Perhaps only damaged on the way: the next request fetches it again.
                image.ztocs.lock().remove(&digest);
                let why = explain(&error);
                request.subject.not_remote(&why);
                self.whole(image, request, index.as_ref(), &why).await
            }
            Err(error) => Err(left(explain(&error))),
        }
    }

    /// Fetches a layer in one pass.
    async fn whole(
        &self,
        image: &Arc<Image>,
        request: &Request,
        index: Option<&Index>,
        why: &str,
    ) -> Result<Opened, Left> {
        let indexed = index.is_some();
        let left = |why: String| Left { why, indexed };
        let mountpoint = request.at.display();
        info!("preparing snapshot as local snapshot");
        debug!("preparing local filesystem at mountpoint={mountpoint}");
        let (layer, position) = self.layer(image, request).await.map_err(left)?;
        let diff_id = self
            .diff_id(image, &request.image, position)
            .await
            .map_err(left)?;
        let registry = &self.0.parts.registry;
        let source = source_at(registry, &request.image.reference, &layer).map_err(left)?;
        let compression = compression(&layer, &source).await.map_err(left)?;
        let whole = Whole {
            layer,
            diff_id,
            compression,
            origin: origin(&request.image, index),
            sources: vec![source],
        };
        let opened = self.0.parts.layers.stream_whole(whole).await;
        let layer = opened.map_err(|error| left(explain(&error)))?;
        let verdict = Verdict {
            way: Way::Whole,
            why: why.to_owned(),
        };
        Ok(Opened {
            layer,
            verdict,
            indexed,
        })
    }

    /// The layer as the manifest names it, and its position there.
    async fn layer(&self, image: &Image, request: &Request) -> Result<(Descriptor, usize), String> {
        let manifest = self
            .manifest(image, &request.image)
            .await
            .map_err(|error| explain(&error))?;
        let layers = manifest.layers();
        let position = layers
            .iter()
            .position(|layer| layer.digest == request.layer);
        let position = position.ok_or_else(|| {
            format!(
                "manifest {} does not name the layer",
                request.image.manifest
            )
        })?;
        Ok((layers[position].clone(), position))
    }

    /// SHA-256 of the tar of the layer at this position, by the image's configuration.
    async fn diff_id(
        &self,
        image: &Image,
        name: &ImageName,
        position: usize,
    ) -> Result<Digest, String> {
        let manifest = self
            .manifest(image, name)
            .await
            .map_err(|error| explain(&error))?;
        let content = &self.0.parts.content;
        let wanted = &manifest.config;
        let bytes = content
            .document(name.place(), Document::Config, wanted)
            .await;
        let bytes = bytes.map_err(|error| explain(&error))?;
        let config: ImageConfig =
            manifest::parse(&bytes, &wanted.media_type).map_err(|error| explain(&error))?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers().len() {
            let (layers, ids) = (manifest.layers().len(), diff_ids.len());
            return Err(format!(
                "manifest has {layers} layers, configuration {ids} diff-IDs"
            ));
        }
        Ok(diff_ids[position])
    }
}

/// Why layers of an image cannot be had, asked for its first one only: a container that starts all the same would meet I/O
/// errors, while containerd may know the credentials. A registry that does not answer is no reason: it may come back.
async fn refusal(image: &Image, layer: &Layer, source: &Source) -> Option<String> {
    if layer.is_complete() {
        return None;
    }
    let asked = image.tried.get_or_try_init(|| async {
        let first = async {
            let mut body = source.fetcher.fetch(0..1).await?;
            body.next().await
        };
        match tokio::time::timeout(PROBE, first).await {
            Ok(Err(error)) if error.is_refusal() => Err(format!(
                "{} refuses its layers: {}",
                source.name,
                explain(&error)
            )),
            _ => Ok(()),
        }
    });
    asked.await.err()
}

/// The zTOCs to fetch before they are asked for: of layers of the image, in their order, as far as [`AHEAD`] goes.
fn worth_ahead<'a>(
    manifest: &'a Manifest,
    index: &'a Index,
) -> impl Iterator<Item = (Digest, &'a Descriptor)> {
    let mut left = AHEAD;
    let layers = manifest.layers().iter().map(|layer| layer.digest);
    let ztocs = layers.filter_map(|layer| Some((layer, index.ztocs.get(&layer)?)));
    ztocs.take_while(move |(_, ztoc)| {
        let fits = ztoc.size <= left;
        left = left.saturating_sub(ztoc.size);
        fits
    })
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("image manifest")]
    Document(#[from] manifest::DocumentError),
}

/// Whether a zTOC is at fault, and the layer may be had without it.
fn is_bad_ztoc(error: &OpenError) -> bool {
    matches!(
        error,
        OpenError::Store(
            StoreError::Ztoc { .. }
                | StoreError::ZtocDigest { .. }
                | StoreError::Size { .. }
                | StoreError::Places { .. }
                | StoreError::Span { .. }
        )
    )
}

fn origin(image: &ImageName, index: Option<&Index>) -> Origin {
    Origin {
        reference: image.text.clone(),
        manifest: image.manifest.to_string(),
        index: index.map(|index| index.digest.to_string()),
        found: index
            .map(|index| index.found.to_owned())
            .unwrap_or_default(),
    }
}

/// The registry as a source of a layer, by the reference as containerd wrote it. Asks nobody.
pub(super) fn source(
    registry: &Registry,
    reference: &str,
    layer: &Descriptor,
) -> Result<Source, String> {
    let reference = ImageRef::from_containerd(reference).map_err(|error| error.to_string())?;
    source_at(registry, &reference, layer)
}

fn source_at(registry: &Registry, image: &ImageRef, layer: &Descriptor) -> Result<Source, String> {
    let fetcher = registry
        .blob(image, layer)
        .map_err(|error| explain(&error))?;
    Ok(Source::new(image.host(), image.repository(), fetcher))
}

/// How a layer is compressed: by its type where that says so, else by its first bytes, as containerd does it.
async fn compression(layer: &Descriptor, source: &Source) -> Result<Compression, String> {
    let unsupported = || format!("media type {}: compression not supported", layer.media_type);
    match media_type::layer_compression(&layer.media_type) {
        Ok(LayerCompression::Gzip) => return Ok(Compression::Gzip),
        Ok(LayerCompression::Uncompressed | LayerCompression::Unknown) => {}
        _ => return Err(unsupported()),
    }
    let length = layer.size.min(ZSTD_MAGIC.len() as u64);
    if length == 0 {
        return Ok(Compression::Plain);
    }
    let body = source
        .fetcher
        .fetch(0..length)
        .await
        .map_err(|error| explain(&error))?;
    let start = body.collect().await.map_err(|error| explain(&error))?;
    if start.starts_with(&ZSTD_MAGIC) {
        Err(unsupported())
    } else {
        Ok(Compression::sniff(&start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ztocs_of_the_images_layers_are_fetched_ahead_and_not_without_end() {
        let [one, two, three, other] = [b"1", b"2", b"3", b"4"].map(|bytes| Digest::sha256(bytes));
        let layer = |digest: Digest| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":9}}"#
            )
        };
        let layers = [one, two, three].map(layer).join(",");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{other}","size":2}},"layers":[{layers}]}}"#,
            media_type::OCI_MANIFEST
        );
        let parsed = manifest::parse(text.as_bytes(), media_type::OCI_MANIFEST);
        let manifest: Manifest = parsed.expect("a manifest");
        let ztoc = |size| Descriptor::new("application/octet-stream", other, size);
        let index = |sizes: [u64; 4]| Index {
            digest: other,
            found: "by hand",
            ztocs: [one, two, three, other]
                .into_iter()
                .zip(sizes.map(ztoc))
                .collect(),
        };
        let ahead = |sizes| {
            let index = index(sizes);
            worth_ahead(&manifest, &index)
                .map(|(layer, _)| layer)
                .collect::<Vec<_>>()
        };
        assert_eq!(ahead([10, 10, 10, 10]), [one, two, three]);
        assert_eq!(ahead([10, AHEAD - 10, 1, 10]), [one, two]);
        assert_eq!(ahead([1 << 30, 10, 10, 10]), []);
    }
}
