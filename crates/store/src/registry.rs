//! A read-only store for a registry repository. Images are processed in place; nothing is stored
//! locally.
//!
//! The store must know whether a digest is a manifest or a blob, and how large it is. It learns
//! this from the documents that are read through it, starting at the root. Small documents are
//! cached in memory. A layer is downloaded with a single request, which is resumed if the
//! connection breaks (`stream`). If a target is set (`target`), the same bytes are uploaded to
//! it while they are read.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Blob, Content, ContentStore, Labels, Put, StoreError, checked};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::{self, ImageIndex, MAX_DOCUMENT_BYTES, Manifest};
use soci_oci::media_type;
use soci_oci::reference::ImageRef;
use soci_registry::fetch::FetchError;
use soci_registry::{MAX_MANIFEST, Registry, RegistryError};

mod graph;
mod stream;
mod target;

pub use graph::{Graph, Node, graph};
pub use target::{RegistryTarget, UPLOADS_AT_ONCE};

/// Maximum size of the document cache in bytes.
const MAX_KEPT: usize = 16 << 20;
/// Maximum number of blobs to remember. No image has more.
const MAX_KNOWN: usize = 1 << 20;

/// A repository, read through one image. Clones share their state.
#[derive(Clone)]
pub struct RegistryStore {
    shared: Arc<Shared>,
    target: Option<RegistryTarget>,
}

struct Shared {
    registry: Registry,
    image: ImageRef,
    known: Mutex<Knowledge>,
}

#[derive(Default)]
struct Knowledge {
    blobs: HashMap<Digest, Known>,
    /// Blobs for which a mirror returned wrong bytes.
    distrusted: HashSet<Digest>,
    kept: HashMap<Digest, Bytes>,
    kept_bytes: usize,
}

/// The size and kind of a blob, as stated by the document that refers to it.
#[derive(Clone)]
struct Known {
    size: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Document,
    Config,
    Layer,
    Other,
}

impl fmt::Debug for RegistryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryStore")
            .field("image", &self.shared.image)
            .finish_non_exhaustive()
    }
}

impl RegistryStore {
    /// Creates a store for the repository of this image.
    #[must_use]
    pub fn new(registry: Registry, image: ImageRef) -> Self {
        let known = Mutex::default();
        let shared = Arc::new(Shared {
            registry,
            image,
            known,
        });
        Self {
            shared,
            target: None,
        }
    }

