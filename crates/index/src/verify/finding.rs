//! The problems that a verification can report, in one line each.

use std::fmt;
use std::io;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};
use soci_oci::digest::DigestError;
use soci_oci::manifest::DocumentError;
use soci_oci::{Digest, Platform};
use soci_ztoc::{DecodeError, GzipError};

use crate::builder::explain;
use crate::model::IndexError;
use crate::prefetch::ArtifactError;

/// The kind of blob that has a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The index of an image's manifests.
    ImageIndex,
    /// A manifest of an image.
    Manifest,
    /// The configuration of an image.
    Config,
    /// A layer of an image.
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

/// A problem and its location.
#[derive(Debug)]
pub struct Finding {
    /// The kind of blob.
    pub part: Part,
    /// The digest of the blob.
    pub digest: Digest,
    /// The layer that a zTOC or prefetch artifact belongs to.
    pub layer: Option<Digest>,
    /// The problem.
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

/// A problem of a blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The blob is missing.
    #[error("not found")]
    Missing,
    /// The configuration of this manifest is missing.
    #[error("not found; it is the image configuration of manifest {0}")]
    NoConfig(Digest),
    /// Its size differs from its descriptor: expected, actual.
    #[error("has {1} bytes, its descriptor says {0}")]
    Size(u64, u64),
    /// Its bytes have this digest.
    #[error("its bytes have the digest {0}")]
    Digest(Digest),
    /// It exceeds the size limit of documents: size in bytes, limit.
    #[error("has {0} bytes, more than the {1} that are read at once")]
    TooLarge(u64, u64),
    /// It cannot be parsed as its stated kind.
    #[error("is not what its media type says")]
    Document(#[source] Box<DocumentError>),
    /// The image has no manifest for a requested platform.
    #[error("has no manifest for {0}")]
    NoPlatform(Platform),
    /// None of the checked manifests has a SOCI index.
    #[error("no SOCI index belongs to it")]
    NoIndex,
    /// The target has this media type instead of that of a manifest or index.
    #[error("is no image: media type {0:?}")]
    NoImage(String),
    /// An annotation is not a valid digest: key, value.
    #[error("annotation {0}: {1:?} is no digest")]
    Annotation(&'static str, String, #[source] DigestError),
    /// The image index and the manifest name different SOCI indexes.
    #[error("the image index says that its SOCI index is {1:?}, the manifest says {0}")]
    Binding(Digest, String),
    /// The manifest's SOCI index is not a member of the image index.
    #[error("its SOCI index {0} is not listed in the image index for it")]
    Unlisted(Digest),
    /// The image index lists a SOCI index for a manifest that does not name one.
    #[error("does not name the SOCI index {0} that the image index lists for it")]
    NotNaming(Digest),
    /// The image index contains a SOCI index for a manifest that does not name it.
    #[error("is listed for manifest {0}, which does not name it")]
    Unnamed(Digest),
    /// A SOCI index in the image index has this artifact type instead of its own.
    #[error("is listed with the artifact type {0:?}, not that of version 2")]
    ArtifactType(String),
    /// The image index contains a SOCI index for a manifest that it does not contain.
    #[error("is listed for manifest {0}, which the image index does not have")]
    Stray(String),
    /// A SOCI index and its manifest have different platforms in the image index: the index's, the
    /// manifest's.
    #[error("is listed for platform {0}, its manifest for {1}")]
    Platform(String, String),
    /// Not a SOCI index, or of an unknown version.
    #[error("is no SOCI index")]
    Index(#[source] IndexError),
    /// A version 1 index in the place of a version 2 index, or vice versa.
    #[error("is of the other version: {0}")]
    Version(&'static str),
    /// Re-encoding it gives different bytes.
    #[error("is not in canonical form; the reference's daemon does not take it")]
    Form,
    /// Its configuration is not the empty object.
    #[error("its config should be the two bytes {{}}")]
    IndexConfig,
    /// A version 1 index belongs to another image.
    #[error("its subject is {0}")]
    Subject(String),
    /// A blob in an index is neither a zTOC nor a prefetch artifact.
    #[error("is in a SOCI index and has the media type {0:?}")]
    MediaType(String),
    /// The layer that it names is not a layer of the image, or it names none.
    #[error("is for layer {0:?}, which the image does not have")]
    NoLayer(String),
    /// The stated media type differs from the layer's: stated, actual.
    #[error("says its layer is {0:?}, the manifest says {1:?}")]
    LayerType(String, String),
    /// The stated span size differs from the zTOC's: stated, actual.
    #[error("the index says its span size is {0:?}, the zTOC says {1}")]
    SpanSize(String, u64),
    /// The zTOC is invalid or cannot be served.
    #[error("cannot be used")]
    Ztoc(#[source] DecodeError),
    /// The zTOC was built for a layer of another size: the zTOC's, the layer's.
    #[error("is for a layer of {0} bytes, the layer has {1}")]
    LayerSize(u64, u64),
    /// The zTOC was built for another compression.
    #[error("is for a layer that is compressed otherwise")]
    Compression,
    /// The layer is marked as having no extended attributes, but has some.
    #[error("is said to have no extended attributes, but {0:?} has")]
    Xattrs(String),
    /// The prefetch artifact is invalid.
    #[error("is no prefetch artifact")]
    Prefetch(#[source] ArtifactError),
    /// A prefetch artifact belongs to a layer without a zTOC.
    #[error("is for a layer that has no zTOC")]
    PrefetchAlone,
    /// A range contains spans that the layer does not have: start, end, number of spans.
    #[error("asks for spans {0} to {1}, the layer has {2}")]
    Spans(u64, u64, usize),
    /// A span has wrong bytes.
    #[error("span {0} of the layer is {1}, the zTOC says {2}")]
    Span(u32, Digest, Digest),
    /// More wrong spans than are reported individually.
    #[error("{0} more spans differ")]
    MoreSpans(usize),
    /// The layer ends before its last span.
    #[error("the layer ends in span {0}")]
    ShortLayer(u32),
    /// The layer is not a readable archive.
    #[error("cannot be read")]
    Layer(#[source] Box<soci_ztoc::BuildError>),
    /// The configuration has another number of diff-IDs than there are layers: diff-IDs, layers.
    #[error("has {0} diff-IDs, its manifest has {1} layers")]
    DiffIds(usize, usize),
    /// A diff-ID is not the digest of the unpacked layer: layer, stated, actual.
    #[error("says that layer {0} is {1} when unpacked; it is {2}")]
    DiffId(Digest, Digest, Digest),
    /// The layer is not valid gzip.
    #[error("cannot be unpacked")]
    Unpack(#[source] GzipError),
    /// Reading failed. This does not mean that the blob is damaged.
    #[error("could not be read")]
    Unread(#[source] io::Error),
    /// A number differs: its name, the zTOC's, the layer's.
    #[error("has {1} {0}, the layer has {2}")]
    Count(&'static str, u64, u64),
    /// A span does not start at a block of the layer, or has another decompressor state.
    #[error("the checkpoint of span {0} is not the layer's")]
    Checkpoint(u32),
    /// An entry differs from the archive: number, name, what differs.
    #[error("entry {0}, {1:?}: tar header and zTOC disagree about the {2}")]
    Entry(usize, String, &'static str),
    /// More wrong entries than are reported individually.
    #[error("{0} more entries differ")]
    MoreEntries(usize),
}
