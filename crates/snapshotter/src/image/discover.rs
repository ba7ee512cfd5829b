//! Finds the index of an image: the digest from the client, the one in the image's manifest (version
//! 2), or the first one among the referrers of the manifest (version 1).
//!
//! An image without an index is a result, which is remembered for a while. An unreachable registry
//! is an error, which is not remembered.

use std::collections::BTreeMap;

use soci_index::{How, SociIndex, Version, discover};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::Manifest;
use soci_oci::media_type;
use tracing::{debug, info};

use super::ImageName;
use super::content::{Content, ContentError, Document};
use super::verdict::Subject;

/// Enabled ways to discover an index. An index that the client names is always used.
#[derive(Clone, Copy, Debug)]
pub struct Modes {
    /// SOCI v1: referrers of the image. They are only listed if v2 finds nothing.
    pub v1: bool,
    /// SOCI v2: the annotation in the image's manifest.
    pub v2: bool,
}

/// Begins and ends with the words that the reference logs.
const NO_REFERRERS: &str =
    "no valid SOCI index found: the manifest names none: no existing referrers";

/// What is known about the index of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// The image has this index.
    Found(Index),
    /// The image has no index, for this reason.
    None(String),
    /// The image names an index that is missing or invalid, for this reason.
    Unusable(String),
}

/// The index of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) digest: Digest,
    /// How it was found, in words.
    pub(crate) found: &'static str,
    /// The zTOCs, by layer digest.
    pub(crate) ztocs: BTreeMap<Digest, Descriptor>,
    /// The prefetch artifacts, by layer digest.
    pub(crate) prefetch: BTreeMap<Digest, Descriptor>,
}

/// Finds and reads the index of an image.
pub(crate) async fn discover(
    image: &ImageName,
    manifest: &Manifest,
    content: &Content,
    modes: Modes,
    subject: &Subject,
    mountpoint: &str,
) -> Result<Discovery, ContentError> {
    let named = match named(image, manifest, modes) {
        Ok(Some((digest, Named::ByClient))) => {
            debug!(
                digest = digest.to_string(),
                "using provided soci index digest"
            );
            Ok((digest, "given by the client"))
        }
        Ok(Some((digest, Named::ByManifest))) => {
            debug!(
                digest = digest.to_string(),
                "using soci v2 index annotation"
            );
            Ok((digest, "named by the manifest"))
        }
        Ok(None) => {
            if !modes.v2 {
                info!("soci v2 is disabled");
            }
            referred(image, content, modes).await?
        }
        Err(Unnamed::Disabled) => Err("all lazy pull modes are disabled".to_owned()),
        Err(Unnamed::Invalid(why)) => return Ok(Discovery::Unusable(why)),
    };
    let (digest, found) = match named {
        Ok(found) => found,
        Err(why) => return Ok(Discovery::None(why)),
    };
    let (key, parent) = (&subject.key, &subject.parent);
    info!(
        digest = digest.to_string(),
        key, parent, mountpoint, "fetching SOCI artifacts using index descriptor"
    );
    let wanted = Descriptor::new(media_type::OCI_MANIFEST, digest, 0);
    let bytes = match content
        .document(image.place(), Document::Manifest, &wanted)
        .await
    {
        Ok(bytes) => bytes,
        Err(error) if error.is_final() => return Ok(Discovery::Unusable(explain(&error))),
        Err(error) => return Err(error),
    };
    let index = match SociIndex::parse(&bytes) {
        Ok(index) => index,
        Err(error) => {
            let why = format!("index {digest}: {}", explain(&error));
            return Ok(Discovery::Unusable(why));
        }
    };
    let ztocs = index
        .ztocs()
        .map(|pair| (pair.layer, pair.ztoc.clone()))
        .collect();
    let prefetch = index.prefetch_artifacts();
    let prefetch = prefetch.map(|(layer, artifact)| (layer, artifact.clone()));
    Ok(Discovery::Found(Index {
        digest,
        found,
        ztocs,
        prefetch: prefetch.collect(),
    }))
}

/// Who names the index of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    ByClient,
    ByManifest,
}

/// Why no index can be looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unnamed {
    /// The configuration disables it.
    Disabled,
    /// The manifest names an index, but not by a digest.
    Invalid(String),
}

