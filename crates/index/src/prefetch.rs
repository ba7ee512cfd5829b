//! Prefetch artifacts: the spans of a layer that a node fetches first.
//!
//! The user names files of the image (`paths`). `Search` looks the names up while a layer's
//! table of contents is available. `assign` selects the uppermost layer that contains each file,
//! and the spans of the file become ranges of that layer's artifact. To produce the same bytes as
//! the reference, names must match the archive exactly: directories (`etc/`) and names with a
//! leading `./` are not found, and whiteouts in upper layers are ignored.
//!
//! The user can also give a record of a start (`recorded`). Its spans come first, in order.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use soci_oci::{Descriptor, Digest, json};
use soci_store::errno;
use soci_ztoc::Entry;

use crate::model::{LAYER_DIGEST, PREFETCH_MEDIA_TYPE, RECORDED_START};

pub(crate) mod recorded;

/// The only supported version of the format.
const VERSION: &str = "1.0";

/// Maximum size of an artifact in bytes: about 20,000 ranges, more than any layer needs.
pub const MAX_ARTIFACT_BYTES: u64 = 1 << 20;

/// Maximum size of a list of files in bytes: enough for every path of a very large image.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Consecutive spans of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpanRange {
    /// The first span.
    #[serde(default, rename = "start_span")]
    pub start: u64,
    /// The last span, inclusive. As in the reference, it may be one past the last span of the
    /// layer.
    #[serde(default, rename = "end_span")]
    pub end: u64,
    /// Higher values are more urgent. No known tool writes it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
    /// When a recorded start first used the range, in milliseconds since its first read, the same
    /// for all layers of the image. The reference implementation ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_use_ms: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl SpanRange {
    /// Number of spans. Zero if the end is before the start.
    #[must_use]
    pub fn count(&self) -> u64 {
        let more = self.end.checked_sub(self.start);
        more.map_or(0, |more| more.saturating_add(1))
    }
}

/// The encoded form of the artifact.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: String,
    #[serde(default)]
    prefetch_spans: Option<Vec<SpanRange>>,
}

/// Why bytes are not a valid prefetch artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The artifact is not valid JSON.
    #[error("prefetch artifact cannot be read")]
    Json(#[source] serde_json::Error),
    /// The version is not supported.
    #[error("unsupported prefetch artifact version: {0} (expected 1.0)")]
    Version(String),
    /// The artifact has no ranges.
    #[error("prefetch artifact is empty")]
    Empty,
    /// A range ends before it starts.
    #[error("prefetch artifact has a range of spans from {start} to {end}")]
    Range {
        /// Its first span.
        start: u64,
        /// Its last span.
        end: u64,
    },
}

/// Parses an artifact. It must have at least one range, and each range at least one span.
pub fn parse(bytes: &[u8]) -> Result<Vec<SpanRange>, ArtifactError> {
    let document: Document = json::from_slice(bytes).map_err(ArtifactError::Json)?;
    if document.version != VERSION {
        return Err(ArtifactError::Version(document.version));
    }
    let ranges = document.prefetch_spans.unwrap_or_default();
    if ranges.is_empty() {
        return Err(ArtifactError::Empty);
    }
    match ranges.iter().find(|range| range.end < range.start) {
        None => Ok(ranges),
        Some(&SpanRange { start, end, .. }) => Err(ArtifactError::Range { start, end }),
    }
}

/// Encodes an artifact with these ranges.
#[must_use]
pub fn encode(ranges: &[SpanRange]) -> Vec<u8> {
    json::to_vec(&Document {
        version: VERSION.to_owned(),
        prefetch_spans: Some(ranges.to_vec()),
    })
}

/// The prefetch artifact of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchArtifact {
    /// The digest of the layer.
    pub layer: Digest,
    /// The ranges: recorded ones in the order of their first use, then others, sorted. They do not
    /// overlap.
    pub ranges: Vec<SpanRange>,
    /// The encoded artifact.
    pub bytes: Bytes,
    /// The descriptor in the index.
    pub descriptor: Descriptor,
}

impl PrefetchArtifact {
    fn new(layer: Digest, ranges: Vec<SpanRange>) -> Self {
        let bytes = encode(&ranges);
        let mut descriptor = Descriptor::of(PREFETCH_MEDIA_TYPE, &bytes);
        let layer_text = layer.to_string();
        descriptor
            .annotations
            .insert(LAYER_DIGEST.to_owned(), layer_text);
        if ranges.iter().any(|range| range.first_use_ms.is_some()) {
            let yes = "true".to_owned();
            descriptor
                .annotations
                .insert(RECORDED_START.to_owned(), yes);
        }
        Self {
            layer,
            ranges,
            bytes: bytes.into(),
            descriptor,
        }
    }
}

/// Why the list of files cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// The file cannot be read.
    #[error(
        "failed to parse prefetch files: failed to load prefetch files from JSON: failed to read JSON file: open {}: {}",
        path.display(),
        errno(cause)
    )]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error. It is not a source because the message already contains it.
        cause: io::Error,
    },
    /// The file is not an array of strings.
    #[error(
        "failed to parse prefetch files: failed to load prefetch files from JSON: failed to parse JSON: {0}"
    )]
    Json(serde_json::Error),
}

