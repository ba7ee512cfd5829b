//! Image manifests, image indexes, and the used parts of image configurations.
//!
//! [`Document`] keeps the original bytes of a document next to its parsed value. A document is
//! encoded again only if a caller changed it. Encoded documents have Go's JSON form
//! ([`crate::json`]).

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::descriptor::{Annotations, Descriptor};
use crate::digest::Digest;
use crate::json::{self, null_as_default};
use crate::media_type;
use crate::platform::Platform;

/// Maximum size of a manifest, index or configuration in bytes: twice the manifest size that the
/// distribution specification requires registries to accept.
pub const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// Why bytes are not a valid document of the expected kind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The document exceeds the size limit.
    #[error("{kind} has {size} bytes, more than {MAX_DOCUMENT_BYTES}")]
    TooLarge {
        /// The expected kind of document.
        kind: &'static str,
        /// Its size in bytes.
        size: u64,
    },
    /// The document is not valid JSON for its kind.
    #[error("{kind} cannot be read")]
    Json {
        /// The expected kind of document.
        kind: &'static str,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// The content is another kind of document.
    #[error("media-type: expected {expected} but found {found} ({media_type})")]
    Kind {
        /// The expected kind.
        expected: &'static str,
        /// The kind that the fields belong to.
        found: &'static str,
        /// The media type in the descriptor.
        media_type: String,
    },
}

/// The manifest of one image, in Go's field order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    #[serde(default, deserialize_with = "null_as_default")]
    pub schema_version: i64,
    /// OCI or Docker manifest type. May be missing in a document.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub media_type: String,
    /// The type of artifact if the manifest is not an image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub artifact_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first. `null` is preserved.
    #[serde(default)]
    pub layers: Option<Vec<Descriptor>>,
    /// The manifest that this manifest refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// The annotations.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: Annotations,
}

impl Manifest {
    /// The layers, lowest first. Empty if the field is `null` or missing.
    #[must_use]
    pub fn layers(&self) -> &[Descriptor] {
        self.layers.as_deref().unwrap_or_default()
    }
}

/// A list of manifests, usually one per platform, in Go's field order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// Always 2.
    #[serde(default, deserialize_with = "null_as_default")]
    pub schema_version: i64,
    /// OCI index or Docker list type. May be missing in a document.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub media_type: String,
    /// The type of artifact if the index is not an image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub artifact_type: String,
    /// The members in order. `null` is preserved.
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    /// The manifest that this index refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// The annotations.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: Annotations,
}

impl ImageIndex {
    /// Creates an OCI index with these members.
    #[must_use]
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.to_owned(),
            artifact_type: String::new(),
            manifests: Some(manifests),
            subject: None,
            annotations: Annotations::new(),
        }
    }

    /// The members in order. Empty if the field is `null` or missing.
    #[must_use]
    pub fn manifests(&self) -> &[Descriptor] {
        self.manifests.as_deref().unwrap_or_default()
    }
}

/// The used parts of an image's configuration. It is never encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// The platform of the image.
    #[serde(flatten)]
    pub platform: Platform,
    /// The uncompressed layers.
    #[serde(default, deserialize_with = "null_as_default")]
    pub rootfs: RootFs,
}

/// The digests of the uncompressed layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// The diff-IDs, lowest layer first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub diff_ids: Vec<Digest>,
}

/// A kind of document that can be parsed.
pub trait Kind: DeserializeOwned {
    /// Its name in messages.
    const NAME: &'static str;
    /// Fields that only another kind has, with the name of that kind.
    const FOREIGN: &'static [(&'static str, &'static str)];
}

impl Kind for Manifest {
    const NAME: &'static str = "manifest";
    const FOREIGN: &'static [(&'static str, &'static str)] =
        &[("manifests", "index"), ("fsLayers", "schema 1 manifest")];
}

impl Kind for ImageIndex {
    const NAME: &'static str = "index";
    const FOREIGN: &'static [(&'static str, &'static str)] = &[
        ("config", "manifest"),
        ("layers", "manifest"),
        ("fsLayers", "schema 1 manifest"),
    ];
}

impl Kind for ImageConfig {
    const NAME: &'static str = "config";
    const FOREIGN: &'static [(&'static str, &'static str)] = &[];
}

/// A parsed document with its bytes and digest.
#[derive(Clone)]
pub struct Document<T> {
    /// The original bytes.
    pub bytes: Bytes,
    /// The digest of the bytes.
    pub digest: Digest,
    /// The parsed value.
    pub value: T,
}

impl<T: fmt::Debug> fmt::Debug for Document<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bytes: _,
            digest,
            value,
        } = self;
        f.debug_struct("Document")
            .field("digest", digest)
            .field("value", value)
            .finish()
    }
}

impl<T: Kind> Document<T> {
    /// Parses a document that was referred to with `media_type`. Rejects bytes whose fields belong
    /// to another kind, because passing an index off as a manifest is a known attack.
    pub fn parse(bytes: Bytes, media_type: &str) -> Result<Self, DocumentError> {
        let value = parse(&bytes, media_type)?;
        Ok(Self {
            digest: Digest::sha256(&bytes),
            bytes,
            value,
        })
    }
}

