//! What may be wrong, in one line each.

use std::fmt;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};
use soci_oci::digest::DigestError;
use soci_oci::manifest::DocumentError;
use soci_oci::{Digest, Platform};
use soci_ztoc::DecodeError;

use crate::builder::explain;
use crate::model::IndexError;
use crate::prefetch::ArtifactError;

/// What kind of blob something is wrong with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The list of an image's manifests.
    ImageIndex,
    /// A manifest of an image.
    Manifest,
    /// Its configuration.
    Config,
    /// One of its layers.
    Layer,
    /// A SOCI index.
    SociIndex,
    /// A zTOC.
    Ztoc,
    /// A prefetch artifact.
    Prefetch,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ImageIndex => "image index",
            Self::Manifest => "manifest",
            Self::Config => "config",
            Self::Layer => "layer",
            Self::SociIndex => "SOCI index",
            Self::Ztoc => "zTOC",
            Self::Prefetch => "prefetch artifact",
        })
    }
}

/// Something that is wrong, and where.
#[derive(Debug)]
pub struct Finding {
    /// The kind of blob.
    pub part: Part,
    /// The blob.
    pub digest: Digest,
    /// The layer that it belongs to, of zTOCs and prefetch artifacts.
    pub layer: Option<Digest>,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.part, self.digest)?;
        if let Some(layer) = self.layer {
            write!(f, " of layer {layer}")?;
        }
        write!(f, ": {}", explain(&self.problem))
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Finding", 4)?;
        object.serialize_field("part", &self.part.to_string())?;
        object.serialize_field("digest", &self.digest.to_string())?;
        match self.layer {
            Some(layer) => object.serialize_field("layer", &layer.to_string())?,
            None => object.skip_field("layer")?,
        }
        object.serialize_field("problem", &explain(&self.problem))?;
        object.end()
    }
}

/// What is wrong with a blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It is not there.
    #[error("not found")]
    Missing,
    /// It has another length than its descriptor says: expected, found.
    #[error("has {1} bytes, its descriptor says {0}")]
    Size(u64, u64),
    /// Its bytes have this digest.
    #[error("its bytes have the digest {0}")]
    Digest(Digest),
    /// It is larger than a document can be: bytes, limit.
    #[error("has {0} bytes, more than the {1} that are read at once")]
    TooLarge(u64, u64),
    /// It cannot be read as what it is said to be.
    #[error("is not what its media type says")]
    Document(#[source] Box<DocumentError>),
    /// The image has no manifest for a platform that was asked for.
    #[error("has no manifest for {0}")]
    NoPlatform(Platform),
    /// No manifest that was looked at has a SOCI index.
    #[error("no SOCI index belongs to it")]
    NoIndex,
    /// A descriptor of this media type where an image or a list of images should be.
    #[error("is no image: media type {0:?}")]
    NoImage(String),
    /// The annotation that should name a digest: its key, its value.
    #[error("annotation {0}: {1:?} is no digest")]
    Annotation(&'static str, String, #[source] DigestError),
    /// The image index says something else about the manifest's SOCI index than the manifest does.
    #[error("the image index says that its SOCI index is {1:?}, the manifest says {0}")]
    Binding(Digest, String),
    /// The manifest's SOCI index is no member of the image index.
    #[error("its SOCI index {0} is not listed in the image index for it")]
    Unlisted(Digest),
    /// The image index lists a SOCI index for a manifest that names none.
    #[error("does not name the SOCI index {0} that the image index lists for it")]
    NotNaming(Digest),
    /// A SOCI index in an image index, for a manifest that does not name it.
    #[error("is listed for manifest {0}, which does not name it")]
    Unnamed(Digest),
    /// A SOCI index in an image index without its artifact type; what stands there.
    #[error("is listed with the artifact type {0:?}, not that of version 2")]
    ArtifactType(String),
    /// A SOCI index in an image index, for a manifest that is not there.
    #[error("is listed for manifest {0}, which the image index does not have")]
    Stray(String),
    /// A SOCI index in an image index for another platform than its manifest: its own, the manifest's.
    #[error("is listed for platform {0}, its manifest for {1}")]
    Platform(String, String),
    /// Not a SOCI index, or of an unknown version.
    #[error("is no SOCI index")]
    Index(#[source] IndexError),
    /// A version 1 index where version 2 belongs, or the reverse.
    #[error("is of the other version: {0}")]
    Version(&'static str),
    /// Its bytes are not those that re-encoding gives.
    #[error("is not in canonical form; the reference's daemon does not take it")]
    Form,
    /// Its configuration is not the empty object.
    #[error("its config should be the two bytes {{}}")]
    IndexConfig,
    /// A version 1 index of another image.
    #[error("its subject is {0}")]
    Subject(String),
    /// A blob of an index that is no zTOC and no prefetch artifact.
    #[error("is in a SOCI index and has the media type {0:?}")]
    MediaType(String),
    /// The layer that it is for, if any is named, is none of the image's.
    #[error("is for layer {0:?}, which the image does not have")]
    NoLayer(String),
    /// Another media type than the layer has: stated, the layer's.
    #[error("says its layer is {0:?}, the manifest says {1:?}")]
    LayerType(String, String),
    /// The span size that the index states is not the zTOC's: stated, the zTOC's.
    #[error("the index says its span size is {0:?}, the zTOC says {1}")]
    SpanSize(String, u64),
    /// Not readable, or one that cannot be served.
    #[error("cannot be used")]
    Ztoc(#[source] DecodeError),
    /// Made for a layer of other length: the zTOC's, the layer's.
    #[error("is for a layer of {0} bytes, the layer has {1}")]
    LayerSize(u64, u64),
    /// Made for a layer compressed otherwise.
    #[error("is for a layer that is compressed otherwise")]
    Compression,
    /// It is said to have no extended attributes, and has.
    #[error("is said to have no extended attributes, but {0:?} has")]
    Xattrs(String),
    /// Not readable as a prefetch artifact.
    #[error("is no prefetch artifact")]
    Prefetch(#[source] ArtifactError),
    /// A prefetch artifact of a layer without a zTOC.
    #[error("is for a layer that has no zTOC")]
    PrefetchAlone,
    /// A range of spans that the layer does not have: start, end, spans of the layer.
    #[error("asks for spans {0} to {1}, the layer has {2}")]
    Spans(u64, u64, usize),
    /// Wrong bytes in a span.
    #[error("span {0} of the layer is {1}, the zTOC says {2}")]
    Span(u32, Digest, Digest),
    /// More wrong spans than are told one by one.
    #[error("{0} more spans differ")]
    MoreSpans(usize),
    /// The layer ends before its last span does.
    #[error("the layer ends in span {0}")]
    ShortLayer(u32),
    /// The layer is no readable archive.
    #[error("cannot be read")]
    Layer(#[source] Box<soci_ztoc::BuildError>),
    /// The store gave up in the middle of the layer.
    #[error("cannot be read to its end: {0}")]
    Broken(String),
    /// Another number of something: of what, the zTOC's, the layer's.
    #[error("has {1} {0}, the layer has {2}")]
    Count(&'static str, u64, u64),
    /// A span begins elsewhere than the layer's blocks do, or with another state.
    #[error("the checkpoint of span {0} is not the layer's")]
    Checkpoint(u32),
    /// An entry is not what the archive says: number, name, what differs.
    #[error("entry {0}, {1:?}: tar header and zTOC disagree about the {2}")]
    Entry(usize, String, &'static str),
    /// More wrong entries than are told one by one.
    #[error("{0} more entries differ")]
    MoreEntries(usize),
}
