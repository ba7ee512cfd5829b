//! Downloads layers whole: the one that a request waits for, and beside it those above it in the
//! image that will be downloaded whole as well.
//!
//! containerd requests one layer after another. The request for a later layer finds it here, or
//! joins its download. When the clients of the image have left, the downloads beside them end, and
//! what they brought may be removed as unused.

use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::{self, ImageConfig};
use tokio::task::JoinSet;
use tracing::debug;

use super::content::Document;
use super::discover::Discovery;
use super::open::origin;
use super::plan::{Facts, Found, Step, decide};
use super::source::{check_media_type, source_at};
use super::{Arc, Image, ImageName, Images, Request, Rules, explain};
use crate::layer::{Layer, Whole};

/// Downloads beside the requested layer, for one image. More than the passes that run at a time, so
/// that the next one is always at hand.
const BESIDE: usize = 16;
/// Bytes on disk for each compressed byte, as a guess before a layer is decompressed.
const GROWTH: u64 = 3;

/// A layer to download beside the requested one.
struct Beside {
    layer: Descriptor,
    position: usize,
}

impl Beside {
    fn space(&self) -> u64 {
        self.layer.size.saturating_mul(GROWTH)
    }
}

impl Images {
    /// Downloads the layer of a request in one pass, and others beside it.
    pub(super) async fn whole(
        &self,
        image: &Arc<Image>,
        request: &Request,
        facts: &Facts,
    ) -> Result<Arc<Layer>, String> {
        let mountpoint = request.at.display();
        debug!("preparing local filesystem at mountpoint={mountpoint}");
        let (layer, position) = self.layer(image, request).await?;
        let whole = self
            .as_whole(image, &request.image, layer, position)
            .await?;
        // Not before, so that the layer that a client waits for is the first one.
        let joined = || self.pull_beside(image, request, facts);
        // A pull that was cancelled does not download the rest of the layer.
        tokio::select! {
            pulled = self.pull(whole, joined) => pulled,
            () = request.gone.cancelled() => Err("the client went away".to_owned()),
        }
    }

    /// A layer of an image with what is needed to download it.
    async fn as_whole(
        &self,
        image: &Image,
        name: &ImageName,
        layer: Descriptor,
        position: usize,
    ) -> Result<Whole, String> {
        check_media_type(&layer)?;
        let diff_id = self.diff_ids(image, name).await?[position];
        let source = source_at(&self.0.parts.registry, &name.reference, &layer)?;
        let index = match image.discovery.get() {
            Some(Discovery::Found(index)) => Some(index),
            Some(Discovery::None(_) | Discovery::Unusable(_)) | None => None,
        };
        Ok(Whole {
            layer,
            diff_id,
            order: position as u64,
            origin: origin(name, index),
            sources: vec![source],
            keep: self.0.parts.content.keeper(name.place()).await,
        })
    }

    /// Joins the download of a layer, or starts it, and then calls `joined`. The download ends early
    /// if all callers drop this.
    async fn pull(&self, whole: Whole, joined: impl FnOnce()) -> Result<Arc<Layer>, String> {
        let mut joined = Some(joined);
        loop {
            let layers = &self.0.parts.layers;
            let work = |whole| {
                let layers = Arc::clone(layers);
                async move { layers.stream_whole(whole).await }
            };
            let (pull, started) = self.0.pulls.join(&whole, &self.0.tasks, work);
            if let Some(joined) = joined.take() {
                joined();
            }
            match pull.done().await {
                Ok(layer) if started => return Ok(layer),
                // The layer is open now. This records the name of the image.
                Ok(_) => {
                    let named = layers.stream_whole(whole).await;
                    return named.map_err(|error| explain(&error));
                }
                // Others do not fail because one registry refuses.
                Err(_) if !started && !pull.asks(&whole) => {}
                Err(Some(error)) => return Err(explain(&*error)),
                Err(None) => return Err("the download was lost".to_owned()),
            }
        }
    }