    /// Returns the same store, except that layers are also uploaded to the target while they are
    /// read, if the target does not have them.
    #[must_use]
    pub fn copying_to(&self, target: &RegistryTarget) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            target: Some(target.clone()),
        }
    }

    /// Resolves the image's name to its root descriptor.
    pub async fn root(&self) -> Result<Descriptor, StoreError> {
        let Shared {
            registry, image, ..
        } = self.shared.as_ref();
        let document = registry.root(image).await?;
        let (media_type, size) = (document.media_type, document.bytes.len() as u64);
        if !media_type::is_index(&media_type) && !media_type::is_manifest(&media_type) {
            let image = image.to_string();
            return Err(StoreError::NotAnImage { image, media_type });
        }
        let root = Descriptor::new(media_type, document.digest, size);
        self.learn([&root]);
        self.keep(&root, document.bytes);
        Ok(root)
    }

    /// Remembers the descriptors in a document, and caches the document if there is room.
    fn keep(&self, document: &Descriptor, bytes: Bytes) {
        let media_type = &document.media_type;
        if media_type::is_index(media_type) {
            if let Ok(index) = manifest::parse::<ImageIndex>(&bytes, media_type) {
                self.learn(index.manifests());
            }
        } else if let Ok(manifest) = manifest::parse::<Manifest>(&bytes, media_type) {
            self.learn([&manifest.config]);
            self.learn(manifest.layers());
        }
        let mut known = self.known();
        if known.kept_bytes + bytes.len() <= MAX_KEPT {
            known.kept_bytes += bytes.len();
            known.kept.insert(document.digest, bytes);
        }
    }

    /// Remembers descriptors of blobs in the repository.
    pub fn learn<'a>(&self, blobs: impl IntoIterator<Item = &'a Descriptor>) {
        let mut known = self.known();
        for blob in blobs {
            let kind = match blob.media_type.as_str() {
                text if media_type::is_index(text) || media_type::is_manifest(text) => {
                    Kind::Document
                }
                text if media_type::is_config(text) => Kind::Config,
                text if media_type::is_layer(text) => Kind::Layer,
                _ => Kind::Other,
            };
            if known.blobs.len() < MAX_KNOWN {
                let size = blob.size;
                known
                    .blobs
                    .entry(blob.digest)
                    .or_insert(Known { size, kind });
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Knowledge> {
        let known = self.shared.known.lock();
        known.unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a manifest or index, and remembers the descriptors in it.
    async fn document(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        if let Some(kept) = self.known().kept.get(digest) {
            return Ok(kept.clone());
        }
        let stated = self.known().blobs.get(digest).map(|known| known.size);
        if let Some(size) = stated.filter(|size| *size > MAX_MANIFEST) {
            return Err(too_large(*digest, size));
        }
        let Shared {
            registry, image, ..
        } = self.shared.as_ref();
        let document = registry.manifest(image, digest).await?;
        let size = stated.unwrap_or(document.bytes.len() as u64);
        let bytes = checked(document.bytes, *digest, size)?;
        let descriptor = Descriptor::new(document.media_type, *digest, size);
        self.keep(&descriptor, bytes.clone());
        Ok(bytes)
    }

    async fn blob(&self, digest: &Digest, known: &Known) -> Result<Blob, StoreError> {
        let size = known.size;
        let Shared {
            registry, image, ..
        } = self.shared.as_ref();
        let blob = Descriptor::new(media_type::OCTET_STREAM, *digest, size);
        let fetcher = if self.known().distrusted.contains(digest) {
            registry.blob_of_origin(image, &blob)?
        } else {
            registry.blob(image, &blob)?
        };
        let (image, digest, of) = (image.to_string(), *digest, known.kind);
        let explain = move |error| {
            let is_missing = matches!(error, FetchError::Status { status: 404, .. });
            let kind = if is_missing {
                io::ErrorKind::NotFound
            } else {
                io::ErrorKind::Other
            };
            let what = if is_missing && of == Kind::Config {
                format!("the registry does not have the image configuration {digest}")
            } else {
                format!("blobs/{digest}")
            };
            let image = image.clone();
            let source = Box::new(error);
            let error = RegistryError::Fetch {
                image,
                what,
                source,
            };
            io::Error::new(kind, error)
        };
        let mut incoming = stream::Incoming::new(fetcher, explain);
        // The download has begun and goes on while the target is asked whether it has the layer.
        if let Some(target) = self.target.as_ref().filter(|_| known.kind == Kind::Layer) {
            incoming.send_to(target.receive(&blob).await?);
        }
        Ok(Blob {
            size,
            reader: Box::new(incoming),
        })
    }
}

fn too_large(digest: Digest, size: u64) -> StoreError {
    let limit = MAX_MANIFEST.min(MAX_DOCUMENT_BYTES);
    StoreError::TooLarge {
        digest,
        size,
        limit,
    }
}

#[async_trait]
impl ContentStore for RegistryStore {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let known = self.known().blobs.get(digest).cloned();
        match known {
            // Registries ensure that the blobs of a manifest exist.
            Some(Known { size, kind }) if kind != Kind::Document => Ok(Some(size)),
            _ => match self.document(digest).await {
                Ok(bytes) => Ok(Some(bytes.len() as u64)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let known = self.known().blobs.get(digest).cloned();
        match known {
            Some(known) if known.kind != Kind::Document => self.blob(digest, &known).await,
            _ => {
                let bytes = self.document(digest).await?;
                Ok(Blob {
                    size: bytes.len() as u64,
                    reader: Box::new(io::Cursor::new(bytes)),
                })
            }
        }
    }

    async fn put(&self, _: &Descriptor, _: Content) -> Result<Put, StoreError> {
        let name = self.shared.image.to_string();
        Err(StoreError::ReadOnly(PathBuf::from(name)))
    }

    async fn label(&self, _: &Digest, _: &Labels) -> Result<(), StoreError> {
        Ok(())
    }

    fn distrust(&self, digest: &Digest) -> bool {
        let Shared {
            registry, image, ..
        } = self.shared.as_ref();
        registry.has_mirrors(image) && self.known().distrusted.insert(*digest)
    }
}
