//! Records of the indexes, zTOCs and prefetch artifacts that were built on this machine.
//!
//! A record describes one blob in a content store and is keyed by its digest. Only the commands use
//! the records, never the daemon. A lost file can be rebuilt from the content store.
//!
//! Each operation opens `artifacts.redb`, runs one transaction and closes the file, so a long build
//! does not block other processes. While another process has it open, the operation retries for
//! several seconds. The first use imports the reference's `artifacts.db`, which is never written.
//! If that file is unreadable, operations other than a rebuild fail: starting empty would look like
//! data loss.

mod file;
mod import;
pub mod rebuild;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use import::{Imported, parse_reference};
use serde::{Deserialize, Serialize};
pub use soci_bolt::BoltError;
use soci_oci::Digest;
use soci_ztoc::Time;

/// The kind of a recorded blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The manifest of an index.
    #[serde(rename = "soci_index")]
    Index,
    /// A zTOC.
    #[serde(rename = "soci_layer")]
    Layer,
    /// A prefetch artifact.
    #[serde(rename = "soci_prefetch")]
    Prefetch,
}

impl Kind {
    /// The reference's name for the kind.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "soci_index",
            Self::Layer => "soci_layer",
            Self::Prefetch => "soci_prefetch",
        }
    }
}

/// A record of one blob. Texts may contain any characters, because they come from images or from
/// the reference's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The digest of the blob.
    pub digest: Digest,
    /// The size of the blob in bytes.
    pub size: u64,
    /// The layer (zTOC) or the image manifest that the index was first built for (index). Empty for
    /// a prefetch artifact.
    pub location: String,
    /// The layer (zTOC, prefetch artifact) or the image manifest (index) that the blob belongs to.
    pub oci_digest: String,
    /// The digest that the image's name referred to (index only).
    pub image_digest: String,
    /// `os/arch[/variant]` (index only).
    pub platform: String,
    /// The kind of the blob.
    pub kind: Kind,
    /// The media type of the blob.
    pub media_type: String,
    /// The artifact type (index only).
    pub artifact_type: String,
    /// When the blob was recorded. `None` in old records.
    pub created_at: Option<Time>,
    /// The requested span size in bytes (zTOC only).
    pub span_size: u64,
    /// Whether a rebuild found the blob in a content store. Such a blob may come from anywhere.
    pub is_found: bool,
}

/// The current time, for [`Entry::created_at`].
#[must_use]
pub fn now() -> Time {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time {
        secs: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: now.subsec_nanos(),
    }
}

/// Why records cannot be read or written. The texts match the reference where it has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactsError {
    /// Nothing has been recorded yet.
    #[error("soci_artifacts not found")]
    NeverWritten,
    /// The blob is not recorded.
    #[error("couldn't retrieve artifact for {0}, not found")]
    NotFound(Digest),
    /// The index to remove is not recorded.
    #[error("the index of the digest {0} doesn't exist")]
    NoIndex(String),
    /// The blob to remove is not an index.
    #[error("the digest {0} does not correspond to an index")]
    NotAnIndex(Digest),
    /// Another process keeps the file open.
    #[error("{} is in use by another process (waited {} s)", path.display(), waited.as_secs_f64().ceil())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long this process waited.
        waited: Duration,
    },
    /// The file cannot be used. The reason is in the log.
    #[error("artifacts.db is not available")]
    Unavailable,
    /// An operation on the file failed.
    #[error("{}: {action}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// The operation.
        action: &'static str,
        /// The database's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record is not in the format that this program writes.
    #[error("{}: record of {digest:?} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The key of the record.
        digest: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ArtifactsError {
    /// Whether the error only means that the record does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NeverWritten | Self::NotFound(_))
    }
}

/// The records of one root directory. Holds only a path; no file is open between operations.
#[derive(Debug, Clone)]
pub struct Artifacts {
    root: PathBuf,
    /// When to stop waiting for another process, if earlier than by default.
    deadline: Option<Instant>,
}

