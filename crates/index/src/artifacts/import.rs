//! Imports records from the reference's `artifacts.db`.
//!
//! One bucket contains a bucket for each blob, keyed by digest. The file is read once and never
//! written, under a shared lock like the reference's own readers. Invalid records are skipped with
//! a warning; a rebuild from the content store restores them if their blobs still exist.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use soci_ztoc::Time;

use super::bolt::{Bolt, BoltError, Value};
use super::{ArtifactsError, Entry, Kind};

/// The name of the reference's file in the root directory.
pub(super) const NAME: &str = "artifacts.db";
const BUCKET: &[u8] = b"soci_artifacts";
/// Maximum size of the file in bytes: about half a million records. The file never shrinks, but its
/// pages are reused.
const MAX_BYTES: u64 = 512 << 20;
/// Maximum size of a text in bytes. Digests, platforms and media types are shorter.
const MAX_TEXT: usize = 4096;
/// Seconds from year 1, the origin of Go's times, to 1970.
const GO_EPOCH: i64 = 62_135_596_800;
const PAUSE: Duration = Duration::from_millis(100);

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
        Some(bytes) => varint(bytes),
    };
    Some(Entry {
        digest: str::from_utf8(key).ok()?.parse().ok()?,
        size: varint(field("size")?)?,
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

/// Decodes a non-negative number in the format of Go's `binary.PutVarint` (zig-zag, seven bits per
/// byte).
fn varint(bytes: &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return (number & 1 == 0).then_some(number >> 1);
        }
    }
    None
}

/// Decodes a time in Go's binary format. `Some(None)` is Go's zero time. The time zone offset is
/// ignored.
fn time(bytes: &[u8]) -> Option<Option<Time>> {
    let (version, rest) = bytes.split_first()?;
    let (seconds, rest) = rest.split_first_chunk()?;
    let (nanos, zone) = rest.split_first_chunk()?;
    // In version 2, the time zone offset includes seconds.
    if !matches!((version, zone.len()), (1, 2) | (2, 3)) {
        return None;
    }
    let (seconds, nanos) = (i64::from_be_bytes(*seconds), u32::from_be_bytes(*nanos));
    if nanos > 999_999_999 {
        return None;
    }
    if (seconds, nanos) == (0, 0) {
        return Some(None);
    }
    let secs = seconds.checked_sub(GO_EPOCH)?;
    Some(Some(Time { secs, nanos }))
}

/// Reads the reference's file. Returns `None` if it is missing or never had any records. Waits
/// while another process writes it.
pub(super) fn read(path: &Path, patience: Duration) -> Result<Option<Imported>, ImportError> {
    let bytes = match whole(path, patience)? {
        Some(bytes) if !bytes.is_empty() => bytes,
        _ => return Ok(None),
    };
    Ok(parse_reference(&bytes)?)
}

fn whole(path: &Path, patience: Duration) -> Result<Option<Vec<u8>>, ImportError> {
    // Check the file type first, because opening a pipe would block.
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if !metadata.is_file() => return Err(ImportError::NoFile),
        other => other.map(drop)?,
    }
    let file = File::open(path)?;
    let started = Instant::now();
    loop {
        match file.try_lock_shared() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if started.elapsed() < patience => sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(ImportError::Busy),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ImportError::TooLarge);
    }
    Ok(Some(bytes))
}

/// Why the reference's file was not imported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImportError {
    #[error("another process does not let go of it")]
    Busy,
    #[error("it is no file")]
    NoFile,
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Damaged(#[from] BoltError),
}

impl ImportError {
    /// A file in use has its own error. Like the reference, any other reason goes to the log.
    pub(super) fn reported(self, path: &Path, waited: Duration) -> ArtifactsError {
        if matches!(self, Self::Busy) {
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
