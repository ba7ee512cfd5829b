//! Opens the layer of a request: through its index and zTOC, or in one pass over the blob.

use bytes::Bytes;
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::{self, ImageConfig, Manifest};
use soci_oci::media_type;
use soci_ztoc::MAX_ZTOC_SIZE;
use tracing::{debug, info};

use super::after::{After, Found, after};
use super::content::Document;
use super::discover::{Index, discover};
use super::source::{compression, refusal, source_at};
use super::trust::Standing;
use super::verdict::{Reason, Verdict, Way};
use super::{
    Arc, Attempt, ContentError, Discovery, Image, ImageName, Images, Instant, Request, Timed,
    explain, line, took,
};
use crate::layer::{Layer, Lazy, OpenError, Whole};
use crate::store::sources::Origin;
use crate::store::{LayerKey, StoreError};

/// An open layer, and how it was opened.
pub(super) struct Opened {
    pub(super) layer: Arc<Layer>,
    pub(super) verdict: Verdict,
}

/// Why containerd must unpack a layer.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) why: String,
    pub(super) reason: Reason,
}

impl Left {
    pub(super) fn failed(why: String) -> Self {
        let reason = Reason::Failed;
        Self { why, reason }
    }

    /// Converts this to the response, which names the image and the layer.
    pub(super) fn into_attempt(self, request: &Request) -> Attempt {
        let Self { why, reason } = self;
        let why = format!("{}: layer {}: {why}", request.image.text, request.layer);
        Attempt::Left { why, reason }
    }
}

/// Why a layer with a zTOC is not mounted lazily.
enum NotLazy {
    /// The zTOC cannot be used. The layer can be downloaded whole.
    Whole(String),
    /// The layer cannot be read from the registry or kept on the disk.
    Left(String),
}

/// What the image says about the layer.
struct Asked {
    found: Found,
    why: String,
    index: Option<Index>,
    /// The bytes are absent if the store has the layer.
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
    /// Opens the layer of a request as [`after`] decides.
    pub(super) async fn open(&self, image: &Arc<Image>, request: &Request) -> Result<Opened, Left> {
        if request.small {
            return self
                .whole(image, request, None, "smaller than min_layer_size")
                .await;
        }
        let asked = self.ask(image, request).await;
        match after(asked.found) {
            After::Defer => {
                let why = asked.why;
                let reason = if asked.found == Found::NoIndex {
                    request.subject.not_indexed(&why);
                    Reason::NoIndex
                } else {
                    request.subject.not_remote(&why);
                    Reason::Unknown
                };
                Err(Left { why, reason })
            }
            After::Whole => {
                match asked.found {
                    Found::NoZtoc => request.subject.not_indexed(&asked.why),
                    _ => request.subject.not_remote(&asked.why),
                }
                self.whole(image, request, asked.index.as_ref(), &asked.why)
                    .await
            }
            After::Lazy => {
                let index = asked.index.clone();
                let not_lazy = match self.lazy(image, request, asked).await {
                    Ok(opened) => return Ok(opened),
                    Err(not_lazy) => not_lazy,
                };
                match not_lazy {
                    NotLazy::Whole(why) => {
                        request.subject.not_remote(&why);
                        self.whole(image, request, index.as_ref(), &why).await
                    }
                    NotLazy::Left(why) => {
                        request.subject.not_remote(&why);
                        Err(Left::failed(why))
                    }
                }
            }
        }
    }

    /// Finds out what the image provides for the layer, within the timeout. Work that takes longer
    /// continues in the background.
    async fn ask(&self, image: &Arc<Image>, request: &Request) -> Asked {
        let (images, image) = (self.clone(), Arc::clone(image));
        let name = request.image.clone();
        let (layer, subject) = (request.layer, request.subject.clone());
        let mountpoint = request.at.display().to_string();
        let asking = self.0.tasks.spawn(async move {
            let answer = async {
                let index = images.find_index(&image, &name, &subject, &mountpoint);
                match index.await {
                    Ok(Discovery::Found(index)) => {
                        images.find_ztoc(&image, &name, layer, index).await
                    }
                    Ok(Discovery::None(why)) => Asked::unindexed(Found::NoIndex, why),
                    Err(error) => {
                        let why = format!("unable to fetch SOCI artifacts: {}", explain(&error));
                        Asked::unindexed(Found::Unreachable, why)
                    }
                }
            };
            // Keep bandwidth free, because a container start waits for this.
            let hold = || images.0.parts.layers.hold_back();
            line::while_it_comes(hold, &image.came, answer).await
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
            let began = Instant::now();
            match manifest {
                Ok(manifest) => discover(name, manifest, content, modes, subject, mountpoint)
                    .await
                    .inspect(|found| {
                        if let Discovery::Found(index) = found {
                            took(Timed::IndexFetch, &index.digest, began);
                        }
                    }),
                Err(Unread::Content(error)) if !error.is_final() => Err(error),
                Err(error) => Ok(Discovery::None(explain(&error))),
            }
        });
        let discovery = discovery.await.cloned();
        if discovery.is_ok() {
            image.came.notify_waiters();
        }
        discovery
    }

