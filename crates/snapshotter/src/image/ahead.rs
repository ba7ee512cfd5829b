//! Prepares layers of an image before containerd requests them: downloads their zTOCs and makes
//! their files and images. containerd requests one layer after another, so this shortens a pull.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use bytes::Bytes;
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::Manifest;
use tracing::debug;

use super::discover::Index;
use super::holds::Hold;
use super::open::origin;
use super::source::source_at;
use super::{Arc, Image, ImageName, Images, explain, show};
use crate::cpu::Lane;
use crate::layer::{Expected, Layer, Lazy};
use crate::store::sources::Origin;
use crate::sync::atomic::Ordering;

/// Maximum bytes of zTOCs downloaded ahead, because they use disk space until requested. The zTOCs
/// of a large image (30 GB) have about half this size.
const AHEAD: u64 = 256 << 20;
/// How long a prepared layer is kept without a request. After that it may be removed as unused.
const LASTS: Duration = Duration::from_secs(300);

/// How far a layer of an image is.
#[derive(Debug)]
enum State {
    /// It was requested. The request holds it.
    Asked,
    /// It is being prepared.
    Coming,
    /// It is ready, since this time. Without a time, it is kept until it is forgotten.
    Kept(
        #[expect(dead_code, reason = "held until dropped")] Hold,
        Option<Instant>,
    ),
}

/// The layers of an image that are prepared or were requested.
#[derive(Debug, Default)]
pub(super) struct Ready(HashMap<Digest, State>);

impl Ready {
    /// Notes a request for the layer, which from now on holds the layer itself.
    pub(super) fn asked(&mut self, layer: Digest) {
        if let Some(State::Asked) = self.0.get(&layer) {
            // The image is pulled once more.
            self.0.retain(|_, state| !matches!(state, State::Asked));
        }
        self.0.insert(layer, State::Asked);
    }

    /// Notes that the layer is being prepared. Returns false if it already is, or was requested.
    pub(super) fn begin(&mut self, layer: Digest) -> bool {
        match self.0.entry(layer) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(State::Coming);
                true
            }
        }
    }

    /// Keeps the layer until it is requested, unless it was requested already, but not for long.
    fn keep(&mut self, layer: Digest, hold: Hold) {
        self.insert(layer, State::Kept(hold, Some(Instant::now())));
    }

    /// Keeps the layer until it is requested, unless it was requested already, or forgotten.
    pub(super) fn keep_for_clients(&mut self, layer: Digest, hold: Hold) {
        self.insert(layer, State::Kept(hold, None));
    }

    fn insert(&mut self, layer: Digest, kept: State) {
        if !matches!(self.0.get(&layer), Some(State::Asked)) {
            self.0.insert(layer, kept);
        }
    }

    /// Releases layers that nobody will request.
    pub(super) fn forget(&mut self, layers: &[Digest]) {
        for layer in layers {
            self.0.remove(layer);
        }
    }

    /// Releases layers that were not requested in time.
    pub(super) fn let_go(&mut self, now: Instant) {
        let late = |since: &Instant| now.saturating_duration_since(*since) > LASTS;
        self.0.retain(|_, state| match state {
            State::Kept(_, Some(since)) => !late(since),
            State::Asked | State::Coming | State::Kept(_, None) => true,
        });
    }

    /// Whether a layer is being prepared, or is ready and was not requested yet.
    pub(super) fn is_ahead(&self) -> bool {
        self.0.values().any(|state| !matches!(state, State::Asked))
    }
}

/// One layer to prepare.
struct Coming {
    layer: Descriptor,
    ztoc: Descriptor,
    /// Whether this is the lowest layer of the image.
    lowest: bool,
}

impl Images {
    /// Prepares all layers with a zTOC and at least `least` bytes, with the configured parallelism.
    /// A failure is only logged: a later request for the layer retries and reports it.
    pub(super) fn make_ready(
        &self,
        image: &Arc<Image>,
        name: &ImageName,
        index: &Index,
        least: u64,
    ) {
        if image.ahead.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(manifest) = image.manifest.get() else {
            return;
        };
        for coming in worth_ahead(manifest, index, least) {
            let ztoc = &coming.ztoc;
            if self.is_stored(coming.layer.digest, ztoc)
                || image.ztocs.lock().contains_key(&ztoc.digest)
            {
                continue;
            }
            let (images, image) = (self.clone(), Arc::clone(image));
            let (name, origin) = (name.clone(), origin(name, Some(index)));
            let ahead = Arc::clone(&self.0.ahead);
            self.0.tasks.spawn(async move {
                let Ok(_permit) = ahead.acquire().await else {
                    return;
                };
                match images
                    .ztoc(&image, &name, &coming.layer.digest, &coming.ztoc)
                    .await
                {
                    Ok(bytes) => {
                        images
                            .open_ahead(&image, &name, origin, coming, bytes)
                            .await
                    }
                    Err(error) => {
                        let (digest, error) = (coming.ztoc.digest.to_string(), explain(&error));
                        debug!(digest, error, "zTOC not fetched ahead");
                    }
                }
            });
        }
    }