/// The digest of the index that the client or the manifest names.
fn named(
    image: &ImageName,
    manifest: &Manifest,
    modes: Modes,
) -> Result<Option<(Digest, Named)>, Unnamed> {
    if let Some(digest) = image.index {
        return Ok(Some((digest, Named::ByClient)));
    }
    if !modes.v1 && !modes.v2 {
        return Err(Unnamed::Disabled);
    }
    if !modes.v2 {
        return Ok(None);
    }
    match discover::annotated(manifest) {
        Ok(discover::Discovery::Found(digest, How::Annotation | How::Stated)) => {
            Ok(Some((digest, Named::ByManifest)))
        }
        Ok(discover::Discovery::NoIndex) => Ok(None),
        Err(error) => Err(Unnamed::Invalid(explain(&error))),
    }
}

/// Whether the client or the manifest, as far as it is known, names an index, even an invalid one.
pub(super) fn names_index(image: &ImageName, manifest: Option<&Manifest>, modes: Modes) -> bool {
    let by_manifest = |manifest| {
        let named = named(image, manifest, modes);
        matches!(named, Ok(Some(_)) | Err(Unnamed::Invalid(_)))
    };
    image.index.is_some() || manifest.is_some_and(by_manifest)
}

/// The first index in the registry's list of referrers, or why there is none.
async fn referred(
    image: &ImageName,
    content: &Content,
    modes: Modes,
) -> Result<Result<(Digest, &'static str), String>, ContentError> {
    if !modes.v1 {
        debug!("soci v1 is disabled");
        let why = "no valid SOCI index found: the manifest names none";
        return Ok(Err(why.to_owned()));
    }
    let wanted = Version::V1.artifact_type();
    let referrers = content
        .referrers(image.place(), &image.manifest, wanted)
        .await;
    let referrers = match referrers {
        Ok(referrers) => referrers,
        Err(error) if error.is_final() => return Ok(Err(explain(&error))),
        Err(error) => return Err(error),
    };
    Ok(match referrers.first() {
        Some(first) => {
            debug!(
                digest = first.digest.to_string(),
                "using soci v1 index via referrers API"
            );
            Ok((first.digest, "among the referrers of the manifest"))
        }
        None => Err(NO_REFERRERS.to_owned()),
    })
}

/// Formats an error with its causes.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::labels::{self, Labels};
    use super::*;

    fn image() -> ImageName {
        let manifest = Digest::sha256(b"manifest").to_string();
        let labels: Labels = [
            (labels::IMAGE_REFERENCE, "registry.example/app:1"),
            (labels::MANIFEST_DIGEST, &manifest),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        ImageName::from_labels("default", &labels).unwrap()
    }

    fn manifest(annotation: Option<&str>) -> Manifest {
        let named = |text: &str| (soci_index::INDEX_DIGEST.to_owned(), text.to_owned());
        Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: String::new(),
            config: Descriptor::of(media_type::OCI_CONFIG, b"{}"),
            layers: Some(Vec::new()),
            subject: None,
            annotations: annotation.map(named).into_iter().collect(),
        }
    }

    #[test]
    fn an_annotation_that_is_no_digest_names_an_unusable_index() {
        let (v1, v2) = (
            Modes {
                v1: true,
                v2: false,
            },
            Modes { v1: true, v2: true },
        );
        let none = Modes {
            v1: false,
            v2: false,
        };
        let digest = Digest::sha256(b"index");
        let good = digest.to_string();
        let image = image();
        for (annotation, modes, names) in [
            (None, v2, false),
            (Some(&*good), v2, true),
            (Some("sha256:abc"), v2, true),
            (Some("sha256:abc"), v1, false),
            (Some("sha256:abc"), none, false),
        ] {
            let manifest = manifest(annotation);
            let named_index = names_index(&image, Some(&manifest), modes);
            assert_eq!(named_index, names, "{annotation:?} {modes:?}");
        }
        let found = |annotation, modes| named(&image, &manifest(annotation), modes);
        assert_eq!(
            found(Some(&*good), v2),
            Ok(Some((digest, Named::ByManifest)))
        );
        assert_eq!(found(None, v2), Ok(None));
        let bad = found(Some("sha256:abc"), v2);
        assert!(matches!(bad, Err(Unnamed::Invalid(_))), "{bad:?}");
        assert_eq!(found(None, none), Err(Unnamed::Disabled));
    }
}
