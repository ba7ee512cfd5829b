//! Registries as sources of layers.

use std::time::Duration;

use soci_oci::descriptor::Descriptor;
use soci_oci::media_type::{self, LayerCompression};
use soci_oci::reference::ImageRef;
use soci_registry::Registry;
use soci_ztoc::Compression;

use super::{Image, explain};
use crate::fetch::Source;
use crate::layer::Layer;

/// Timeout for the first byte of a layer. After it, a lazy layer is mounted anyway.
const PROBE: Duration = Duration::from_secs(2);

/// Magic number of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

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

/// The compression of a layer: from its media type if that determines it, else from its first
/// bytes, as containerd does.
pub(super) async fn compression(
    layer: &Descriptor,
    source: &Source,
) -> Result<Compression, String> {
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
