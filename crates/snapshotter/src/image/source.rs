//! Registries as sources of layers.

use std::time::Duration;

use soci_oci::descriptor::Descriptor;
use soci_oci::media_type::{self, LayerCompression};
use soci_oci::reference::ImageRef;
use soci_registry::Registry;

use super::{Image, explain};
use crate::fetch::Source;
use crate::layer::Layer;

/// Timeout for the first byte of a layer. After it, a lazy layer is mounted anyway.
const PROBE: Duration = Duration::from_secs(2);

/// The registry as a source of a layer, from the reference that containerd sent. Makes no request.
pub(super) fn source(
    registry: &Registry,
    reference: &str,
    layer: &Descriptor,
) -> Result<Source, String> {
    let reference = ImageRef::from_containerd(reference).map_err(|error| error.to_string())?;
    source_at(registry, &reference, layer)
}

pub(super) fn source_at(
    registry: &Registry,
    image: &ImageRef,
    layer: &Descriptor,
) -> Result<Source, String> {
    let fetcher = registry
        .blob(image, layer)
        .map_err(|error| explain(&error))?;
    Ok(Source::new(image.host(), image.repository(), fetcher))
}

/// Refuses a layer whose media type names a compression that is not supported. Otherwise its first
/// bytes decide, as in containerd.
pub(super) fn check_media_type(layer: &Descriptor) -> Result<(), String> {
    match media_type::layer_compression(&layer.media_type) {
        Ok(
            LayerCompression::Gzip
            | LayerCompression::Zstd
            | LayerCompression::Uncompressed
            | LayerCompression::Unknown,
        ) => Ok(()),
        _ => Err(format!(
            "media type {}: compression not supported",
            layer.media_type
        )),
    }
}

/// Whether a source sends the first byte of a layer in time.
pub(super) async fn sends(source: &Source) -> bool {
    let first = async {
        let mut body = source.fetcher.fetch(0..1).await?;
        body.next().await
    };
    matches!(tokio::time::timeout(PROBE, first).await, Ok(Ok(Some(_))))
}

/// Why the registry refuses the layers of an image. Success is cached for the image. A container
/// that starts anyway gets I/O errors, whereas containerd may have the credentials. A registry that
/// does not answer is not a refusal, because it may recover.
pub(super) async fn refusal(image: &Image, layer: &Layer, source: &Source) -> Option<String> {
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
