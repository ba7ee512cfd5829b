//! Imports records from the reference's `artifacts.db`.
//!
//! One bucket contains a bucket for each blob, keyed by digest. The file is read once and never
//! written, under a shared lock like the reference's own readers. Invalid records are skipped with
//! a warning; a rebuild from the content store restores them if their blobs still exist.

use std::path::Path;
use std::time::Duration;

use soci_bolt::{Bolt, BoltError, ReadError, Value, value};
use soci_ztoc::Time;

use super::{ArtifactsError, Entry, Kind};

/// The name of the reference's file in the root directory.
pub(super) const NAME: &str = "artifacts.db";
const BUCKET: &[u8] = b"soci_artifacts";
/// Maximum size of the file in bytes: about half a million records. The file never shrinks, but its
/// pages are reused.
const MAX_BYTES: u64 = 512 << 20;
/// Maximum size of a text in bytes. Digests, platforms and media types are shorter.
const MAX_TEXT: usize = 4096;
/// The reference's records, and how many were skipped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The valid records, by digest.
    pub entries: Vec<Entry>,
    /// Number of invalid records.
    pub skipped: usize,
}

/// Parses the content of an `artifacts.db`. Returns `None` if it never had any records.
pub fn parse_reference(file: &[u8]) -> Result<Option<Imported>, BoltError> {
    let mut bolt = Bolt::open(file)?;
    let root = bolt.root();
    let artifacts = bolt
        .entries(root)?
        .into_iter()
        .find_map(|(key, value)| match value {
            Value::Bucket(bucket) if key == BUCKET => Some(bucket),
            _ => None,
        });
    let Some(artifacts) = artifacts else {
        return Ok(None);
    };
    let mut imported = Imported::default();
    for (key, value) in bolt.entries(artifacts)? {
        let Value::Bucket(bucket) = value else {
            imported.skipped += 1;
            continue;
        };
        match entry(key, &bolt.entries(bucket)?) {
            Some(entry) => imported.entries.push(entry),
            None => imported.skipped += 1,
        }
    }
    Ok(Some(imported))
}

fn entry(key: &[u8], fields: &[(&[u8], Value<'_>)]) -> Option<Entry> {
    let field = |name: &str| {
        fields.iter().find_map(|(key, value)| match value {
            Value::Bytes(bytes) if *key == name.as_bytes() => Some(*bytes),
            _ => None,
        })
    };
    let text = |name| {
        let bytes = field(name).unwrap_or_default();
        let short = bytes.len() <= MAX_TEXT;
        short.then(|| String::from_utf8_lossy(bytes).into_owned())
    };
    let number = |name| match field(name) {
        None => Some(0),
        Some(bytes) => value::varint(bytes),
    };
    Some(Entry {
        digest: str::from_utf8(key).ok()?.parse().ok()?,
        size: value::varint(field("size")?)?,
        location: text("location")?,
        oci_digest: text("oci_digest")?,
        image_digest: text("image_digest")?,
        platform: text("platform")?,
        kind: kind(field("type")?)?,
        media_type: text("media_type")?,
        artifact_type: text("artifact_type")?,
        created_at: match field("created_at") {
            None => None,
            Some(bytes) => time(bytes)?,
        },
        span_size: number("span_size")?,
        is_found: false,
    })
}

fn kind(name: &[u8]) -> Option<Kind> {
    [Kind::Index, Kind::Layer, Kind::Prefetch]
        .into_iter()
        .find(|kind| kind.name().as_bytes() == name)
}

/// Decodes a time. `Some(None)` is Go's zero time.
fn time(bytes: &[u8]) -> Option<Option<Time>> {
    let time = value::time(bytes)?;
    Some(time.map(|(secs, nanos)| Time { secs, nanos }))
}

/// Reads the reference's file. Returns `None` if it is missing or never had any records. Waits
/// while another process writes it.
pub(super) fn read(path: &Path, patience: Duration) -> Result<Option<Imported>, ImportError> {
    match soci_bolt::read(path, MAX_BYTES, patience)? {
        Some(bytes) => Ok(parse_reference(&bytes)?),
        None => Ok(None),
    }
}

/// Why the reference's file was not imported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImportError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Damaged(#[from] BoltError),
}

impl ImportError {
    /// A file in use has its own error. Like the reference, any other reason goes to the log.
    pub(super) fn reported(self, path: &Path, waited: Duration) -> ArtifactsError {
        if matches!(self, Self::Read(ReadError::Busy)) {
            return ArtifactsError::Busy {
                path: path.to_owned(),
                waited,
            };
        }
        tracing::error!(
            "can't read {}: {self}; `soci rebuild-db` begins without it",
            path.display()
        );
        ArtifactsError::Unavailable
    }
}
