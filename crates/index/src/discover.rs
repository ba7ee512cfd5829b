//! Which SOCI index belongs to an image.
//!
//! In order: a digest that the client states; the annotation of the image's manifest (version 2). The
//! referrers of the manifest (version 1) are asked by whoever has a registry at hand, when this says
//! that the manifest names no index.

use soci_oci::digest::DigestError;
use soci_oci::{Digest, Manifest};

use crate::model::INDEX_DIGEST;

/// How an index was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// The client stated it.
    Stated,
    /// The image's manifest names it.
    Annotation,
}

/// What is known about an image's index without asking a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// The index, which may be of either version when it was stated.
    Found(Digest, How),
    /// Neither stated nor named.
    NoIndex,
}

/// A digest of an index that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {text:?} of the SOCI index")]
pub struct BadDigest {
    /// What stands in its place.
    pub text: String,
    /// What is wrong with it.
    #[source]
    pub source: DigestError,
}

/// The index that the client stated; an empty text states none.
pub fn stated(text: &str) -> Result<Discovery, BadDigest> {
    if text.is_empty() {
        Ok(Discovery::NoIndex)
    } else {
        found(text, How::Stated)
    }
}

/// The index that an image's manifest names.
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
