//! The results of `create` and `convert`, as the `--json` object, and the check for `--strict`.

use std::time::Duration;

use serde::Serialize;
use soci_index::{
    BuildError, ConvertError, Converted, CreateError, Creation, LayerOutcome, Outcome, Parts,
};
use soci_oci::{Descriptor, Digest};

use super::reporter::Reporter;

/// A blob that was built or reused.
#[derive(Debug, Serialize)]
struct BlobReport {
    digest: String,
    size: u64,
}

impl BlobReport {
    fn of(blob: &Descriptor) -> Self {
        Self {
            digest: blob.digest.to_string(),
            size: blob.size,
        }
    }
}

/// The outcome for a layer.
#[derive(Debug, Serialize)]
struct LayerReport {
    digest: String,
    media_type: String,
    size: u64,
    /// `built`, `reused`, `skipped` or `ignored`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ztoc: Option<BlobReport>,
    seconds: f64,
}

impl LayerReport {
    fn of(outcome: &LayerOutcome) -> Self {
        let (word, reason) = match &outcome.outcome {
            Outcome::Built(_) => ("built", None),
            Outcome::Reused(_) => ("reused", None),
            Outcome::Skipped(skip) => ("skipped", Some(skip.to_string())),
            Outcome::Ignored => ("ignored", None),
        };
        Self {
            digest: outcome.layer.digest.to_string(),
            media_type: outcome.layer.media_type.clone(),
            size: outcome.layer.size,
            outcome: word,
            reason,
            ztoc: outcome.ztoc().map(BlobReport::of),
            seconds: rounded(outcome.time),
        }
    }
}

/// A prefetch artifact.
#[derive(Debug, Serialize)]
struct PrefetchReport {
    digest: String,
    size: u64,
    layer: String,
    spans: u64,
}

/// The outcome for a platform of the image.
#[derive(Debug, Serialize)]
struct PlatformReport {
    platform: String,
    /// Digest of the image's manifest.
    manifest: String,
    /// Digest of the manifest that names the index, if it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    converted_manifest: Option<String>,
    /// `null` if no layer has a zTOC.
    index: Option<BlobReport>,
    layers: Vec<LayerReport>,
    prefetch: Vec<PrefetchReport>,
}

impl PlatformReport {
    fn new(platform: String, manifest: &Digest, index: Option<&Descriptor>, parts: &Parts) -> Self {
        let prefetch = parts.prefetch.iter().map(|artifact| PrefetchReport {
            digest: artifact.descriptor.digest.to_string(),
            size: artifact.descriptor.size,
            layer: artifact.layer.to_string(),
            spans: artifact.ranges.iter().map(|range| range.count()).sum(),
        });
        Self {
            platform,
            manifest: manifest.to_string(),
            converted_manifest: None,
            index: index.map(BlobReport::of),
            layers: parts.layers.iter().map(LayerReport::of).collect(),
            prefetch: prefetch.collect(),
        }
    }
}

/// The result of `create`.
#[derive(Debug, Serialize)]
pub(crate) struct CreateReport {
    image: String,
    platforms: Vec<PlatformReport>,
    /// Total size of the layers that now have a zTOC.
    bytes: u64,
    seconds: f64,
}

impl CreateReport {
    pub(crate) fn new(image: &str, creation: &Creation, reporter: &Reporter) -> Self {
        let platforms = creation.indexes.iter().map(|made| {
            let platform = made.platform.to_string();
            PlatformReport::new(
                platform,
                &made.subject.digest,
                Some(&made.index),
                &made.parts,
            )
        });
        Self {
            image: image.to_owned(),
            platforms: platforms.collect(),
            bytes: reporter.bytes(),
            seconds: rounded(reporter.elapsed()),
        }
    }
}

/// The result of `convert`.
#[derive(Debug, Serialize)]
pub(crate) struct ConvertReport {
    source: String,
    destination: String,
    /// Digest of the new image.
    digest: String,
    size: u64,
    platforms: Vec<PlatformReport>,
    /// Total size of the layers that now have a zTOC.
    bytes: u64,
    seconds: f64,
}

impl ConvertReport {
    pub(crate) fn new(
        source: &str,
        destination: &str,
        converted: &Converted,
        reporter: &Reporter,
    ) -> Self {
        let platforms = converted.platforms.iter().map(|made| {
            let index = made.index.as_ref();
            let platform = made.platform.to_string();
            let converted = index.map(|bound| bound.manifest.to_string());
            let index = index.map(|bound| &bound.index);
            PlatformReport {
                converted_manifest: converted,
                ..PlatformReport::new(platform, &made.source, index, &made.parts)
            }
        });
        Self {
            source: source.to_owned(),
            destination: destination.to_owned(),
            digest: converted.image.digest.to_string(),
            size: converted.image.size,
            platforms: platforms.collect(),
            bytes: reporter.bytes(),
            seconds: rounded(reporter.elapsed()),
        }
    }
}

/// Seconds, rounded to the millisecond.
pub(super) fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// `--strict` was given, and a layer that should have a zTOC has none. Has its own exit code.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotStrict(String);

/// With `--strict`, fails if layers were left out, also if there was nothing else to index.
pub(crate) fn strict<T>(
    is_asked_for: bool,
    reporter: &Reporter,
    result: anyhow::Result<T>,
) -> anyhow::Result<T> {
    let left_out = reporter.left_out();
    if !is_asked_for || left_out.is_empty() {
        return result;
    }
    match result {
        Err(error) if !is_nothing(&error) => Err(error),
        Err(error) => Err(NotStrict(format!("{error:#}")).into()),
        Ok(_) => {
            let (count, list) = (left_out.len(), left_out.join("; "));
            let layers = if count == 1 {
                "layer was"
            } else {
                "layers were"
            };
            let text = format!("{count} {layers} left without a ztoc: {list}");
            Err(NotStrict(text).into())
        }
    }
}

/// Whether the only problem is that there was nothing to index.
fn is_nothing(error: &anyhow::Error) -> bool {
    let build = error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<ConvertError>() {
            Some(ConvertError::Build(build)) => Some(build),
            _ => match cause.downcast_ref::<CreateError>() {
                Some(CreateError::Build(build)) => Some(build),
                _ => None,
            },
        });
    matches!(build, Some(BuildError::Empty | BuildError::Refused(_)))
}
