//! What is needed to go on with a layer without asking anybody: the file `sources`, JSON.
//!
//! Its presence makes a folder a layer of the store: it is written last, and a folder without it is swept.

use std::{collections::BTreeSet, io};

use serde::{Deserialize, Serialize};
use soci_oci::{Descriptor, Digest};

use super::sealed::Folder;

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

impl Sources {
    /// Reads the file; `None` if there is none that is whole and understood.
    ///
    /// # Errors
    /// The system's.
    pub fn read(folder: &Folder) -> io::Result<Option<Sources>> {
        let Some(bytes) = folder.open(NAME)? else {
            return Ok(None);
        };
        Ok(serde_json::from_slice(bytes.as_ref()).ok())
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
        assert_eq!(Sources::read(&folder).expect("readable"), None);
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
    }
}
