//! SOCI indexes, which allow containers to start before their image has been downloaded.
//!
//! An index lists the zTOCs of an image's layers ([`model`]). A version 1 index refers to the
//! image's manifest as its subject and is found among the manifest's referrers. A version 2 index
//! is named by an annotation of the manifest, and one OCI index lists both. See [`discover`].
//!
//! [`builder`] makes zTOCs, [`create`](mod@create) an index for an unchanged image, and
//! [`convert`](mod@convert) an image with its own index, all in a content store. [`standalone`]
//! converts images in registries and on disk. [`push`] uploads indexes, and [`verify`] checks them.
//! [`starts`] are records of what containers read first.

#![warn(missing_docs)]

pub mod artifacts;
mod blobs;
pub mod builder;
pub mod convert;
pub mod create;
pub mod discover;
pub mod image;
pub mod model;
pub mod prefetch;
pub mod push;
mod records;
pub mod reuse;
pub mod standalone;
pub mod starts;
pub mod verify;

pub use artifacts::{Artifacts, ArtifactsError};
pub use builder::{
    BuildContext, BuildError, BuildOptions, LayerError, LayerOutcome, Note, Observer,
};
pub use builder::{Outcome, Parts, Skip, Stage};
pub use convert::{
    BoundIndex, ConvertError, ConvertOptions, Converted, ConvertedPlatform, convert,
};
pub use create::{CreateError, CreateOptions, CreatedIndex, Creation, create};
pub use discover::{BadDigest, Discovery, How};
pub use image::{ImageError, Platforms};
pub use model::{
    ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2, BUILD_TOOL, CONFIG, DISABLE_XATTRS, INDEX_DIGEST,
    IndexError, LAYER_DIGEST, LAYER_MEDIA_TYPE, LayerZtoc, MANIFEST_DIGEST, PREFETCH_MEDIA_TYPE,
    RECORDED_START, SPAN_SIZE, SociIndex, Version, ZTOC_MEDIA_TYPE,
};
pub use reuse::{KnownError, RecordedZtocs, RepositoryZtocs, ZtocSource};
