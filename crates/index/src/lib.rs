//! SOCI indexes: what lets an image be used before it is there.
//!
//! An index lists the zTOCs of an image's layers ([`model`]). A version 1 index names the image's
//! manifest as its subject and is found among the manifest's referrers; a version 2 index is named by
//! an annotation of the manifest, and both lie in one OCI index ([`discover`]).
//!
//! [`builder`] makes indexes from layers, [`convert`] makes an image that carries its own, [`artifacts`]
//! records what was made on this machine.

#![warn(missing_docs)]

pub mod artifacts;
pub mod builder;
pub mod convert;
pub mod discover;
pub mod model;

pub use artifacts::{Artifacts, ArtifactsError};
pub use builder::{BuildError, BuildOptions, LayerError, Note, Observer};
pub use convert::{ConvertError, ConvertOptions, Platforms, convert};
pub use discover::{BadDigest, Discovery, How};
pub use model::{
    ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2, BUILD_TOOL, CONFIG, DISABLE_XATTRS, INDEX_DIGEST,
    IndexError, LAYER_DIGEST, LAYER_MEDIA_TYPE, LayerZtoc, MANIFEST_DIGEST, PREFETCH_MEDIA_TYPE,
    SPAN_SIZE, SociIndex, Version, ZTOC_MEDIA_TYPE,
};
