//! The registry as a source of layers.

use std::time::Duration;

use soci_oci::descriptor::Descriptor;
use soci_oci::media_type::{self, LayerCompression};
use soci_oci::reference::ImageRef;
use soci_oci::registry::Registry;
use soci_ztoc::Compression;

use super::{Image, explain};
use crate::fetch::Source;
use crate::layer::Layer;

/// How long the first byte of an image's layers is waited for before they are mounted all the same.
const PROBE: Duration = Duration::from_secs(2);

/// First bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The registry as a source of a layer, by the reference as containerd wrote it. Asks nobody.
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

/// How a layer is compressed: by its type where that says so, else by its first bytes, as containerd does it.
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

/// Why layers of an image cannot be had, asked for its first one only: a container that starts all the same would meet I/O
/// errors, while containerd may know the credentials. A registry that does not answer is no reason: it may come back.
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