    /// The diff-IDs (SHA-256 of the tar) of all layers, from the image's configuration.
    async fn diff_ids<'a>(
        &self,
        image: &'a Image,
        name: &ImageName,
    ) -> Result<&'a [Digest], String> {
        let manifest = self.manifest(image, name).await;
        let manifest = manifest.map_err(|error| explain(&error))?;
        let read = image.diff_ids.get_or_try_init(|| async {
            let (content, wanted) = (&self.0.parts.content, &manifest.config);
            let bytes = content.document(name.place(), Document::Blob, wanted).await;
            let bytes = bytes.map_err(|error| explain(&error))?;
            let config: ImageConfig =
                manifest::parse(&bytes, &wanted.media_type).map_err(|error| explain(&error))?;
            let diff_ids = config.rootfs.diff_ids;
            let (layers, ids) = (manifest.layers().len(), diff_ids.len());
            if layers != ids {
                return Err(format!(
                    "manifest has {layers} layers, configuration {ids} diff-IDs"
                ));
            }
            Ok(diff_ids)
        });
        read.await.map(Vec::as_slice)
    }

    /// Starts downloading the layers above the requested one that requests will want whole, until
    /// the clients of the image have left. A failure is only logged: a later request for the layer
    /// retries and reports it.
    pub(super) fn pull_beside(&self, image: &Arc<Image>, request: &Request, facts: &Facts) {
        if !image.clients.are_waiting() {
            // A mount is restored.
            return;
        }
        let (images, image) = (self.clone(), Arc::clone(image));
        let (name, facts, rules) = (request.image.clone(), *facts, request.rules);
        let requested = request.layer;
        self.0.tasks.spawn(async move {
            let others = async {
                let manifest = images.manifest(&image, &name).await.ok()?;
                let discovery = image.discovery.get();
                let wanted = wanted_whole(manifest.layers(), requested, |layer| {
                    decides_whole(layer, discovery, &facts, &rules)
                });
                Some(images.claim(&image, wanted))
            };
            let others = others.await.unwrap_or_default();
            if others.is_empty() {
                return;
            }
            let digests: Vec<_> = others.iter().map(|it| it.layer.digest).collect();
            tokio::select! {
                biased;
                () = image.clients.left() => {
                    let image = name.text.as_str();
                    debug!(image, "nobody waits for the image: its downloads end");
                }
                () = images.pull_all(&image, &name, others) => image.clients.left().await,
            }
            image.ready.lock().forget(&digests);
        });
    }

    /// The layers that are not stored, and that nobody else downloads for this image.
    fn claim(&self, image: &Image, wanted: Vec<Beside>) -> Vec<Beside> {
        let store = self.0.parts.layers.store();
        let mut ready = image.ready.lock();
        let is_new =
            |it: &Beside| store.find(&it.layer.digest).is_empty() && ready.begin(it.layer.digest);
        wanted.into_iter().filter(is_new).collect()
    }

    /// Downloads layers in this order, as far as there is space for them.
    async fn pull_all(&self, image: &Arc<Image>, name: &ImageName, layers: Vec<Beside>) {
        let mut pulls = JoinSet::new();
        let mut coming = layers.into_iter().peekable();
        loop {
            let room = self.0.parts.layers.room();
            let reserve = |next: &Beside| self.0.reserved.take(next.space(), room);
            let next = coming.peek().filter(|_| pulls.len() < BESIDE);
            if let Some(space) = next.and_then(reserve)
                && let Some(next) = coming.next()
            {
                let (images, image, name) = (self.clone(), Arc::clone(image), name.clone());
                pulls.spawn(async move {
                    images.pull_ahead(&image, &name, next).await;
                    drop(space);
                });
                continue;
            }
            match pulls.join_next().await {
                Some(Ok(())) => {}
                Some(Err(lost)) => debug!(error = %lost, "a download beside a pull was lost"),
                // What does not fit is downloaded when it is requested.
                None => return,
            }
        }
    }

    /// Downloads one layer and keeps it until it is requested.
    async fn pull_ahead(&self, image: &Image, name: &ImageName, beside: Beside) {
        let Beside { layer, position } = beside;
        let digest = layer.digest;
        let hold = self.0.holds.hold(digest).await;
        let pulled = async {
            let whole = self.as_whole(image, name, layer, position).await?;
            let layer = self.pull(whole, || ()).await?;
            image.ready.lock().keep_for_clients(digest, hold);
            // Whether this succeeds or not, the request makes what it needs.
            let made = self.make_meta_ahead(&layer, position == 0).await;
            made.map_err(|error| explain(&error))
        };
        if let Err(error) = pulled.await {
            let layer = digest.to_string();
            debug!(layer, error, "layer not downloaded before its request");
            image.ready.lock().forget(&[digest]);
        }
    }
}