/// Parses a document without keeping its bytes.
pub fn parse<T: Kind>(bytes: &[u8], media_type: &str) -> Result<T, DocumentError> {
    let size = bytes.len() as u64;
    if size > MAX_DOCUMENT_BYTES {
        return Err(DocumentError::TooLarge {
            kind: T::NAME,
            size,
        });
    }
    let json = |source| DocumentError::Json {
        kind: T::NAME,
        source,
    };
    if !T::FOREIGN.is_empty() {
        let fields: FieldNames = json::from_slice(bytes).map_err(json)?;
        let foreign = T::FOREIGN.iter().find(|(field, _)| fields.has(field));
        if let Some(&(_, found)) = foreign {
            let media_type = media_type.to_owned();
            return Err(DocumentError::Kind {
                expected: T::NAME,
                found,
                media_type,
            });
        }
    }
    json::from_slice(bytes).map_err(json)
}

/// The names of an object's fields. The values are skipped.
#[derive(Deserialize)]
#[serde(transparent)]
struct FieldNames(std::collections::BTreeMap<String, Value>);

/// Whether a field has a value other than `null`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Value(Option<serde::de::IgnoredAny>);

impl FieldNames {
    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.0.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::sha256(b"{}")
    }

    #[test]
    fn manifest_has_gos_form() {
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.into(),
            artifact_type: "a".into(),
            config: Descriptor::new("c", digest(), 2),
            layers: Some(vec![Descriptor::new("l", digest(), 2)]),
            subject: Some(Descriptor::new("s", digest(), 2)),
            annotations: [("k".to_owned(), "&".to_owned())].into(),
        };
        let descriptor = |kind| {
            format!(
                r#"{{"mediaType":"{kind}","digest":"{}","size":2}}"#,
                digest()
            )
        };
        let expected = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"a","config":{},"layers":[{}],"subject":{},"annotations":{{"k":"\u0026"}}}}"#,
            descriptor("c"),
            descriptor("l"),
            descriptor("s")
        );
        let bytes = json::to_vec(&manifest);
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(
            parse::<Manifest>(&bytes, media_type::OCI_MANIFEST).unwrap(),
            manifest
        );
    }

    #[test]
    fn missing_lists_are_null_and_empty_ones_stay_empty() {
        let config = format!(r#"{{"mediaType":"","digest":"{}","size":0}}"#, digest());
        for (layers, expected) in [
            ("", "null"),
            (r#","layers":null"#, "null"),
            (r#","layers":[]"#, "[]"),
        ] {
            let text = format!(r#"{{"config":{config}{layers},"x":1}}"#);
            let manifest: Manifest = parse(text.as_bytes(), "").unwrap();
            assert!(manifest.layers().is_empty());
            assert_eq!(
                String::from_utf8(json::to_vec(&manifest)).unwrap(),
                format!(r#"{{"schemaVersion":0,"config":{config},"layers":{expected}}}"#)
            );
        }
        let index: ImageIndex = parse(b"{}", "").unwrap();
        assert_eq!(
            json::to_vec(&index),
            br#"{"schemaVersion":0,"manifests":null}"#
        );
        let index = ImageIndex::new(Vec::new());
        assert_eq!(
            json::to_vec(&index),
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#
        );
    }

    #[test]
    fn documents_of_another_kind_are_refused() {
        let manifest = json::to_vec(&Manifest {
            schema_version: 2,
            media_type: String::new(),
            artifact_type: String::new(),
            config: Descriptor::new("c", digest(), 2),
            layers: None,
            subject: None,
            annotations: Annotations::new(),
        });
        let error = parse::<ImageIndex>(&manifest, media_type::OCI_INDEX).unwrap_err();
        assert_eq!(
            error.to_string(),
            "media-type: expected index but found manifest (application/vnd.oci.image.index.v1+json)"
        );
        let index = json::to_vec(&ImageIndex::new(Vec::new()));
        assert!(matches!(
            parse::<Manifest>(&index, "m"),
            Err(DocumentError::Kind { found: "index", .. })
        ));
        let huge = vec![b' '; 8 << 20 | 1];
        assert!(matches!(
            parse::<ImageIndex>(&huge, ""),
            Err(DocumentError::TooLarge { .. })
        ));
        for bytes in [&b""[..], b"[]", b"null", b"{\"manifests\":1}", b"\x1f\x8b"] {
            assert!(parse::<ImageIndex>(bytes, "").is_err());
        }
    }

    #[test]
    fn config_gives_platform_and_diff_ids() {
        let text = format!(
            r#"{{"architecture":"arm64","os":"linux","variant":"v8","created":"x","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            digest()
        );
        let config: ImageConfig = parse(text.as_bytes(), "").unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64/v8");
        assert_eq!(config.rootfs.diff_ids, [digest()]);
        assert_eq!(
            parse::<ImageConfig>(b"{\"rootfs\":null}", "").unwrap(),
            ImageConfig::default()
        );
    }

    #[test]
    fn bytes_of_a_document_are_kept() {
        let text = Bytes::from_static(b" { \"manifests\" : [ ] , \"z\" : 1 } ");
        let document = Document::<ImageIndex>::parse(text.clone(), "").unwrap();
        assert_eq!(document.bytes, text);
        assert_eq!(document.digest, Digest::sha256(&text));
    }
}
