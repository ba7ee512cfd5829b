//! Selects the index to push: the newest for each platform.

use std::sync::Arc;

use soci_oci::{Descriptor, Digest};
use soci_store::ContentStore;

use super::{Note, PushError, PushObserver, Selected};
use crate::artifacts::{Entry, Kind};
use crate::image::{Image, ImageError, Platforms};
use crate::model::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2};

/// Selects from `records` the index to push for every platform of the image that `target`
/// describes.
pub async fn select(
    store: &Arc<dyn ContentStore>,
    records: &[Entry],
    target: &Descriptor,
    platforms: &Platforms,
    observer: &Arc<dyn PushObserver>,
) -> Result<Vec<Selected>, PushError> {
    let image = Image::open(store, target).await.map_err(PushError::Image)?;
    let mut selected = Vec::new();
    let mut has_v2 = false;
    for platform in image.wanted(platforms).await.map_err(PushError::Image)? {
        let part = image.part(platform).await.map_err(|error| match error {
            ImageError::NoManifest { platform, offered } => {
                PushError::NoManifest { platform, offered }
            }
            error => PushError::Image(error),
        })?;
        let subject = part.descriptor.digest;
        has_v2 |= of_manifest(records, &subject, ARTIFACT_TYPE_V2)
            .next()
            .is_some();
        if has_v2 {
            observer.note(&Note::VersionTwo);
        }
        let newest = of_manifest(records, &subject, ARTIFACT_TYPE_V1).max_by_key(|entry| {
            let created = entry.created_at.as_ref();
            created.map(|time| (time.secs, time.nanos))
        });
        let Some(newest) = newest else {
            return Err(PushError::NoIndex(part.platform));
        };
        selected.push(Selected {
            platform: part.platform,
            subject,
            index: Descriptor {
                artifact_type: newest.artifact_type.clone(),
                ..Descriptor::new(newest.media_type.as_str(), newest.digest, newest.size)
            },
        });
    }
    Ok(selected)
}

/// The recorded indexes of one version for an image manifest, by digest.
fn of_manifest<'a>(
    records: &'a [Entry],
    manifest: &Digest,
    artifact_type: &'a str,
) -> impl Iterator<Item = &'a Entry> {
    let manifest = manifest.to_string();
    records.iter().filter(move |entry| {
        entry.kind == Kind::Index
            && entry.oci_digest == manifest
            && entry.artifact_type == artifact_type
    })
}