/// The layers above the requested one for which `is_whole`, lowest first. Those below it are
/// already there.
fn wanted_whole(
    layers: &[Descriptor],
    requested: Digest,
    is_whole: impl Fn(&Descriptor) -> bool,
) -> Vec<Beside> {
    let layers = layers.iter().enumerate();
    let above = layers.skip_while(|(_, layer)| layer.digest != requested);
    let above = above.filter(|(_, layer)| layer.digest != requested && is_whole(layer));
    let beside = above.map(|(position, layer)| Beside {
        layer: layer.clone(),
        position,
    });
    beside.collect()
}

/// Whether a request for this layer of the image will be decided as whole. `facts` are those of
/// another layer.
fn decides_whole(
    layer: &Descriptor,
    discovery: Option<&Discovery>,
    facts: &Facts,
    rules: &Rules,
) -> bool {
    let found = match discovery {
        Some(Discovery::Found(index)) if index.ztocs.contains_key(&layer.digest) => {
            Some(Found::Ztoc)
        }
        Some(Discovery::Found(_)) => Some(Found::NoZtoc),
        Some(Discovery::None(_)) => Some(Found::NoIndex),
        Some(Discovery::Unusable(_)) => Some(Found::BadIndex),
        None => None,
    };
    let facts = facts.of_another(layer.size, found);
    decide(&facts, rules).step == Step::Whole
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::discover::Index;
    use super::super::labels::Labels;
    use super::super::plan::Parallel;
    use super::*;

    fn layers() -> [Descriptor; 3] {
        [(b"1", 5), (b"2", 50), (b"3", 500)]
            .map(|(bytes, size)| Descriptor::new("layer", Digest::sha256(bytes), size))
    }

    #[test]
    fn layers_above_the_requested_one_are_downloaded_if_they_will_be_whole() {
        let [one, two, three] = layers();
        let none = Discovery::None(String::new());
        let bad = Discovery::Unusable(String::new());
        let index = Discovery::Found(Index {
            digest: two.digest,
            found: "by hand",
            ztocs: BTreeMap::from([(three.digest, three.clone())]),
            prefetch: BTreeMap::new(),
        });
        let mut labels = Labels::new();
        let rules = Rules::default();
        let never = Rules {
            parallel: Parallel::Never,
            ..rules
        };
        let always = Rules {
            parallel: Parallel::Always,
            ..rules
        };
        let small = Rules {
            min_layer_size: 100,
            ..rules
        };
        let strict = Rules {
            strict: true,
            ..rules
        };
        for target in ["", "5"] {
            use super::super::labels::LAYER_SIZE;
            labels.insert(LAYER_SIZE.to_owned(), target.to_owned());
            let facts = facts(&labels);
            let is_sized = !target.is_empty();
            for (discovery, rules, wanted) in [
                (Some(&none), rules, [true, true]),
                (Some(&none), never, [false, false]),
                (Some(&none), strict, [true, true]),
                (Some(&bad), rules, [true, true]),
                (Some(&bad), strict, [false, false]),
                (Some(&index), rules, [true, false]),
                (Some(&index), always, [true, true]),
                (Some(&index), small, [true, false]),
                (None, rules, [false, false]),
                (None, always, [true, true]),
                (None, small, [is_sized, false]),
            ] {
                let is_whole = |layer: &_| decides_whole(layer, discovery, &facts, &rules);
                let found = wanted_whole(&layers(), one.digest, is_whole);
                let found: Vec<_> = found.iter().map(|it| it.position).collect();
                let wanted = [(1, wanted[0]), (2, wanted[1])].into_iter();
                let wanted: Vec<_> = wanted.filter(|it| it.1).map(|it| it.0).collect();
                assert_eq!(found, wanted, "{discovery:?} {rules:?} {target:?}");
            }
        }
        let above = |digest| wanted_whole(&layers(), digest, |_| true).len();
        assert_eq!(above(two.digest), 1);
        assert_eq!(above(three.digest), 0);
        assert_eq!(above(Digest::sha256(b"other")), 0);
    }

    /// The facts of a request with these labels, which need not name the image.
    fn facts(labels: &Labels) -> Facts {
        Facts {
            target: true,
            named: true,
            ..Facts::of(Some("default"), labels)
        }
    }
}
