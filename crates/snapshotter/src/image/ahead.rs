//! zTOCs of an image that are fetched before containerd asks for their layers.

use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::Manifest;
use tracing::debug;

use super::discover::Index;
use super::{Arc, Image, ImageName, Images, explain};
use crate::sync::atomic::Ordering;

/// Bytes of zTOCs that are fetched before they are asked for: they take disk until then. Those of a large image (30 GB) have
/// about half of it.
const AHEAD: u64 = 256 << 20;

impl Images {
    /// Fetches the zTOCs of all layers, so many at once as configured. Failures are left to who needs them.
    pub(super) fn fetch_ahead(&self, image: &Arc<Image>, name: &ImageName, index: &Index) {
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
