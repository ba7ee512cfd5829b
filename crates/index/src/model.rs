//! The SOCI index document: constants of the format, its canonical bytes, and its content.
//!
//! An index has the form of an OCI image manifest whose "layers" are zTOCs. Its bytes are
//! canonical: the reference daemon re-encodes a fetched index and rejects it if the digest changes.

use soci_oci::manifest::DocumentError;
use soci_oci::{Annotations, Descriptor, Digest, Manifest, json, manifest, media_type};

/// Artifact type of an index that refers to its image (version 1). Stored in `config.mediaType`.
pub const ARTIFACT_TYPE_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// Artifact type of an index that its image refers to (version 2). Stored in `config.mediaType`.
pub const ARTIFACT_TYPE_V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// Media type of a zTOC.
pub const ZTOC_MEDIA_TYPE: &str = media_type::OCTET_STREAM;
/// Media type of a prefetch artifact.
pub const PREFETCH_MEDIA_TYPE: &str = "application/vnd.amazon.soci.prefetch.v1+json";

/// On an index: the tool that built it.
pub const BUILD_TOOL: &str = "com.amazon.soci.build-tool-identifier";
/// On a zTOC's descriptor: the digest of the layer that it describes.
pub const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
/// On a zTOC's descriptor: the layer's media type.
pub const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
/// On a zTOC's descriptor: the requested span size in bytes.
pub const SPAN_SIZE: &str = "com.amazon.soci.span-size";
/// On a zTOC's descriptor: `true` if the layer has no extended attributes.
pub const DISABLE_XATTRS: &str = "com.amazon.soci.disable-xattrs";
/// On a prefetch artifact: a recorded start is the reason for it. The reference implementation does
/// not know it.
pub const RECORDED_START: &str = "io.github.soci-rs.recorded-start";
/// On an index's descriptor: the digest of the image manifest that it belongs to.
pub const MANIFEST_DIGEST: &str = "com.amazon.soci.image-manifest-digest";
/// On an image manifest and its descriptor: the digest of the index that belongs to it.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

/// The content of every index's configuration.
pub const CONFIG: &[u8] = b"{}";

/// How an index and its image refer to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// The subject of the index is its image.
    V1,
    /// An annotation of the image's manifest names the index.
    V2,
}

impl Version {
    /// The artifact type.
    #[must_use]
    pub fn artifact_type(self) -> &'static str {
        match self {
            Self::V1 => ARTIFACT_TYPE_V1,
            Self::V2 => ARTIFACT_TYPE_V2,
        }
    }
}

/// Why bytes are not a SOCI index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The bytes are not a valid manifest.
    #[error(transparent)]
    Document(DocumentError),
    /// The artifact type is not that of a SOCI index.
    #[error("unknown index version: {0}")]
    Version(String),
}

/// A zTOC in an index and the layer that it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerZtoc<'a> {
    /// The digest of the layer.
    pub layer: Digest,
    /// The descriptor of the zTOC.
    pub ztoc: &'a Descriptor,
}

/// A SOCI index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociIndex {
    version: Version,
    manifest: Manifest,
}

