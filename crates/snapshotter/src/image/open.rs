//! Opens the layer of a request: through its index and zTOC, or in one pass over the blob.

use bytes::Bytes;
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::{self, Manifest};
use soci_oci::media_type;
use soci_ztoc::MAX_ZTOC_SIZE;
use tracing::info;

use super::content::Document;
use super::discover::{Index, discover, names_index};
use super::plan::{Facts, Found, Parallel, Size, Step, Tried, decide};
use super::source::{refusal, sends, source_at};
use super::trust::Standing;
use super::verdict::Way;
use super::{
    Arc, Attempt, ContentError, Discovery, Image, ImageName, Images, Instant, Request, Timed,
    explain, line, took,
};
use crate::layer::{Layer, Lazy, OpenError};
use crate::store::sources::Origin;
use crate::store::{LayerKey, StoreError};

/// An open layer, and how it was opened.
pub(super) struct Opened {
    pub(super) layer: Arc<Layer>,
    pub(super) way: Way,
    pub(super) why: String,
    pub(super) facts: Facts,
}

impl Opened {
    fn new(layer: Arc<Layer>, way: Way, why: String, facts: Facts) -> Self {
        Self {
            layer,
            way,
            why,
            facts,
        }
    }
}

/// Why a layer is not mounted, and what is known now.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) why: String,
    pub(super) facts: Facts,
}

impl Left {
    /// Converts this to the response, which names the image and the layer.
    pub(super) fn into_attempt(self, request: &Request) -> Attempt {
        let Self { why, facts } = self;
        let why = format!("{}: layer {}: {why}", request.image.text, request.layer);
        Attempt::Left { why, facts }
    }
}

/// Why a layer with a zTOC is not mounted lazily.
enum NotLazy {
    /// The zTOC cannot be used. The layer can be downloaded whole.
    BadZtoc(String),
    /// The layer cannot be read from the registry or kept on the disk.
    Failed(String),
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
    /// Opens the layer of a request, step by step, as [`decide`] says.
    pub(super) async fn open(&self, image: &Arc<Image>, request: &Request) -> Result<Opened, Left> {
        let mut facts = request.facts;
        let mut why = match facts.found {
            None if request.rules.parallel == Parallel::Always => {
                "[pull_modes.parallel_pull_unpack] enable is set".to_owned()
            }
            None => "smaller than min_layer_size".to_owned(),
            Some(_) => "it was downloaded whole before".to_owned(),
        };
        let mut index = None;
        let mut ztoc = None;
        loop {
            let decision = decide(&facts, &request.rules);
            match decision.step {
                Step::Ask => {
                    request.subject.say(&decision, "");
                    let asked = self.ask(image, request).await;
                    let modes = self.0.options.modes;
                    facts.names_index |= names_index(&request.image, image.manifest.get(), modes)
                        || asked.index.is_some();
                    facts.found = Some(asked.found);
                    facts.within_reach = self.is_within_reach(image, request, asked.found).await;
                    Asked {
                        why,
                        index,
                        ztoc,
                        ..
                    } = asked;
                }
                Step::Lazy => {
                    self.pull_beside(image, request, &facts);
                    let opened = self.lazy(image, request, &why, index.as_ref(), ztoc.take());
                    match opened.await {
                        Ok((layer, why)) => return Ok(Opened::new(layer, Way::Lazy, why, facts)),
                        Err(NotLazy::BadZtoc(reason)) => {
                            facts.found = Some(Found::BadZtoc);
                            why = reason;
                        }
                        Err(NotLazy::Failed(reason)) => {
                            facts.tried = Some(Tried::NotLazy);
                            why = reason;
                        }
                    }
                }
                Step::Whole => {
                    request.subject.say(&decision, &why);
                    match self.whole(image, request, &facts).await {
                        Ok(layer) => return Ok(Opened::new(layer, Way::Whole, why, facts)),
                        Err(reason) => {
                            facts.tried = Some(Tried::NotWhole);
                            why = reason;
                        }
                    }
                }
                // The caller logs and takes these steps.
                _ => return Err(Left { why, facts }),
            }
        }
    }

