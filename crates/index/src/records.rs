//! Creates the records of a build.

use soci_oci::{Descriptor, Digest, media_type};

use crate::artifacts::{Artifacts, ArtifactsError, Entry, Kind, now};
use crate::model::Version;
use crate::prefetch::PrefetchArtifact;

/// An entry with only the required fields.
fn entry(kind: Kind, blob: &Descriptor) -> Entry {
    Entry {
        digest: blob.digest,
        size: blob.size,
        location: String::new(),
        oci_digest: String::new(),
        image_digest: String::new(),
        platform: String::new(),
        kind,
        media_type: blob.media_type.clone(),
        artifact_type: String::new(),
        created_at: Some(now()),
        span_size: 0,
        is_found: false,
    }
}

/// The record of a layer's zTOC.
pub(crate) fn ztoc(layer: &Digest, ztoc: &Descriptor, span_size: u64) -> Entry {
    ztoc_of(layer.to_string(), ztoc, span_size)
}

/// The record of a zTOC whose layer is given as text.
pub(crate) fn ztoc_of(layer: String, ztoc: &Descriptor, span_size: u64) -> Entry {
    Entry {
        location: layer.clone(),
        oci_digest: layer,
        span_size,
        ..entry(Kind::Layer, ztoc)
    }
}

/// The record of a prefetch artifact.
pub(crate) fn prefetch(artifact: &PrefetchArtifact) -> Entry {
    prefetch_of(artifact.layer.to_string(), &artifact.descriptor)
}

/// The record of a prefetch artifact whose layer is given as text.
pub(crate) fn prefetch_of(layer: String, artifact: &Descriptor) -> Entry {
    Entry {
        oci_digest: layer,
        ..entry(Kind::Prefetch, artifact)
    }
}

/// The manifests and the image that an index belongs to.
#[derive(Debug)]
pub(crate) struct IndexOf<'a> {
    pub(crate) version: Version,
    /// The manifest that the index was built for.
    pub(crate) built_for: &'a Digest,
    /// The manifest that the index belongs to.
    pub(crate) manifest: &'a Digest,
    /// The digest that the image's name refers to.
    pub(crate) image: &'a Digest,
    pub(crate) platform: String,
}

/// The record of an index.
pub(crate) fn index(digest: Digest, size: u64, of: IndexOf<'_>) -> Entry {
    let IndexOf {
        version,
        built_for,
        manifest,
        image,
        platform,
    } = of;
    Entry {
        location: built_for.to_string(),
        oci_digest: manifest.to_string(),
        image_digest: image.to_string(),
        platform,
        artifact_type: version.artifact_type().to_owned(),
        ..entry(
            Kind::Index,
            &Descriptor::new(media_type::OCI_MANIFEST, digest, size),
        )
    }
}

/// Writes entries if there are records. Runs on a blocking thread because it may wait for another
/// process.
pub(crate) async fn write(
    records: Option<&Artifacts>,
    entries: Vec<Entry>,
) -> Result<(), ArtifactsError> {
    match records.cloned() {
        Some(records) if !entries.is_empty() => {
            let written = tokio::task::spawn_blocking(move || records.put(&entries)).await;
            // The task is never aborted, so this is a panic: propagate it.
            written.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        }
        _ => Ok(()),
    }
}
