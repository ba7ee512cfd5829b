//! Descriptors: how a document refers to a blob.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::json::{base64_bytes, null_as_default};
use crate::platform::Platform;

/// Annotations, sorted by key as in their JSON form.
pub type Annotations = BTreeMap<String, String>;

/// Media type, digest and size of a blob, plus optional fields, in the field order of Go's JSON
/// form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type. Encoded even if empty.
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: String,
    /// The digest of the blob.
    pub digest: Digest,
    /// The size of the blob in bytes. Negative sizes are rejected.
    #[serde(default, deserialize_with = "null_as_default")]
    pub size: u64,
    /// Other locations of the blob.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub urls: Vec<String>,
    /// The annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: Annotations,
    /// The content of the blob, if embedded.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "base64_bytes")]
    pub data: Vec<u8>,
    /// The platform of the image. Used in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The artifact type of the manifest. Used in an index.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub artifact_type: String,
}

impl Descriptor {
    /// Creates a descriptor with only the required fields.
    #[must_use]
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            data: Vec::new(),
            platform: None,
            artifact_type: String::new(),
        }
    }

    /// Creates the descriptor of these bytes.
    #[must_use]
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::sha256(bytes), bytes.len() as u64)
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn full_form_has_gos_order() {
        let digest = Digest::sha256(b"{}");
        let descriptor = Descriptor {
            urls: vec!["https://a/?b&c".into()],
            annotations: [("z".into(), "1".into()), ("a".into(), "<".into())].into(),
            data: b"{}".to_vec(),
            platform: Some("linux/amd64".parse().unwrap()),
            artifact_type: "t".into(),
            ..Descriptor::new("m", digest, 2)
        };
        let expected = format!(
            r#"{{"mediaType":"m","digest":"{digest}","size":2,"urls":["https://a/?b\u0026c"],"annotations":{{"a":"\u003c","z":"1"}},"data":"e30=","platform":{{"architecture":"amd64","os":"linux"}},"artifactType":"t"}}"#
        );
        let bytes = json::to_vec(&descriptor);
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(json::from_slice::<Descriptor>(&bytes).unwrap(), descriptor);
    }

    #[test]
    fn empty_media_type_is_written_and_other_empty_fields_are_not() {
        let digest = Digest::sha256(b"");
        let text = format!(
            r#"{{"size":null,"digest":"{digest}","urls":null,"annotations":null,"data":null,"platform":null,"artifactType":null,"unknown":[1]}}"#
        );
        let descriptor: Descriptor = json::from_slice(text.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(json::to_vec(&descriptor)).unwrap(),
            format!(r#"{{"mediaType":"","digest":"{digest}","size":0}}"#)
        );
    }

    #[test]
    fn bad_digests_and_sizes_are_refused() {
        for text in [
            r#"{"mediaType":"m","digest":"sha256:12","size":1}"#,
            r#"{"mediaType":"m","size":1}"#,
            r#"{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":-1}"#,
        ] {
            assert!(
                json::from_slice::<Descriptor>(text.as_bytes()).is_err(),
                "{text}"
            );
        }
    }
}
