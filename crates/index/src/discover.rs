//! Finds the SOCI index of an image without requests to a registry.
//!
//! A digest stated by the client takes precedence over the annotation of the image's manifest
//! (version 2). If neither exists, the caller queries the referrers of the manifest (version 1).

use soci_oci::digest::DigestError;
use soci_oci::{Digest, Manifest};

use crate::model::INDEX_DIGEST;

/// How an index was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// The client stated it.
    Stated,
    /// An annotation of the image's manifest names it.
    Annotation,
}

/// The result of a discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// The index was found. A stated index may have either version.
    Found(Digest, How),
    /// No index is stated or named.
    NoIndex,
}

/// The digest of an index is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {text:?} of the SOCI index")]
pub struct BadDigest {
    /// The invalid text.
    pub text: String,
    /// Why it is invalid.
    #[source]
    pub source: DigestError,
}

/// Parses the digest that the client stated. An empty text means none.
pub fn stated(text: &str) -> Result<Discovery, BadDigest> {
    if text.is_empty() {
        Ok(Discovery::NoIndex)
    } else {
        found(text, How::Stated)
    }
}

/// Returns the index that an image's manifest names.
pub fn annotated(manifest: &Manifest) -> Result<Discovery, BadDigest> {
    match manifest.annotations.get(INDEX_DIGEST) {
        Some(text) => found(text, How::Annotation),
        None => Ok(Discovery::NoIndex),
    }
}

fn found(text: &str, how: How) -> Result<Discovery, BadDigest> {
    match text.parse() {
        Ok(digest) => Ok(Discovery::Found(digest, how)),
        Err(source) => Err(BadDigest {
            text: text.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use soci_oci::{Descriptor, json};

    use super::*;

    #[test]
    fn manifest_names_its_index() {
        let digest = Digest::sha256(b"i");
        let config = String::from_utf8(json::to_vec(&Descriptor::of("c", b"{}"))).unwrap();
        let manifest = |annotations: &str| -> Manifest {
            let text = format!(r#"{{"config":{config},"annotations":{annotations}}}"#);
            json::from_slice(text.as_bytes()).unwrap()
        };
        let named = manifest(&format!(r#"{{"com.amazon.soci.index-digest":"{digest}"}}"#));
        assert_eq!(
            annotated(&named),
            Ok(Discovery::Found(digest, How::Annotation))
        );
        assert_eq!(annotated(&manifest("null")), Ok(Discovery::NoIndex));
        let bad = annotated(&manifest(r#"{"com.amazon.soci.index-digest":"x"}"#)).unwrap_err();
        assert_eq!(bad.source, DigestError::Format);
    }

    #[test]
    fn a_stated_digest_is_checked() {
        let digest = Digest::sha256(b"i");
        assert_eq!(
            stated(&digest.to_string()),
            Ok(Discovery::Found(digest, How::Stated))
        );
        assert_eq!(stated(""), Ok(Discovery::NoIndex));
        assert!(stated("sha256:x").is_err());
    }
}