impl SociIndex {
    /// Creates an index of these zTOC and prefetch descriptors. In version 1, the subject is the
    /// image's manifest.
    #[must_use]
    pub fn new(version: Version, blobs: Vec<Descriptor>, subject: Option<Descriptor>) -> Self {
        let tool = soci_ztoc::TOOL.to_owned();
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: String::new(),
            config: Descriptor::of(version.artifact_type(), CONFIG),
            layers: Some(blobs),
            subject,
            annotations: [(BUILD_TOOL.to_owned(), tool)].into(),
        };
        Self { version, manifest }
    }

    /// Parses an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let manifest: Manifest =
            manifest::parse(bytes, media_type::OCI_MANIFEST).map_err(IndexError::Document)?;
        Self::from_manifest(manifest)
    }

    /// Converts a parsed manifest to an index if it is one.
    pub fn from_manifest(manifest: Manifest) -> Result<Self, IndexError> {
        let version = match manifest.config.media_type.as_str() {
            ARTIFACT_TYPE_V1 => Version::V1,
            ARTIFACT_TYPE_V2 => Version::V2,
            other => return Err(IndexError::Version(other.to_owned())),
        };
        Ok(Self { version, manifest })
    }

    /// Encodes the canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        json::to_vec(&self.manifest)
    }

    /// The version of the index.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The image manifest that a version 1 index belongs to.
    #[must_use]
    pub fn subject(&self) -> Option<&Descriptor> {
        self.manifest.subject.as_ref()
    }

    /// The configuration. Its media type states the version.
    #[must_use]
    pub fn config(&self) -> &Descriptor {
        &self.manifest.config
    }

    /// The blobs that the index refers to, in order: zTOCs, then prefetch artifacts.
    #[must_use]
    pub fn blobs(&self) -> &[Descriptor] {
        self.manifest.layers()
    }

    /// The annotations of the index.
    #[must_use]
    pub fn annotations(&self) -> &Annotations {
        &self.manifest.annotations
    }

    /// The zTOCs whose descriptor names a layer.
    pub fn ztocs(&self) -> impl Iterator<Item = LayerZtoc<'_>> {
        self.blobs()
            .iter()
            .filter(|blob| blob.media_type == ZTOC_MEDIA_TYPE)
            .filter_map(|ztoc| {
                let layer = ztoc.annotation(LAYER_DIGEST)?.parse().ok()?;
                Some(LayerZtoc { layer, ztoc })
            })
    }

    /// The prefetch artifacts whose descriptor names a layer, with the digest of the layer.
    pub fn prefetch_artifacts(&self) -> impl Iterator<Item = (Digest, &Descriptor)> {
        self.blobs()
            .iter()
            .filter(|blob| blob.media_type == PREFETCH_MEDIA_TYPE)
            .filter_map(|blob| Some((blob.annotation(LAYER_DIGEST)?.parse().ok()?, blob)))
    }

    /// Whether a recorded start is the reason for a prefetch artifact.
    #[must_use]
    pub fn is_recorded(artifact: &Descriptor) -> bool {
        artifact.annotation(RECORDED_START) == Some("true")
    }

    /// The zTOC of a layer. If there are several, the last one is used, as in the reference.
    #[must_use]
    pub fn ztoc_of(&self, layer: &Digest) -> Option<&Descriptor> {
        self.ztocs()
            .filter(|pair| pair.layer == *layer)
            .last()
            .map(|pair| pair.ztoc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ztoc(layer: &[u8], blob: &[u8]) -> Descriptor {
        Descriptor {
            annotations: [
                (LAYER_DIGEST.to_owned(), Digest::sha256(layer).to_string()),
                (
                    LAYER_MEDIA_TYPE.to_owned(),
                    media_type::OCI_LAYER_GZIP.to_owned(),
                ),
                (SPAN_SIZE.to_owned(), "4194304".to_owned()),
            ]
            .into(),
            ..Descriptor::of(ZTOC_MEDIA_TYPE, blob)
        }
    }

    #[test]
    fn bytes_have_the_documented_layout() {
        let subject = Descriptor::of(media_type::OCI_MANIFEST, b"m");
        let index = SociIndex::new(Version::V1, vec![ztoc(b"l", b"z")], Some(subject.clone()));
        let expected = format!(
            concat!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
                r#""config":{{"mediaType":"application/vnd.amazon.soci.index.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}},"#,
                r#""layers":[{{"mediaType":"application/octet-stream","digest":"{}","size":1,"annotations":{{"com.amazon.soci.image-layer-digest":"{}","com.amazon.soci.image-layer-mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","com.amazon.soci.span-size":"4194304"}}}}],"#,
                r#""subject":{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":1}},"#,
                r#""annotations":{{"com.amazon.soci.build-tool-identifier":"AWS SOCI CLI v0.2"}}}}"#
            ),
            Digest::sha256(b"z"),
            Digest::sha256(b"l"),
            Digest::sha256(b"m"),
        );
        let bytes = index.to_bytes();
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        let read = SociIndex::parse(&bytes).unwrap();
        assert_eq!(read, index);
        assert_eq!(
            (read.version(), read.subject()),
            (Version::V1, Some(&subject))
        );
        let v2 = SociIndex::new(Version::V2, vec![], None).to_bytes();
        assert!(!String::from_utf8(v2).unwrap().contains("subject"));
    }

    #[test]
    fn other_manifests_are_told_apart() {
        let image = br#"{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
        assert_eq!(
            SociIndex::parse(image).unwrap_err().to_string(),
            "unknown index version: application/vnd.oci.image.config.v1+json"
        );
        for bytes in [&b"{}"[..], b"", b"[]", b"{\"manifests\":[]}"] {
            assert!(matches!(
                SociIndex::parse(bytes),
                Err(IndexError::Document(_))
            ));
        }
    }

    #[test]
    fn ztocs_are_found_by_layer_and_other_blobs_are_not_taken_for_them() {
        let mut prefetch = ztoc(b"b", b"p");
        PREFETCH_MEDIA_TYPE.clone_into(&mut prefetch.media_type);
        let mut unnamed = ztoc(b"c", b"u");
        unnamed.annotations.clear();
        let blobs = vec![
            ztoc(b"a", b"1"),
            ztoc(b"b", b"2"),
            ztoc(b"a", b"3"),
            prefetch,
            unnamed,
        ];
        let index = SociIndex::new(Version::V2, blobs, None);
        let of = |layer: &[u8]| {
            index
                .ztoc_of(&Digest::sha256(layer))
                .map(|ztoc| ztoc.digest)
        };
        assert_eq!(of(b"a"), Some(Digest::sha256(b"3")));
        assert_eq!(of(b"b"), Some(Digest::sha256(b"2")));
        assert_eq!(of(b"c"), None);
        assert_eq!(index.ztocs().count(), 3);
    }
}
