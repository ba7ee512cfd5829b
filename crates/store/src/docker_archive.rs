//! Reads archives written by `docker save` and `skopeo copy … docker-archive:` as OCI images.
//!
//! `manifest.json` lists images with their configuration and layers as members of the archive. The
//! OCI manifest is generated from them and is deterministic. Layers are usually plain tars without
//! a trustworthy digest, so opening an archive reads each layer once; a plain tar must match its
//! diff-ID in the configuration.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;

use super::archive::Archive;
use super::{Blob, Content, ContentStore, Labels, Put, StoreError};
use soci_oci::descriptor::{Annotations, Descriptor};
use soci_oci::digest::{Algorithm, Digest, Sha256Writer};
use soci_oci::manifest::{self, DocumentError, ImageConfig, MAX_DOCUMENT_BYTES, Manifest};
use soci_oci::reference::ImageRef;
use soci_oci::{json, media_type};

/// The name of the list of images.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Maximum number of layers of an image. overlayfs supports fewer.
const MAX_LAYERS: usize = 10_000;

/// Why an archive has no usable image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DockerArchiveError {
    /// The archive cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive has no list of images.
    #[error("no {MANIFEST_NAME} in it: not an archive of docker save")]
    NoManifest,
    /// The list is not valid JSON.
    #[error("{MANIFEST_NAME}")]
    Json(#[source] serde_json::Error),
    /// The archive has several images, or none with this name.
    #[error("{wanted}; it has {}", names(known))]
    Choice {
        /// The requested name.
        wanted: String,
        /// The names of the images in the archive.
        known: Vec<String>,
    },
    /// A file in the list is missing from the archive.
    #[error("{0:?} is not in it")]
    Missing(String),
    /// The configuration is invalid.
    #[error("configuration {name:?}")]
    Config {
        /// The name of the member.
        name: String,
        /// Why it is invalid.
        #[source]
        source: Box<DocumentError>,
    },
    /// The list and the configuration have different numbers of layers.
    #[error("{layers} layers, but the configuration has {diff_ids}")]
    Layers {
        /// Number of layers in the list.
        layers: usize,
        /// Number of layers in the configuration.
        diff_ids: usize,
    },
    /// A layer does not match its diff-ID in the configuration.
    #[error("layer {name:?} has digest {actual}, but the configuration says {expected}")]
    WrongLayer {
        /// The name of the member.
        name: String,
        /// The digest in the configuration.
        expected: Box<Digest>,
        /// The digest of the layer's bytes.
        actual: Box<Digest>,
    },
}

