//! Selects the index to push: the newest for each platform.

use std::sync::Arc;

use soci_oci::{Descriptor, Digest};
use soci_store::ContentStore;

use super::{Note, PushError, PushObserver, Selected};
use crate::artifacts::{Entry, Kind};
use crate::image::{Image, ImageError, Platforms};
use crate::model::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2};

/// Selects from `records` the index to push for every platform of the image that `target`
/// describes. If a platform has several manifests, those with an index are selected.
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
        let parts = image
            .parts_of(&platform)
            .await
            .map_err(|error| match error {
                ImageError::NoManifest { platform, offered } => {
                    PushError::NoManifest { platform, offered }
                }
                error => PushError::Image(error),
            })?;
        let subjects: Vec<Digest> = parts.iter().map(|part| part.descriptor.digest).collect();
        has_v2 |= subjects.iter().any(|subject| {
            of_manifest(records, subject, ARTIFACT_TYPE_V2)
                .next()
                .is_some()
        });
        if has_v2 {
            observer.note(&Note::VersionTwo);
        }
        let before = selected.len();
        for subject in subjects {
            if let Some(newest) = newest(records, &subject) {
                selected.push(Selected {
                    platform: platform.clone(),
                    subject,
                    index: Descriptor {
                        artifact_type: newest.artifact_type.clone(),
                        ..Descriptor::new(newest.media_type.as_str(), newest.digest, newest.size)
                    },
                });
            }
        }
        if selected.len() == before {
            return Err(PushError::NoIndex(platform));
        }
    }
    Ok(selected)
}

/// The newest recorded version 1 index of an image manifest.
fn newest<'a>(records: &'a [Entry], manifest: &Digest) -> Option<&'a Entry> {
    of_manifest(records, manifest, ARTIFACT_TYPE_V1).max_by_key(|entry| {
        let created = entry.created_at.as_ref();
        created.map(|time| (time.secs, time.nanos))
    })
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