    async fn open_ahead(
        &self,
        image: &Image,
        name: &ImageName,
        origin: Origin,
        coming: Coming,
        bytes: Bytes,
    ) {
        let layers = &self.0.parts.layers;
        let (digest, ztoc) = (coming.layer.digest, coming.ztoc.digest);
        let hold = self.0.holds.hold(digest).await;
        // Stop if any form is stored: whether it suits a request depends on what that expects.
        if !layers.store().find(&digest).is_empty() {
            return;
        }
        let Ok(source) = source_at(&self.0.parts.registry, &name.reference, &coming.layer) else {
            return;
        };
        let lazy = Lazy {
            layer: coming.layer,
            ztoc: coming.ztoc,
            bytes: Some(bytes),
            expected: Expected::Unknown,
            origin,
            source,
        };
        let made = match layers.open_lazy(lazy).await {
            Ok(layer) => {
                image.ready.lock().keep(digest, hold);
                self.replay(image, &layer);
                // The store has its own copy now.
                image.ztocs.lock().remove(&ztoc);
                self.make_meta_ahead(&layer, coming.lowest)
                    .await
                    .map_err(|error| explain(&error))
            }
            Err(error) => Err(explain(&error)),
        };
        if let Err(error) = made {
            let layer = digest.to_string();
            debug!(layer, error, "layer not made ready ahead");
        }
    }

    /// Makes the image of a layer, unless it depends on the layers below.
    pub(super) async fn make_meta_ahead(
        &self,
        layer: &Arc<Layer>,
        lowest: bool,
    ) -> Result<(), show::ShowError> {
        let _turn = self.turn_to_show(layer).await;
        let (of, user_namespace) = (Arc::clone(layer), self.0.options.user_namespace);
        let job = move || show::make_meta_ahead(&of, lowest, user_namespace);
        self.0.parts.cpu.run(Lane::Files, job).await?
    }
}

/// The layers that have a zTOC and at least `least` bytes, in image order, up to [`AHEAD`] bytes of
/// zTOCs.
fn worth_ahead(manifest: &Manifest, index: &Index, least: u64) -> impl Iterator<Item = Coming> {
    let mut left = AHEAD;
    let layers = manifest.layers().iter().enumerate();
    let layers = layers.filter(move |(_, layer)| layer.size >= least);
    let coming = layers.filter_map(|(position, layer)| {
        Some(Coming {
            layer: layer.clone(),
            ztoc: index.ztocs.get(&layer.digest)?.clone(),
            lowest: position == 0,
        })
    });
    coming.take_while(move |Coming { ztoc, .. }| {
        let fits = ztoc.size <= left;
        left = left.saturating_sub(ztoc.size);
        fits
    })
}

#[cfg(test)]
mod tests {
    use soci_oci::{manifest, media_type};

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
            prefetch: [].into(),
        };
        let ahead_from = |sizes, least| {
            let index = index(sizes);
            worth_ahead(&manifest, &index, least)
                .map(|coming| coming.layer.digest)
                .collect::<Vec<_>>()
        };
        let ahead = |sizes| ahead_from(sizes, 9);
        assert_eq!(ahead_from([10, 10, 10, 10], 10), [], "small layers");
        assert_eq!(ahead([10, 10, 10, 10]), [one, two, three]);
        assert_eq!(ahead([10, AHEAD - 10, 1, 10]), [one, two]);
        assert_eq!(ahead([1 << 30, 10, 10, 10]), []);
    }

    #[tokio::test]
    async fn a_layer_is_kept_until_it_is_asked_for_and_not_for_long() {
        let holds = super::super::Holds::default();
        let [one, two] = [b"1", b"2"].map(|bytes| Digest::sha256(bytes));
        let is_kept = |layer| holds.begin_removal(layer).is_none();
        let mut ready = Ready::default();
        ready.keep(one, holds.hold(one).await);
        assert!(is_kept(one));
        ready.asked(one);
        assert!(!is_kept(one));
        ready.keep(one, holds.hold(one).await);
        assert!(!is_kept(one), "the request has come and gone");
        ready.keep(two, holds.hold(two).await);
        ready.let_go(Instant::now());
        assert!(is_kept(two));
        let late = Instant::now() + LASTS + Duration::from_secs(1);
        ready.let_go(late);
        assert!(!is_kept(two));
    }

    #[tokio::test]
    async fn a_layer_is_kept_for_the_clients_of_its_image_until_they_leave() {
        let holds = super::super::Holds::default();
        let [one, two] = [b"1", b"2"].map(|bytes| Digest::sha256(bytes));
        let is_kept = |layer| holds.begin_removal(layer).is_none();
        let mut ready = Ready::default();
        ready.asked(one);
        assert!(!ready.begin(one) && !ready.is_ahead());
        assert!(ready.begin(two) && ready.is_ahead());
        assert!(!ready.begin(two), "it is coming");
        ready.keep_for_clients(two, holds.hold(two).await);
        ready.let_go(Instant::now() + 2 * LASTS);
        assert!(is_kept(two) && ready.is_ahead());
        ready.forget(&[two]);
        assert!(!is_kept(two) && !ready.is_ahead());
        ready.asked(two);
        ready.asked(one);
        assert!(ready.begin(two), "the image is pulled once more");
    }
}
