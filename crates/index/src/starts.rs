//! Records of starts: which parts of an image's layers a container read first.
//!
//! A node makes a [`StartRecord`], and a build turns it into prefetch artifacts, so that other nodes
//! download these parts first. A want names its bytes by their offset in the layer's tar, which fits
//! any zTOC of the layer, and by the files that were read, which fits other builds of the layer.

use soci_oci::{Digest, json};

use serde::{Deserialize, Serialize};

/// The only supported version of the document.
pub const SCHEMA_VERSION: u32 = 1;

/// Maximum size of a record in bytes: about 100,000 files.
pub const MAX_RECORD_BYTES: u64 = 16 << 20;

/// What was read of an image during a start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// Version of the document.
    pub schema_version: u32,
    /// The reference of the image.
    pub image: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// Its platform.
    pub platform: String,
    /// The layers of which something was read, lowest first.
    pub layers: Vec<RecordedLayer>,
}

/// What was read of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedLayer {
    /// Digest of the layer.
    pub digest: Digest,
    /// Its spans, in the order of their first use.
    pub wants: Vec<Want>,
}

/// A span that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// When it was first read, in milliseconds since the first read of the image.
    pub ms: u64,
    /// Where it begins in the uncompressed layer.
    pub offset: u64,
    /// Its uncompressed size in bytes.
    pub bytes: u64,
    /// The files that were read in it, in the order of their first use. Not necessarily all.
    pub files: Vec<WantedFile>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedFile {
    /// When it was first read in this span, in milliseconds since the first read of the image.
    pub ms: u64,
    /// Its name in the layer.
    pub path: String,
    /// Where in the file the first read began, in bytes.
    pub at: u64,
}

/// Why bytes are not a record that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes are not a record.
    #[error("the record of a start cannot be read")]
    Json(#[source] serde_json::Error),
    /// The version is not supported.
    #[error("unsupported version of a record of a start: {0} (expected {SCHEMA_VERSION})")]
    Version(u32),
    /// It says nothing.
    #[error("the record of a start is empty: no container has read anything")]
    Empty,
}

impl StartRecord {
    /// Parses a record that names at least one span.
    ///
    /// # Errors
    /// Bytes that are not a record of this version, or an empty one.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let record = Self::read(bytes)?;
        if record.is_empty() {
            return Err(RecordError::Empty);
        }
        Ok(record)
    }

    /// Parses a record, which may be empty.
    ///
    /// # Errors
    /// Bytes that are not a record of this version.
    pub fn read(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let Version { schema_version } = json::from_slice(bytes).map_err(RecordError::Json)?;
        if schema_version != SCHEMA_VERSION {
            return Err(RecordError::Version(schema_version));
        }
        json::from_slice(bytes).map_err(RecordError::Json)
    }

    /// Whether no span was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(|layer| layer.wants.is_empty())
    }

    /// Removes what was first read later than this.
    pub fn keep_within(&mut self, ms: u64) {
        for layer in &mut self.layers {
            layer.wants.retain(|want| want.ms <= ms);
            for want in &mut layer.wants {
                want.files.retain(|file| file.ms <= ms);
            }
        }
        self.layers.retain(|layer| !layer.wants.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(ms: u64, path: &str) -> Want {
        let file = |ms| WantedFile {
            ms,
            path: path.to_owned(),
            at: 0,
        };
        Want {
            ms,
            offset: 512,
            bytes: 4096,
            files: vec![file(ms), file(ms + 50)],
        }
    }

    fn record() -> StartRecord {
        let layer = |bytes: &[u8], wants| RecordedLayer {
            digest: Digest::sha256(bytes),
            wants,
        };
        StartRecord {
            schema_version: SCHEMA_VERSION,
            image: "app:1".to_owned(),
            layers: vec![
                layer(b"one", vec![want(0, "bin/app"), want(90, "etc/app")]),
                layer(b"two", vec![want(120, "lib/app")]),
            ],
            ..StartRecord::default()
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = record();
        let bytes = serde_json::to_vec(&record).unwrap();
        assert_eq!(StartRecord::parse(&bytes).unwrap(), record);
        let text = |version: u32, layers: &str| {
            let start = format!(r#"{{"schema_version":{version},"image":"","manifest":"","#);
            format!(r#"{start}"platform":"","layers":{layers},"later":1}}"#)
        };
        let error = |text: String| StartRecord::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(error(text(2, "[]")), RecordError::Version(2)));
        assert!(matches!(error(text(1, "[]")), RecordError::Empty));
        assert!(matches!(error(text(1, "[1]")), RecordError::Json(_)));
    }

    #[test]
    fn what_came_later_is_left_out() {
        let mut record = record();
        record.keep_within(100);
        assert_eq!(record.layers.len(), 1);
        let files: Vec<usize> = record.layers[0]
            .wants
            .iter()
            .map(|want| want.files.len())
            .collect();
        assert_eq!(files, [2, 1]);
    }
}
