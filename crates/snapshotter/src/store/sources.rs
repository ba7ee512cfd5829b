//! What is needed to go on with a layer without asking anybody: the file `sources`, JSON.
//!
//! Its presence makes a folder a layer of the store: it is written last, and a folder without it is swept.

use std::{collections::BTreeSet, io};

use serde::{Deserialize, Serialize};
use soci_oci::{Descriptor, Digest};

use super::sealed::{Folder, Sealed};

/// The file's name.
pub(crate) const NAME: &str = "sources";

/// What the store knows about one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The layer, as manifests name it.
    pub layer: Descriptor,
    /// Its zTOC; none if the layer was pulled whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ztoc: Option<Descriptor>,
    /// SHA-256 of the tar, if the layer was pulled whole (and so was checked against it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// Everything that has named it.
    pub origins: BTreeSet<Origin>,
}

/// Where a layer was named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The image, as containerd said it.
    pub reference: String,
    /// Digest of the image manifest.
    pub manifest: String,
    /// Digest of the SOCI index, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// How the index was found, in words for people.
    #[serde(default)]
    pub found: String,
}

/// Why the file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// The system's account.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its checksum is not right, or it has none.
    #[error("the file is torn")]
    Torn,
    /// It is whole, and not what this version writes.
    #[error("the file is of another form")]
    Foreign,
}

/// Images that are remembered as naming a layer. Their references are where it can be fetched from.
const MOST_ORIGINS: usize = 64;

impl Sources {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// A file that is there and cannot be used, which is a reason to keep it; the system's.
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

    /// Notes who names the layer; false if nothing changed. What an image's name stood for before is forgotten, and of very
    /// many names one: a base layer is named by every build on it, for years.
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

    /// Writes the file. On return it, and every file that was written to the folder before, survives a power loss.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Folder) -> io::Result<()> {
        folder.write(NAME, |to| Ok(serde_json::to_writer(to, self)?))?;
        folder.sync()
    }

    /// A name for logs and errors: the first image that named the layer.
    pub fn image(&self) -> &str {
        self.origins.first().map_or("", |origin| &origin.reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let root = tempfile::tempdir().expect("a folder");
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
        // Another form of the file is not no file.
        let other = |text: &'static [u8]| {
            let written = folder.write(NAME, |to| to.write_all(text));
            written.expect("written");
        };
        other(b"{\"layer\":\"of another version\"}");
        let error = Sources::read(&folder).expect_err("another form");
        assert!(matches!(error, SourcesError::Foreign), "{error}");
        std::fs::write(folder.file(NAME), b"{}").expect("torn");
        let rebooted = Folder::new(root.path(), "another boot");
        let error = Sources::read(&rebooted).expect_err("torn");
        assert!(matches!(error, SourcesError::Torn), "{error}");
    }

    #[test]
    fn names_do_not_grow_without_end() {
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
        assert!(sources.name(origin("app:1", b"2")), "a tag that has moved");
        assert_eq!(sources.origins.len(), 1);
        for number in 0..200 {
            let newest = origin(&format!("app:{number}"), b"3");
            assert!(sources.name(newest.clone()));
            assert!(sources.origins.contains(&newest));
        }
        assert_eq!(sources.origins.len(), MOST_ORIGINS);
    }
}