fn names(known: &[String]) -> String {
    /// Maximum number of names shown in a message.
    const MANY: usize = 10;
    let shown: Vec<&str> = known.iter().map(String::as_str).take(MANY).collect();
    match known.len() {
        0 => "none".to_owned(),
        all if all > MANY => format!("{} and {} more", shown.join(", "), all - MANY),
        _ => shown.join(", "),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// One image in a Docker archive.
#[derive(Clone)]
pub struct DockerArchive {
    archive: Archive,
    root: Arc<Descriptor>,
    blobs: Arc<HashMap<Digest, Part>>,
}

#[derive(Clone)]
enum Part {
    Member(String),
    Made(Bytes),
}

impl fmt::Debug for DockerArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerArchive")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl DockerArchive {
    /// Opens the image with this name, or the only image. Reads all of its layers.
    pub fn open(archive: Archive, name: Option<&str>) -> Result<Self, DockerArchiveError> {
        let list = archive
            .read_member(MANIFEST_NAME, MAX_DOCUMENT_BYTES)?
            .ok_or(DockerArchiveError::NoManifest)?;
        let list: Vec<Listed> = json::from_slice(&list).map_err(DockerArchiveError::Json)?;
        let image = choose(&list, name)?;
        let config = archive
            .read_member(&image.config, MAX_DOCUMENT_BYTES)?
            .ok_or_else(|| DockerArchiveError::Missing(image.config.clone()))?;
        let parsed: ImageConfig =
            manifest::parse(&config, media_type::OCI_CONFIG).map_err(|source| {
                DockerArchiveError::Config {
                    name: image.config.clone(),
                    source: Box::new(source),
                }
            })?;
        let members = image.layers.as_deref().unwrap_or_default();
        let diff_ids = &parsed.rootfs.diff_ids;
        if members.len() != diff_ids.len() || members.len() > MAX_LAYERS {
            return Err(DockerArchiveError::Layers {
                layers: members.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let mut blobs = HashMap::new();
        let mut layers = Vec::new();
        for (member, diff_id) in members.iter().zip(diff_ids) {
            let layer = layer(&archive, member, diff_id)?;
            blobs.insert(layer.digest, Part::Member(member.clone()));
            layers.push(layer);
        }
        let described = Descriptor::of(media_type::OCI_CONFIG, &config);
        blobs.insert(described.digest, Part::Made(config));
        let manifest = json::to_vec(&Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: String::new(),
            config: described,
            layers: Some(layers),
            subject: None,
            annotations: Annotations::new(),
        });
        let root = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
        blobs.insert(root.digest, Part::Made(manifest.into()));
        Ok(Self {
            archive,
            root: Arc::new(root),
            blobs: Arc::new(blobs),
        })
    }

    /// The generated manifest.
    #[must_use]
    pub fn root(&self) -> &Descriptor {
        &self.root
    }
}

fn choose<'a>(list: &'a [Listed], name: Option<&str>) -> Result<&'a Listed, DockerArchiveError> {
    let tags = |image: &Listed| image.repo_tags.clone().unwrap_or_default();
    let missing = |wanted: String| DockerArchiveError::Choice {
        wanted,
        known: list.iter().flat_map(tags).collect(),
    };
    let Some(name) = name else {
        return match list {
            [only] => Ok(only),
            [] => Err(missing("no image".to_owned())),
            _ => Err(missing("several images, and none is named".to_owned())),
        };
    };
    // Docker treats `busybox` and `docker.io/library/busybox:latest` as the same name.
    let whole =
        |name: &str| ImageRef::parse(name).map_or_else(|_| name.to_owned(), |it| it.to_string());
    let wanted = whole(name);
    let has = |image: &&Listed| {
        tags(image)
            .iter()
            .any(|tag| tag == name || whole(tag) == wanted)
    };
    let found = list.iter().find(has);
    found.ok_or_else(|| missing(format!("no image {name:?}")))
}

/// Reads a layer to determine its digest and compression.
fn layer(
    archive: &Archive,
    name: &str,
    diff_id: &Digest,
) -> Result<Descriptor, DockerArchiveError> {
    let missing = || DockerArchiveError::Missing(name.to_owned());
    let Blob { size, mut reader } = archive.member(name).ok_or_else(missing)?;
    let failed = |error| StoreError::Io {
        action: "read",
        path: PathBuf::from(name),
        cause: error,
    };
    let mut start = Vec::new();
    let sniffed = reader.by_ref().take(4).read_to_end(&mut start);
    sniffed.map_err(failed)?;
    let media_type = match start.as_slice() {
        [0x1f, 0x8b, ..] => media_type::OCI_LAYER_GZIP.to_owned(),
        [0x28, 0xb5, 0x2f, 0xfd] => format!("{}+zstd", media_type::OCI_LAYER),
        _ => media_type::OCI_LAYER.to_owned(),
    };
    let mut hash = Sha256Writer::new(io::sink());
    let mut whole = start.as_slice().chain(reader);
    io::copy(&mut whole, &mut hash).map_err(failed)?;
    let (_, digest, _) = hash.finish();
    let is_plain = media_type == media_type::OCI_LAYER;
    if is_plain && diff_id.algorithm() == Algorithm::Sha256 && digest != *diff_id {
        return Err(DockerArchiveError::WrongLayer {
            name: name.to_owned(),
            expected: Box::new(*diff_id),
            actual: Box::new(digest),
        });
    }
    Ok(Descriptor::new(media_type, digest, size))
}

#[async_trait]
impl ContentStore for DockerArchive {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match self.open(digest).await {
            Ok(blob) => Ok(Some(blob.size)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let opened = match self.blobs.get(digest) {
            Some(Part::Member(name)) => self.archive.member(name),
            Some(Part::Made(bytes)) => Some(Blob {
                size: bytes.len() as u64,
                reader: Box::new(io::Cursor::new(bytes.clone())),
            }),
            None => None,
        };
        opened.ok_or(StoreError::NotFound(*digest))
    }

    async fn put(&self, _: &Descriptor, _: Content) -> Result<Put, StoreError> {
        Err(StoreError::ReadOnly(PathBuf::from(MANIFEST_NAME)))
    }

    async fn label(&self, _: &Digest, _: &Labels) -> Result<(), StoreError> {
        Ok(())
    }
}