    /// Finds out what the image provides for the layer, within the timeout. Work that takes longer
    /// continues in the background.
    async fn ask(&self, image: &Arc<Image>, request: &Request) -> Asked {
        let (images, image) = (self.clone(), Arc::clone(image));
        let name = request.image.clone();
        let (layer, subject) = (request.layer, request.subject.clone());
        // Smaller layers are downloaded whole.
        let least = match request.facts.size {
            Size::Bytes(_) => request.rules.min_layer_size,
            Size::Unknown | Size::Invalid => 0,
        };
        let mountpoint = request.at.display().to_string();
        let asking = self.0.tasks.spawn(async move {
            let answer = async {
                let index = images.find_index(&image, &name, &subject, &mountpoint);
                match index.await {
                    Ok(Discovery::Found(index)) => {
                        images.find_ztoc(&image, &name, layer, index, least).await
                    }
                    Ok(Discovery::None(why)) => Asked::unindexed(Found::NoIndex, why),
                    Ok(Discovery::Unusable(why)) => Asked::unindexed(Found::BadIndex, why),
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
                Asked::unindexed(Found::Late, why)
            }
        }
    }

    /// Whether the layer can be downloaded, as far as is known. A registry that did not deliver the
    /// index may still send the layer.
    async fn is_within_reach(&self, image: &Image, request: &Request, found: Found) -> bool {
        let is_known = image.manifest.initialized();
        if !is_known || found != Found::Unreachable || request.rules.parallel == Parallel::Never {
            return is_known;
        }
        let Ok((layer, _)) = self.layer(image, request).await else {
            return false;
        };
        let source = source_at(&self.0.parts.registry, &request.image.reference, &layer);
        match source {
            Ok(source) => sends(&source).await,
            Err(_) => false,
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
                // The client says that there is an index.
                Err(error) if name.index.is_some() => Ok(Discovery::Unusable(explain(&error))),
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
    pub(super) async fn manifest<'a>(
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
        least: u64,
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
        self.plan_replay(image, name, &index);
        let bytes = if self.is_stored(layer, &ztoc) {
            Ok(None)
        } else {
            self.ztoc(image, name, &layer, &ztoc).await.map(Some)
        };
        self.make_ready(image, name, &index, least);
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
            let came = |bytes| {
                image.came.notify_waiters();
                self.0.parts.layers.came(bytes);
            };
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

    /// Opens a layer with its zTOC. Also returns why this is possible.
    async fn lazy(
        &self,
        image: &Arc<Image>,
        request: &Request,
        why: &str,
        index: Option<&Index>,
        ztoc: Option<(Descriptor, Option<Bytes>)>,
    ) -> Result<(Arc<Layer>, String), NotLazy> {
        let failed = NotLazy::Failed;
        let Some((ztoc, bytes)) = ztoc else {
            return Err(failed(why.to_owned()));
        };
        let standing = self.standing(request.layer, Some(ztoc.digest), &request.expected);
        match &standing {
            Standing::Verified | Standing::Claimed => {}
            Standing::Foreign(why) => return Err(failed(why.clone())),
            Standing::False(why) => return Err(NotLazy::BadZtoc(why.clone())),
        }
        let (layer, _) = self.layer(image, request).await.map_err(failed)?;
        let registry = &self.0.parts.registry;
        let source = source_at(registry, &request.image.reference, &layer).map_err(failed)?;
        let digest = ztoc.digest;
        let lazy = Lazy {
            layer,
            ztoc,
            bytes,
            expected: request.expected,
            origin: origin(&request.image, index),
            source: source.clone(),
        };
        match self.0.parts.layers.open_lazy(lazy).await {
            Ok(layer) => {
                if let Some(refusal) = refusal(image, &layer, &source).await {
                    return Err(failed(refusal));
                }
                // The store has its own copy now.
                image.ztocs.lock().remove(&digest);
                self.prefetch(&request.image, index, &layer);
                self.replay(image, &layer);
                Ok((layer, format!("{why}; {standing}")))
            }
            Err(error) if is_bad_ztoc(&error) => {
                // The bytes may have been damaged in transit: the next request downloads them
                // again.
                image.ztocs.lock().remove(&digest);
                Err(NotLazy::BadZtoc(explain(&error)))
            }
            Err(error) => Err(failed(explain(&error))),
        }
    }

    /// The layer's descriptor in the manifest, and its position.
    pub(super) async fn layer(
        &self,
        image: &Image,
        request: &Request,
    ) -> Result<(Descriptor, usize), String> {
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
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
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