/// Returns the names to look for: the listed ones, then those in the JSON file, which is an array
/// of paths. Blank names are dropped.
pub fn paths(listed: &[String], file: Option<&Path>) -> Result<Arc<[String]>, ListError> {
    let mut all = listed.to_vec();
    if let Some(path) = file {
        let bytes = read_list(path).map_err(|cause| ListError::Read {
            path: path.to_owned(),
            cause,
        })?;
        let more: Option<Vec<Option<String>>> =
            json::from_slice(&bytes).map_err(ListError::Json)?;
        all.extend(more.unwrap_or_default().into_iter().flatten());
    }
    let names = all.iter().map(|path| path.trim());
    Ok(names.filter(|path| !path.is_empty()).map(clean).collect())
}

fn read_list(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    io::Read::read_to_end(&mut io::Read::take(file, MAX_LIST_BYTES + 1), &mut bytes)?;
    if bytes.len() as u64 > MAX_LIST_BYTES {
        return Err(io::Error::other("more than 64 MiB"));
    }
    Ok(bytes)
}

/// Normalizes a path to the form in archives: relative to the root, without `.`, `..` and double
/// slashes.
#[must_use]
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A name that was found: its position in the list of names, and the spans of the file.
pub(crate) type Hit = (usize, SpanRange);

/// Looks names up in one table of contents.
#[derive(Debug)]
pub(crate) struct Search<'a> {
    /// Names that have not been found yet, with their positions in the list.
    names: HashMap<&'a [u8], Vec<usize>>,
    hits: Vec<Hit>,
}

impl<'a> Search<'a> {
    pub(crate) fn new(names: &'a [String]) -> Self {
        let mut by_name: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (number, name) in names.iter().enumerate() {
            by_name.entry(name.as_bytes()).or_default().push(number);
        }
        Self {
            names: by_name,
            hits: Vec::new(),
        }
    }

    /// Processes the next entry of the archive. `span_at` returns the span that contains an offset
    /// of the archive. The end offset counts as part of the file, so a file that ends at the end of
    /// a span also gets the next span.
    pub(crate) fn see(&mut self, entry: &Entry<'_>, span_at: impl Fn(u64) -> Option<u64>) {
        // Only the first entry with a name counts.
        let Some(numbers) = self.names.remove(entry.name) else {
            return;
        };
        let start = span_at(entry.offset);
        let end = span_at(entry.offset.saturating_add(entry.size));
        if let Some((start, end)) = start.zip(end) {
            let range = SpanRange {
                start,
                end,
                priority: 0,
                first_use_ms: None,
            };
            self.hits
                .extend(numbers.into_iter().map(|number| (number, range)));
        }
    }

    /// Returns the matches.
    pub(crate) fn finish(self) -> Vec<Hit> {
        self.hits
    }
}

/// Creates the artifacts for these names, and for the ranges of each layer that a record wants.
/// `layers` has the matches of each layer, lowest first. Also returns the names that no layer
/// contains.
pub(crate) fn assign<'n>(
    names: &'n [String],
    layers: &[(Digest, Vec<Hit>)],
    mut recorded: HashMap<Digest, Vec<SpanRange>>,
) -> (Vec<PrefetchArtifact>, Vec<&'n str>) {
    let mut is_found = vec![false; names.len()];
    let mut by_layer: HashMap<Digest, Vec<SpanRange>> = HashMap::new();
    for (layer, hits) in layers.iter().rev() {
        for &(number, range) in hits {
            let is_found_above = is_found
                .get_mut(number)
                .is_none_or(|it| std::mem::replace(it, true));
            if !is_found_above {
                by_layer.entry(*layer).or_default().push(range);
            }
        }
    }
    let found = names.iter().zip(is_found);
    let not_found = found.filter_map(|(name, found)| (!found).then_some(name.as_str()));
    let not_found = not_found.collect();
    let artifact = |(layer, _): &(Digest, Vec<Hit>)| {
        let named = by_layer.remove(layer).unwrap_or_default();
        let ranges = joined(recorded.remove(layer).unwrap_or_default(), named);
        (!ranges.is_empty()).then(|| PrefetchArtifact::new(*layer, ranges))
    };
    (layers.iter().filter_map(artifact).collect(), not_found)
}

/// Recorded ranges, then what the others add to them.
fn joined(mut recorded: Vec<SpanRange>, named: Vec<SpanRange>) -> Vec<SpanRange> {
    let named = merged(named);
    if recorded.is_empty() {
        return named;
    }
    let known: HashSet<u64> = recorded
        .iter()
        .flat_map(|range| range.start..=range.end)
        .collect();
    let spans = named.iter().flat_map(|range| range.start..=range.end);
    let new = spans.filter(|span| !known.contains(span));
    let new = new.map(|span| SpanRange {
        start: span,
        end: span,
        priority: 0,
        first_use_ms: None,
    });
    recorded.extend(merged(new.collect()));
    recorded
}

/// Sorts ranges and joins those that overlap or touch.
fn merged(mut ranges: Vec<SpanRange>) -> Vec<SpanRange> {
    ranges.sort_unstable();
    let mut merged: Vec<SpanRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(1) => {
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
