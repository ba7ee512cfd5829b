//! Stores indexes and manifests with the labels that protect the blobs that they refer to.

use std::sync::Arc;

use bytes::Bytes;
use soci_oci::{Descriptor, media_type};
use soci_store::{Content, ContentStore, Labels, StoreError};

use crate::model::{CONFIG, SociIndex};

/// Stores a document and labels it.
pub(crate) async fn put(
    store: &Arc<dyn ContentStore>,
    media_type: &str,
    bytes: Vec<u8>,
    labels: Labels,
) -> Result<Descriptor, StoreError> {
    let descriptor = Descriptor::of(media_type, &bytes);
    store.put(&descriptor, Content::Bytes(bytes.into())).await?;
    store.label(&descriptor.digest, &labels).await?;
    Ok(descriptor)
}

/// Stores a SOCI index and its configuration. The artifact type of the descriptor states the
/// version.
pub(crate) async fn put_index(
    store: &Arc<dyn ContentStore>,
    index: &SociIndex,
) -> Result<Descriptor, StoreError> {
    let config = Descriptor::of(index.version().artifact_type(), CONFIG);
    let content = Content::Bytes(Bytes::from_static(CONFIG));
    store.put(&config, content).await?;
    let mut labels = references("ztoc.", index.blobs());
    labels.extend(references("config", [&config]));
    let bytes = index.to_bytes();
    // Stores that list their manifests also record the artifact type.
    let descriptor = Descriptor {
        artifact_type: index.version().artifact_type().to_owned(),
        ..Descriptor::of(media_type::OCI_MANIFEST, &bytes)
    };
    store.put(&descriptor, Content::Bytes(bytes.into())).await?;
    store.label(&descriptor.digest, &labels).await?;
    Ok(descriptor)
}

/// Labels that protect blobs in containerd as long as the labeled blob exists: `<name>` for one
/// blob, or `<name><number>` if the name ends in a dot.
pub(crate) fn references<'a>(
    name: &str,
    blobs: impl IntoIterator<Item = &'a Descriptor>,
) -> Labels {
    let label = |(number, blob): (usize, &Descriptor)| {
        let number = if name.ends_with('.') {
            number.to_string()
        } else {
            String::new()
        };
        (
            format!("containerd.io/gc.ref.content.{name}{number}"),
            blob.digest.to_string(),
        )
    };
    blobs.into_iter().enumerate().map(label).collect()
}
