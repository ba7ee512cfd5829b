//! Prefetch artifacts: which spans of a layer a node fetches first.
//!
//! The user names files of the image ([`paths`]). While a layer's table of contents is at hand, the names
//! are looked up in it ([`Search`]); the uppermost layer that has a file wins, and its spans become ranges
//! of that layer's artifact ([`assign`]). Names are compared as they stand in the archive, so a
//! folder (`etc/`) or a name with a leading `./` is not found, and whiteouts in upper layers are not seen:
//! the artifact's bytes are those of the reference.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use soci_oci::store::errno;
use soci_oci::{Descriptor, Digest, json};
use soci_ztoc::Entry;

use crate::model::{LAYER_DIGEST, PREFETCH_MEDIA_TYPE};

/// The only version of the format.
const VERSION: &str = "1.0";

/// Largest artifact that is read, in bytes: some 20,000 ranges, more than a layer has spans worth naming.
pub const MAX_ARTIFACT_BYTES: u64 = 1 << 20;

/// Largest list of files that is read, in bytes: a path for each file of a very large image.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Spans of a layer that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpanRange {
    /// The first span.
    #[serde(default, rename = "start_span")]
    pub start: u64,
    /// The last span. It may lie one behind the last of the layer, as the reference counts.
    #[serde(default, rename = "end_span")]
    pub end: u64,
    /// More urgent if it is larger; nobody writes it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl SpanRange {
    /// How many spans these are; none where the end lies before the start.
    #[must_use]
    pub fn count(&self) -> u64 {
        let more = self.end.checked_sub(self.start);
        more.map_or(0, |more| more.saturating_add(1))
    }
}

/// The artifact as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: String,
    #[serde(default)]
    prefetch_spans: Option<Vec<SpanRange>>,
}

/// Why bytes are no prefetch artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// Not the JSON that it should be.
    #[error("prefetch artifact cannot be read")]
    Json(#[source] serde_json::Error),
    /// A version that nobody knows.
    #[error("unsupported prefetch artifact version: {0} (expected 1.0)")]
    Version(String),
    /// It names no span.
    #[error("prefetch artifact is empty")]
    Empty,
    /// A range that ends before it begins.
    #[error("prefetch artifact has a range of spans from {start} to {end}")]
    Range {
        /// Its first span.
        start: u64,
        /// Its last span.
        end: u64,
    },
}

/// Reads an artifact: at least one range, each of at least one span.
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

/// The bytes of the artifact with these ranges.
#[must_use]
pub fn encode(ranges: &[SpanRange]) -> Vec<u8> {
    json::to_vec(&Document {
        version: VERSION.to_owned(),
        prefetch_spans: Some(ranges.to_vec()),
    })
}

/// What to fetch first of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchArtifact {
    /// The layer.
    pub layer: Digest,
    /// Sorted, apart from each other.
    pub ranges: Vec<SpanRange>,
    /// The artifact.
    pub bytes: Bytes,
    /// As it stands in the index.
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
        Self {
            layer,
            ranges,
            bytes: bytes.into(),
            descriptor,
        }
    }
}

/// Why the list of files cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// The file of the list cannot be read.
    #[error(
        "failed to parse prefetch files: failed to load prefetch files from JSON: failed to read JSON file: open {}: {}",
        path.display(),
        errno(cause)
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why; not a source, since the message says it.
        cause: io::Error,
    },
    /// It is no array of strings.
    #[error(
        "failed to parse prefetch files: failed to load prefetch files from JSON: failed to parse JSON: {0}"
    )]
    Json(serde_json::Error),
}

/// The names to look for: those listed, then those of the JSON file, an array of paths. Blank ones are
/// dropped.
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

/// A path as archives name files: from the root, without `.`, `..` and doubled slashes.
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

/// A name that was found: its place in the list of names, and the spans of the file.
pub(crate) type Hit = (usize, SpanRange);

/// Looks names up in one table of contents.
#[derive(Debug)]
pub(crate) struct Search<'a> {
    /// Names that were not found yet, and their places in the list.
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

    /// The next entry of the archive; `span_at` tells which span an offset of the archive is in. The end
    /// counts as part of the file, so one that ends where a span does has one span more.
    pub(crate) fn see(&mut self, entry: &Entry<'_>, span_at: impl Fn(u64) -> Option<u64>) {
        // The first entry of a name counts.
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
            };
            self.hits
                .extend(numbers.into_iter().map(|number| (number, range)));
        }
    }

    /// What was found.
    pub(crate) fn finish(self) -> Vec<Hit> {
        self.hits
    }
}

/// The artifacts for these names, given for each layer, lowest first, what was found in it; and the
/// names that are in none.
pub(crate) fn assign<'n>(
    names: &'n [String],
    layers: &[(Digest, Vec<Hit>)],
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
        let ranges = by_layer.remove(layer)?;
        Some(PrefetchArtifact::new(*layer, merged(ranges)))
    };
    (layers.iter().filter_map(artifact).collect(), not_found)
}

/// Sorted, and joined where they overlap or touch.
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