impl Artifacts {
    /// Returns the records in this directory. Does not access the disk.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            deadline: None,
        }
    }

    /// Limits the time to wait for other processes.
    #[must_use]
    pub fn until(self, deadline: Instant) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }

    /// Returns the record of one blob.
    pub fn get(&self, digest: &Digest) -> Result<Entry, ArtifactsError> {
        let reader = self.reader()?.ok_or(ArtifactsError::NeverWritten)?;
        match reader.get(&digest.to_string())? {
            Some(row) => self.entry(&digest.to_string(), &row),
            None => Err(ArtifactsError::NotFound(*digest)),
        }
    }

    /// Returns all records by digest. Empty if nothing has been recorded yet.
    pub fn all(&self) -> Result<Vec<Entry>, ArtifactsError> {
        let rows = match self.reader()? {
            Some(reader) => reader.all()?,
            None => Vec::new(),
        };
        rows.iter().map(|(key, row)| self.entry(key, row)).collect()
    }

    /// Records blobs atomically. Existing records are overwritten.
    pub fn put(&self, entries: &[Entry]) -> Result<(), ArtifactsError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut writer = self.writer()?;
        for entry in entries {
            writer.put(&entry.digest.to_string(), &Row::encode(entry))?;
        }
        writer.commit()
    }

    /// Removes records atomically. Digests without a record are ignored.
    pub fn remove(&self, digests: &[Digest]) -> Result<(), ArtifactsError> {
        if digests.is_empty() || self.reader()?.is_none() {
            return Ok(());
        }
        let mut writer = self.writer()?;
        for digest in digests {
            writer.remove(&digest.to_string())?;
        }
        writer.commit()
    }

    /// Returns the record of the index to remove, for any text that the user gave. Fails if the
    /// blob is not an index.
    pub fn index(&self, digest: &str) -> Result<Entry, ArtifactsError> {
        let found = match digest.parse() {
            Ok(digest) => self.get(&digest),
            // A text that is not a digest cannot be a key.
            Err(_) if self.reader()?.is_none() => Err(ArtifactsError::NeverWritten),
            Err(_) => return Err(ArtifactsError::NoIndex(digest.to_owned())),
        };
        match found {
            Ok(entry) if entry.kind == Kind::Index => Ok(entry),
            Ok(entry) => Err(ArtifactsError::NotAnIndex(entry.digest)),
            Err(ArtifactsError::NotFound(digest)) => {
                Err(ArtifactsError::NoIndex(digest.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the indexes that were built for the manifest or index that an image's name refers
    /// to.
    pub fn indexes_of(&self, image: &Digest) -> Result<Vec<Entry>, ArtifactsError> {
        if self.reader()?.is_none() {
            return Err(ArtifactsError::NeverWritten);
        }
        let (image, mut all) = (image.to_string(), self.all()?);
        all.retain(|entry| entry.kind == Kind::Index && entry.image_digest == image);
        Ok(all)
    }

    /// Creates the file if it is missing, even if the reference's records are unreadable. Call this
    /// before a rebuild.
    pub fn begin(&self) -> Result<(), ArtifactsError> {
        self.ensure(Unreadable::LeftOut).map(drop)
    }

    fn entry(&self, key: &str, bytes: &[u8]) -> Result<Entry, ArtifactsError> {
        Row::decode(key, bytes).map_err(|source| ArtifactsError::Damaged {
            path: self.path(),
            digest: key.to_owned(),
            source,
        })
    }
}

/// How to handle an unreadable `artifacts.db`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    Refused,
    LeftOut,
}

/// The stored form of an entry: JSON without zero values. Its key is the digest.
#[derive(Serialize, Deserialize)]
struct Row {
    kind: Kind,
    size: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    location: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    oci_digest: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    image_digest: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    platform: String,
    media_type: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    artifact_type: String,
    /// Seconds and nanoseconds of Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_at: Option<(i64, u32)>,
    #[serde(default)]
    span_size: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_found: bool,
}

impl Row {
    fn encode(entry: &Entry) -> Vec<u8> {
        let Entry {
            digest: _,
            size,
            location,
            oci_digest,
            image_digest,
            platform,
            kind,
            media_type,
            artifact_type,
            created_at,
            span_size,
            is_found,
        } = entry.clone();
        soci_oci::json::to_vec(&Self {
            kind,
            size,
            location,
            oci_digest,
            image_digest,
            platform,
            media_type,
            artifact_type,
            created_at: created_at.map(|time| (time.secs, time.nanos)),
            span_size,
            is_found,
        })
    }

    fn decode(key: &str, bytes: &[u8]) -> Result<Entry, Box<dyn std::error::Error + Send + Sync>> {
        let digest = key.parse::<Digest>()?;
        let row: Self = serde_json::from_slice(bytes)?;
        Ok(Entry {
            digest,
            size: row.size,
            location: row.location,
            oci_digest: row.oci_digest,
            image_digest: row.image_digest,
            platform: row.platform,
            kind: row.kind,
            media_type: row.media_type,
            artifact_type: row.artifact_type,
            created_at: row.created_at.map(|(secs, nanos)| Time { secs, nanos }),
            span_size: row.span_size,
            is_found: row.is_found,
        })
    }
}
