//! The file `sources` (JSON): everything needed to continue with a layer after a restart without
//! asking containerd.
//!
//! It is written last and makes a directory a layer of the store. A directory without it is removed
//! at start.

use std::{collections::BTreeSet, io};

use serde::{Deserialize, Serialize};
use soci_oci::{Descriptor, Digest};

use super::sealed::{Folder, Sealed};

/// Name of the file.
pub(crate) const NAME: &str = "sources";

/// The identity and the origins of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The descriptor of the layer in its manifest.
    pub layer: Descriptor,
    /// The descriptor of its zTOC. `None` if the layer was downloaded whole and not indexed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ztoc: Option<Descriptor>,
    /// SHA-256 of the tar, if the layer was downloaded whole and verified against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// The images that name the layer.
    pub origins: BTreeSet<Origin>,
}

/// An image that names a layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The image reference from containerd.
    pub reference: String,
    /// Digest of the image manifest.
    pub manifest: String,
    /// Digest of the SOCI index, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// How the index was found, for humans.
    #[serde(default)]
    pub found: String,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// An error of the system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its checksum does not match, or it has none.
    #[error("the file is damaged")]
    Torn,
    /// It is intact, but this version does not understand it.
    #[error("this version does not understand the format of the file")]
    Foreign,
}

/// Maximum number of images that are remembered per layer. The layer can be downloaded from their
/// repositories.
const MOST_ORIGINS: usize = 64;

impl Sources {
    /// Reads the file. `None` if it does not exist.
    ///
    /// # Errors
    /// A file that exists and cannot be used, in which case it should be kept; the system's.
    pub fn read(folder: &Folder) -> Result<Option<Sources>, SourcesError> {
        match folder.read(NAME)? {
            Sealed::Missing => Ok(None),
            Sealed::Torn => Err(SourcesError::Torn),
            Sealed::Whole(bytes) => match serde_json::from_slice(&bytes) {
                Ok(sources) => Ok(Some(sources)),
                Err(_) => Err(SourcesError::Foreign),
            },
        }
    }

    /// Records an image that names the layer. Returns false if nothing changed. An older entry with
    /// the same reference is replaced. If the list is full, another entry is dropped, because over
    /// the years a base layer is named by every build on it.
    pub fn name(&mut self, origin: Origin) -> bool {
        if self.origins.contains(&origin) {
            return false;
        }
        self.origins
            .retain(|known| known.reference != origin.reference);
        if self.origins.len() >= MOST_ORIGINS {
            self.origins.pop_last();
        }
        self.origins.insert(origin)
    }

    /// Writes the file. On return, this file and all files written to the directory before survive
    /// a power failure.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Folder) -> io::Result<()> {
        folder.write(NAME, |to| Ok(serde_json::to_writer(to, self)?))?;
        folder.sync()
    }

    /// An image name for logs and errors: the first image in the list.
    pub fn image(&self) -> &str {
        self.origins.first().map_or("", |origin| &origin.reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_writing_and_reading() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(root.path(), "boot");
        assert!(Sources::read(&folder).expect("readable").is_none());
        let origin = Origin {
            reference: "registry.example/app:1".to_owned(),
            manifest: Digest::sha256(b"manifest").to_string(),
            index: None,
            found: "label".to_owned(),
        };
        let sources = Sources {
            layer: Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", b"layer"),
            ztoc: Some(Descriptor::of("application/octet-stream", b"ztoc")),
            diff_id: None,
            origins: BTreeSet::from([origin]),
        };
        sources.write(&folder).expect("written");
        assert_eq!(
            Sources::read(&folder).expect("readable"),
            Some(sources.clone())
        );
        assert_eq!(sources.image(), "registry.example/app:1");
        // A file in another format does not count as missing.
        let other = |text: &'static [u8]| {
            let written = folder.write(NAME, |to| to.write_all(text));
            written.expect("written");
        };
        other(b"{\"layer\":\"of another version\"}");
        let error = Sources::read(&folder).expect_err("another format");
        assert!(matches!(error, SourcesError::Foreign), "{error}");
        std::fs::write(folder.file(NAME), b"{}").expect("damaged");
        let rebooted = Folder::new(root.path(), "another boot");
        let error = Sources::read(&rebooted).expect_err("damaged");
        assert!(matches!(error, SourcesError::Torn), "{error}");
    }

    #[test]
    fn the_list_of_origins_is_bounded() {
        let origin = |reference: &str, manifest: &[u8]| Origin {
            reference: reference.to_owned(),
            manifest: Digest::sha256(manifest).to_string(),
            index: None,
            found: String::new(),
        };
        let mut sources = Sources {
            layer: Descriptor::of("layer", b"layer"),
            ztoc: None,
            diff_id: None,
            origins: BTreeSet::from([origin("app:1", b"1")]),
        };
        assert!(!sources.name(origin("app:1", b"1")), "known");
        assert!(sources.name(origin("app:1", b"2")), "a moved tag");
        assert_eq!(sources.origins.len(), 1);
        for number in 0..200 {
            let newest = origin(&format!("app:{number}"), b"3");
            assert!(sources.name(newest.clone()));
            assert!(sources.origins.contains(&newest));
        }
        assert_eq!(sources.origins.len(), MOST_ORIGINS);
    }
}
