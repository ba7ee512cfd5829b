//! The result of `push`, as the `--json` object and as one line.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use soci_index::push::{CopiedBlob, Outcome, Pushed, Selected};
use soci_oci::Digest;
use soci_registry::Listing;

use super::report::rounded;

/// The outcome for a blob or manifest.
#[derive(Debug, Serialize)]
struct CopiedReport {
    digest: String,
    media_type: String,
    size: u64,
    /// `pushed`, `mounted` from another repository, or `skipped` because it already existed.
    outcome: &'static str,
}

impl CopiedReport {
    fn of(copied: &CopiedBlob) -> Self {
        Self {
            digest: copied.blob.digest.to_string(),
            media_type: copied.blob.media_type.clone(),
            size: copied.blob.size,
            outcome: match copied.outcome {
                Outcome::Skipped => "skipped",
                Outcome::Mounted => "mounted",
                Outcome::Pushed => "pushed",
            },
        }
    }
}

/// The outcome for the index of a platform.
#[derive(Debug, Serialize)]
struct IndexReport {
    platform: String,
    /// Digest of the image's manifest.
    manifest: String,
    index: String,
    /// `pushed`, `skipped` because it already existed, or `kept`: the registry has another index,
    /// and the flags say to keep it.
    outcome: &'static str,
    /// Indexes that the registry already had.
    existing: Vec<String>,
    /// `registry`, or `tag` if the registry has no referrers API.
    #[serde(skip_serializing_if = "Option::is_none")]
    listed_by: Option<&'static str>,
    blobs: Vec<CopiedReport>,
    /// Bytes uploaded.
    bytes: u64,
    seconds: f64,
}

/// The result of `push`.
#[derive(Debug, Serialize)]
pub(crate) struct PushReport {
    image: String,
    indexes: Vec<IndexReport>,
    /// Bytes uploaded.
    bytes: u64,
    seconds: f64,
}

impl PushReport {
    pub(crate) fn new(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            indexes: Vec::new(),
            bytes: 0,
            seconds: 0.0,
        }
    }

    pub(crate) fn add(&mut self, selected: &Selected, pushed: &Pushed) {
        let sent = |copied: &&CopiedBlob| copied.outcome == Outcome::Pushed;
        let bytes = pushed
            .blobs
            .iter()
            .filter(sent)
            .map(|copied| copied.blob.size)
            .sum();
        let mut root = pushed.blobs.iter();
        let root = root.find(|copied| copied.blob.digest == selected.index.digest);
        self.bytes += bytes;
        self.indexes.push(IndexReport {
            platform: selected.platform.to_string(),
            manifest: selected.subject.to_string(),
            index: selected.index.digest.to_string(),
            outcome: match root.map(|copied| copied.outcome) {
                None => "kept",
                Some(Outcome::Skipped) => "skipped",
                Some(Outcome::Mounted | Outcome::Pushed) => "pushed",
            },
            existing: pushed.existing.iter().map(Digest::to_string).collect(),
            listed_by: pushed.listing.map(|listing| match listing {
                Listing::Api => "registry",
                Listing::Tag => "tag",
            }),
            blobs: pushed.blobs.iter().map(CopiedReport::of).collect(),
            bytes,
            seconds: rounded(pushed.took),
        });
    }

    /// Sets the total duration.
    pub(crate) fn took(self, time: Duration) -> Self {
        Self {
            seconds: rounded(time),
            ..self
        }
    }
}

impl fmt::Display for PushReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blobs = self.indexes.iter().flat_map(|index| &index.blobs);
        let pushed = blobs.filter(|blob| blob.outcome != "skipped").count();
        let bytes = indicatif::HumanBytes(self.bytes);
        write!(
            f,
            "{pushed} artifacts pushed, {bytes} in {:.1} s",
            self.seconds
        )
    }
}
