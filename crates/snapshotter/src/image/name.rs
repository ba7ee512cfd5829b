//! The image of a request, parsed from its labels.

use soci_oci::digest::Digest;
use soci_oci::reference::ImageRef;

use super::content::Place;
use super::labels::{self, Labels};

/// The image of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageName {
    pub(crate) namespace: String,
    /// The reference as sent by containerd.
    pub(crate) text: String,
    pub(crate) reference: ImageRef,
    pub(crate) manifest: Digest,
    /// The index that the client specified.
    pub(crate) index: Option<Digest>,
}

impl ImageName {
    /// Parses the labels of a request. The error names the invalid label.
    pub(crate) fn from_labels(namespace: &str, of: &Labels) -> Result<Self, String> {
        let text = labels::value(of, labels::IMAGE_REFERENCE).unwrap_or_default();
        let reference = ImageRef::from_containerd(text)
            .map_err(|error| format!("image reference {text:?}: {error}"))?;
        let manifest = labels::value(of, labels::MANIFEST_DIGEST).unwrap_or_default();
        let manifest = digest("manifest digest", manifest)?;
        let index = labels::value(of, labels::INDEX_DIGEST);
        let index = index.map(|text| digest("index digest", text)).transpose()?;
        Ok(Self {
            namespace: namespace.to_owned(),
            text: text.to_owned(),
            reference,
            manifest,
            index,
        })
    }

    pub(super) fn place(&self) -> Place<'_> {
        Place {
            namespace: &self.namespace,
            image: &self.reference,
        }
    }

    pub(super) fn key(&self) -> ImageKey {
        ImageKey {
            namespace: self.namespace.clone(),
            host: self.reference.host().to_owned(),
            repository: self.reference.repository().to_owned(),
            manifest: self.manifest,
            index: self.index,
        }
    }
}

/// The layer in the labels. The error says what is invalid.
pub(crate) fn layer_of(of: &Labels) -> Result<Digest, String> {
    digest(
        "layer digest",
        labels::value(of, labels::LAYER_DIGEST).unwrap_or_default(),
    )
}

fn digest(what: &str, text: &str) -> Result<Digest, String> {
    text.parse()
        .map_err(|error| format!("{what} {text:?}: {error}"))
}

/// The scope of one discovery result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ImageKey {
    pub(super) namespace: String,
    host: String,
    repository: String,
    manifest: Digest,
    index: Option<Digest>,
}