    /// Reads the image's manifest once.
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
            image.came.notify_waiters();
            Ok(manifest::parse(&bytes, media_type::OCI_MANIFEST)?)
        });
        read.await
    }

    /// Reads the layer's zTOC, and starts preparing the other layers.
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
            self.ztoc(image, name, &layer, &ztoc).await.map(Some)
        };
        self.make_ready(image, name, &index);
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

    /// Reads a zTOC of a layer, once.
    pub(super) async fn ztoc(
        &self,
        image: &Image,
        name: &ImageName,
        layer: &Digest,
        ztoc: &Descriptor,
    ) -> Result<Bytes, ContentError> {
        let cell = Arc::clone(image.ztocs.lock().entry(ztoc.digest).or_default());
        let content = &self.0.parts.content;
        let bytes = cell.get_or_try_init(|| async {
            let began = Instant::now();
            let came = || image.came.notify_waiters();
            let bytes = content.blob(name.place(), ztoc, MAX_ZTOC_SIZE, came);
            bytes
                .await
                .inspect(|_| took(Timed::ZtocFetch, layer, began))
        });
        bytes.await.cloned()
    }

    pub(super) fn is_stored(&self, layer: Digest, ztoc: &Descriptor) -> bool {
        let key = LayerKey {
            layer,
            ztoc: Some(ztoc.digest),
        };
        self.0.parts.layers.store().number(&key).is_some()
    }

    async fn lazy(
        &self,
        image: &Arc<Image>,
        request: &Request,
        asked: Asked,
    ) -> Result<Opened, NotLazy> {
        let Asked {
            why, index, ztoc, ..
        } = asked;
        let left = NotLazy::Left;
        let Some((ztoc, bytes)) = ztoc else {
            return Err(left(why));
        };
        let standing = self.standing(request.layer, Some(ztoc.digest), &request.expected);
        match &standing {
            Standing::Verified | Standing::Claimed => {}
            Standing::Foreign(why) => return Err(left(why.clone())),
            Standing::False(why) => return Err(NotLazy::Whole(why.clone())),
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
                // The store has its own copy now.
                image.ztocs.lock().remove(&digest);
                self.prefetch(&request.image, index.as_ref(), &layer);
                let verdict = Verdict {
                    way: Way::Lazy,
                    why: format!("{why}; {standing}"),
                };
                Ok(Opened { layer, verdict })
            }
            Err(error) if is_bad_ztoc(&error) => {
                // The bytes may have been damaged in transit: the next request downloads them
                // again.
                image.ztocs.lock().remove(&digest);
                Err(NotLazy::Whole(explain(&error)))
            }
            Err(error) => Err(left(explain(&error))),
        }
    }

    /// Downloads a layer in one pass.
    async fn whole(
        &self,
        image: &Arc<Image>,
        request: &Request,
        index: Option<&Index>,
        why: &str,
    ) -> Result<Opened, Left> {
        let left = Left::failed;
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
        // A pull that was cancelled does not download the rest of the layer.
        let opened = tokio::select! {
            opened = self.0.parts.layers.stream_whole(whole) => opened,
            () = request.gone.cancelled() => return Err(left("the client went away".to_owned())),
        };
        let layer = opened.map_err(|error| left(explain(&error)))?;
        let verdict = Verdict {
            way: Way::Whole,
            why: why.to_owned(),
        };
        Ok(Opened { layer, verdict })
    }

    /// The layer's descriptor in the manifest, and its position.
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

    /// The diff-ID (SHA-256 of the tar) of the layer at this position, from the image's
    /// configuration.
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
        let bytes = content.document(name.place(), Document::Blob, wanted).await;
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

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("image manifest")]
    Document(#[from] manifest::DocumentError),
}

/// Whether the zTOC is invalid, so that the layer can be opened without it.
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

pub(super) fn origin(image: &ImageName, index: Option<&Index>) -> Origin {
    Origin {
        reference: image.text.clone(),
        manifest: image.manifest.to_string(),
        index: index.map(|index| index.digest.to_string()),
        found: index
            .map(|index| index.found.to_owned())
            .unwrap_or_default(),
    }
}
