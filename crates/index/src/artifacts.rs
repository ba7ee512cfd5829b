//! Records of what was built on this machine: indexes, zTOCs and prefetch artifacts.
//!
//! The blobs themselves lie in a content store; a record says where each came from. Records are read and
//! written by the commands only, never by the daemon, and a lost file can be rebuilt from the content store.
//!
//! There is one record for each digest. Every operation opens the file (`artifacts.redb` in the root folder),
//! does one transaction in memory and closes it again, so that a long build never keeps others from reading;
//! a file that somebody else has open is waited for, for a few seconds. Where the reference left its
//! `artifacts.db`, the first use takes its records over; that file is only ever read. One that cannot be read
//! is an error that names it, since to begin without it would look as if everything were lost; rebuilding the
//! records begins without it.

mod bolt;
mod file;
mod import;
pub mod rebuild;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use bolt::BoltError;
pub use import::{Imported, parse_reference};
use serde::{Deserialize, Serialize};
use soci_oci::Digest;
use soci_ztoc::Time;

/// What a recorded blob is.
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
    /// As the reference writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "soci_index",
            Self::Layer => "soci_layer",
            Self::Prefetch => "soci_prefetch",
        }
    }
}

/// What is known of one blob. Texts come from images or from another program's file: any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// The layer (zTOC) or the image manifest that an index was first built for; empty for a prefetch artifact.
    pub location: String,
    /// The layer (zTOC, prefetch artifact) or the image manifest (index) that it belongs to.
    pub oci_digest: String,
    /// The digest that the image's name stood for (index only).
    pub image_digest: String,
    /// `os/arch[/variant]` (index only).
    pub platform: String,
    /// What it is.
    pub kind: Kind,
    /// Its media type.
    pub media_type: String,
    /// The artifact type (index only).
    pub artifact_type: String,
    /// When it was recorded; `None` in old records.
    pub created_at: Option<Time>,
    /// The span size that was asked for (zTOC only), in bytes.
    pub span_size: u64,
    /// It was found in a content store when the records were rebuilt, and may come from anywhere.
    pub is_found: bool,
}

/// The present, for [`Entry::created_at`].
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

/// Why records could not be read or written. The texts are the reference's where it has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactsError {
    /// Nothing was ever recorded.
    #[error("soci_artifacts not found")]
    NeverWritten,
    /// No record of this blob.
    #[error("couldn't retrieve artifact for {0}, not found")]
    NotFound(Digest),
    /// An index to remove that is not recorded.
    #[error("the index of the digest {0} doesn't exist")]
    NoIndex(String),
    /// An index to remove that is something else.
    #[error("the digest {0} does not correspond to an index")]
    NotAnIndex(Digest),
    /// Another process does not let go of the file.
    #[error("{} is in use by another process (waited {} s)", path.display(), waited.as_secs_f64().ceil())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The file cannot be used; why is in the log.
    #[error("artifacts.db is not available")]
    Unavailable,
    /// The file is used, and one operation failed.
    #[error("{}: {action}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The database's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record that this program did not write so.
    #[error("{}: record of {digest:?} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The key.
        digest: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ArtifactsError {
    /// Whether there is no such record (and nothing else is wrong).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NeverWritten | Self::NotFound(_))
    }
}

/// The records of one root folder. Only a path: nothing is open between two operations.
#[derive(Debug, Clone)]
pub struct Artifacts {
    root: PathBuf,
    /// When waiting for another process ends, if not by itself.
    deadline: Option<Instant>,
}

impl Artifacts {
    /// The records under this folder; nothing is touched yet.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            deadline: None,
        }
    }

    /// Waits for other processes until then at most.
    #[must_use]
    pub fn until(self, deadline: Instant) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }

    /// The record of one blob.
    pub fn get(&self, digest: &Digest) -> Result<Entry, ArtifactsError> {
        let reader = self.reader()?.ok_or(ArtifactsError::NeverWritten)?;
        match reader.get(&digest.to_string())? {
            Some(row) => self.entry(&digest.to_string(), &row),
            None => Err(ArtifactsError::NotFound(*digest)),
        }
    }

    /// All records, by digest; none if nothing was ever recorded.
    pub fn all(&self) -> Result<Vec<Entry>, ArtifactsError> {
        let rows = match self.reader()? {
            Some(reader) => reader.all()?,
            None => Vec::new(),
        };
        rows.iter().map(|(key, row)| self.entry(key, row)).collect()
    }

    /// Records blobs, at once; what was known of them before is overwritten.
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

    /// Forgets blobs, at once; it is fine if some are not recorded.
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

    /// The record of an index, named by any text: what is to be removed must be one.
    pub fn index(&self, digest: &str) -> Result<Entry, ArtifactsError> {
        let found = match digest.parse() {
            Ok(digest) => self.get(&digest),
            // No digest is no key.
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

    /// The indexes that were built for what an image's name stands for.
    pub fn indexes_of(&self, image: &Digest) -> Result<Vec<Entry>, ArtifactsError> {
        if self.reader()?.is_none() {
            return Err(ArtifactsError::NeverWritten);
        }
        let (image, mut all) = (image.to_string(), self.all()?);
        all.retain(|entry| entry.kind == Kind::Index && entry.image_digest == image);
        Ok(all)
    }

    /// Makes sure that there are records, if need be without the reference's that cannot be read: for whoever is
    /// about to rebuild them.
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

/// What an `artifacts.db` means that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    Refused,
    LeftOut,
}

/// An entry as it is kept: JSON, fields at their zero value left out. Its digest is the key.
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
