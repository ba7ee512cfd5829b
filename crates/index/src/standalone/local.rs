//! Images on disk: an OCI layout in a folder or an uncompressed tar, or the output of `docker
//! save`, and the selection of a manifest in them.

use std::fs::File;
use std::io::{self, BufWriter, IntoInnerError, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use soci_oci::manifest::{DocumentError, MAX_DOCUMENT_BYTES};
use soci_oci::{Descriptor, ImageIndex, json, media_type};
use soci_store::archive::Archive;
use soci_store::docker_archive::{self, DockerArchive, DockerArchiveError};
use soci_store::layout::{INDEX_NAME, LAYOUT_NAME, Layout};
use soci_store::{Content, ContentStore, StoreError, blocking, errno};

use super::REF_NAME;
use super::stop::{StopOnDrop, Stoppable};

/// Most names to list in an error message.
const MANY_NAMES: usize = 10;
/// Bytes per read from a stream.
const SPOOL_BUFFER: usize = 1 << 20;

/// Why an image on disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The path cannot be examined. The message has Go's wording.
    #[error("failed to access input {shown}: stat {shown}: {}", errno(cause), shown = path.display())]
    Access {
        /// The path.
        path: PathBuf,
        /// The error. The message contains it.
        cause: io::Error,
    },
    /// The file cannot be opened.
    #[error("failed to open tar {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: Box<StoreError>,
    },
    /// The file is not a tar archive of a layout.
    #[error("failed to extract OCI tar {}", path.display())]
    Archive {
        /// The path.
        path: PathBuf,
        /// Why.
        source: Box<StoreError>,
    },
    /// An archive of `docker save` is expected, but the path is a folder.
    #[error("{} is a folder, not an archive of docker save", .0.display())]
    Folder(PathBuf),
    /// The archive of `docker save` has no usable image.
    #[error("{}", path.display())]
    Docker {
        /// The path.
        path: PathBuf,
        /// Why.
        source: Box<DockerArchiveError>,
    },
    /// The archive from a stream cannot be kept.
    #[error("keep {} in {}", name.display(), folder.display())]
    Spool {
        /// The name of the stream.
        name: PathBuf,
        /// The folder of the temporary file.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layout's index cannot be read.
    #[error("failed to read index.json from {}", path.display())]
    Index {
        /// The path of the image.
        path: PathBuf,
        /// Why.
        source: Box<StoreError>,
    },
    /// The layout's index is not an image index.
    #[error("unmarshal index.json")]
    IndexJson(#[source] serde_json::Error),
    /// The layout's index is empty.
    #[error("index.json contains no manifests")]
    NoManifests,
    /// No image of the layout has the requested name.
    #[error("no image named {name:?} in {}; it has {}", path.display(), listed(names))]
    NoName {
        /// The requested name.
        name: String,
        /// The path of the image.
        path: PathBuf,
        /// The first names that the layout has.
        names: Vec<String>,
    },
    /// The layout's only entry is an image index that cannot be read.
    #[error("read manifest list")]
    List(#[source] Box<StoreError>),
    /// The layout's only entry is not an image index.
    #[error("unmarshal manifest list")]
    ListJson(#[source] Box<DocumentError>),
    /// The layout has the blob of no manifest.
    #[error("manifest list contains no entries with available blobs")]
    NoBlobs,
    /// A store operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "no names".to_owned()
    } else {
        names.join(", ")
    }
}

/// An image on disk. It is only read.
#[derive(Debug, Clone)]
pub struct LocalImage {
    path: PathBuf,
    /// The requested image name, if any.
    name: Option<String>,
    pub(super) form: Form,
}

/// The formats of an image on disk.
#[derive(Debug, Clone)]
pub(super) enum Form {
    Folder(Layout),
    Archive(Archive),
    Docker(DockerArchive),
}

impl LocalImage {
    /// Opens an OCI layout in a folder or in an uncompressed tar archive. Nothing is unpacked.
    /// Reads the headers of an archive, which may block.
    ///
    /// Blobs of a folder must not be links that lead out of it; see
    /// [`following_links`](Self::following_links).
    ///
    /// # Errors
    /// [`SourceError::Access`], [`SourceError::Open`] or [`SourceError::Archive`].
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let metadata = std::fs::metadata(path).map_err(|cause| SourceError::Access {
            path: path.to_owned(),
            cause,
        })?;
        let form = if metadata.is_dir() {
            Form::Folder(Layout::at(path).contained())
        } else {
            Form::Archive(Archive::open(path).map_err(unreadable(path))?)
        };
        Ok(Self::of(path, form))
    }

    fn of(path: &Path, form: Form) -> Self {
        Self {
            path: path.to_owned(),
            name: None,
            form,
        }
    }

    /// Selects the image that the layout's index lists under this name.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..self
        }
    }

    /// Allows blobs of a folder to be links to files outside of it. Use this only for layouts that
    /// you trust: a link can name any file that this process may read.
    #[must_use]
    pub fn following_links(self) -> Self {
        match &self.form {
            Form::Folder(_) => Self {
                form: Form::Folder(Layout::at(&self.path)),
                ..self
            },
            Form::Archive(_) | Form::Docker(_) => self,
        }
    }

    /// Opens the image with this name, or the only one, in an archive of `docker save`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`SourceError::Folder`] or [`SourceError::Docker`].
    pub async fn open_docker(path: &Path, name: Option<&str>) -> Result<Self, SourceError> {
        let owned = path.to_owned();
        match blocking(move || Self::open(&owned)).await?.form {
            Form::Archive(archive) => Self::of_docker(path, archive, name.map(str::to_owned)).await,
            Form::Folder(_) | Form::Docker(_) => Err(SourceError::Folder(path.to_owned())),
        }
    }

    async fn of_docker(
        path: &Path,
        archive: Archive,
        name: Option<String>,
    ) -> Result<Self, SourceError> {
        let opened = blocking(move || DockerArchive::open(archive, name.as_deref())).await;
        let opened = opened.map_err(|source| SourceError::Docker {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self::of(path, Form::Docker(opened)))
    }

    /// Reads an archive of a layout or of `docker save` from a stream to its end. The archive is
    /// kept in an unnamed file in `folder`, because it is read more than once. `name` stands for
    /// the path of the archive in messages.
    ///
    /// If the future is dropped, the stream is read until the current read returns.
    ///
    /// # Errors
    /// [`SourceError::Spool`], [`SourceError::Archive`] or [`SourceError::Docker`].
    pub async fn spooled(
        reader: impl Read + Send + 'static,
        name: &Path,
        folder: &Path,
    ) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Spool {
            name: name.to_owned(),
            folder: folder.to_owned(),
            source,
        };
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        let stop = StopOnDrop::default();
        let reader = Stoppable::new(reader, &stop);
        let file = blocking(move || spool(reader, file))
            .await
            .map_err(failed)?;
        let path = name.to_owned();
        let archive = blocking(move || Archive::of(file, &path)).await;
        let archive = archive.map_err(unreadable(name))?;
        let has = |member: &str| archive.member(member).is_some();
        if has(docker_archive::MANIFEST_NAME) && !has(INDEX_NAME) && !has(LAYOUT_NAME) {
            return Self::of_docker(name, archive, None).await;
        }
        Ok(Self::of(name, Form::Archive(archive)))
    }

    /// The blobs of the image, and of all others in the same layout.
    #[must_use]
    pub fn store(&self) -> Arc<dyn ContentStore> {
        match &self.form {
            Form::Folder(layout) => Arc::new(layout.clone()),
            Form::Archive(archive) => Arc::new(archive.clone()),
            Form::Docker(archive) => Arc::new(archive.clone()),
        }
    }

    /// The bytes of the layout's index, or of one that lists the image of a `docker save` archive.
    ///
    /// # Errors
    /// [`SourceError::Index`].
    pub fn index_json(&self) -> Result<Bytes, SourceError> {
        let bytes = match &self.form {
            Form::Folder(layout) => layout.read_root(INDEX_NAME, MAX_DOCUMENT_BYTES),
            Form::Archive(archive) => archive
                .read_member(INDEX_NAME, MAX_DOCUMENT_BYTES)
                .and_then(|bytes| {
                    let cause = io::Error::from_raw_os_error(2);
                    let path = self.path.join(INDEX_NAME);
                    bytes.ok_or(StoreError::Io {
                        action: "open",
                        path,
                        cause,
                    })
                }),
            Form::Docker(archive) => {
                let only = ImageIndex::new(vec![archive.root().clone()]);
                Ok(json::to_vec(&only).into())
            }
        };
        bytes.map_err(|source| SourceError::Index {
            path: self.path.clone(),
            source: Box::new(source),
        })
    }

    /// The layout's index, reduced to the selected image.
    ///
    /// # Errors
    /// [`SourceError::Index`], [`SourceError::IndexJson`] or [`SourceError::NoName`].
    pub fn index(&self) -> Result<ImageIndex, SourceError> {
        let mut index: ImageIndex =
            json::from_slice(&self.index_json()?).map_err(SourceError::IndexJson)?;
        let Some(name) = &self.name else {
            return Ok(index);
        };
        let named = |member: &&Descriptor| member.annotation(REF_NAME) == Some(name);
        let Some(member) = index.manifests().iter().find(named) else {
            let names = index
                .manifests()
                .iter()
                .filter_map(|it| it.annotation(REF_NAME));
            return Err(SourceError::NoName {
                name: name.clone(),
                path: self.path.clone(),
                names: names.take(MANY_NAMES).map(str::to_owned).collect(),
            });
        };
        // The name belongs to the layout, not to the image.
        let mut member = member.clone();
        member.annotations.remove(REF_NAME);
        index.manifests = Some(vec![member]);
        Ok(index)
    }

    /// The manifest or index to convert. Entries with missing blobs are omitted; if that changes
    /// the index, the new one is stored in `work`.
    pub(super) async fn root(&self, work: &dyn ContentStore) -> Result<Descriptor, SourceError> {
        let index = self.index()?;
        let store = self.store();
        let nested = match index.manifests() {
            [] => return Err(SourceError::NoManifests),
            [only] if media_type::is_index(&only.media_type) => Some(only.clone()),
            [only] => return Ok(only.clone()),
            _ => None,
        };
        let own_type = index.media_type.clone();
        let mut list = match &nested {
            Some(nested) => read_list(store.as_ref(), nested).await?,
            None => index,
        };
        let all = list.manifests().len();
        let mut present = Vec::new();
        for member in list.manifests() {
            if store.size(&member.digest).await?.is_some() {
                present.push(member.clone());
            }
        }
        match (present.as_slice(), nested) {
            ([], _) => Err(SourceError::NoBlobs),
            ([only], _) if media_type::is_manifest(&only.media_type) => Ok(only.clone()),
            (present, Some(nested)) if present.len() == all => Ok(nested),
            (_, nested) => {
                let media_type = nested.map_or(own_type, |nested| nested.media_type);
                list.media_type = if media_type.is_empty() {
                    media_type::OCI_INDEX.to_owned()
                } else {
                    media_type
                };
                list.manifests = Some(present);
                let bytes = json::to_vec(&list);
                let root = Descriptor::of(list.media_type.as_str(), &bytes);
                work.put(&root, Content::Bytes(bytes.into())).await?;
                Ok(root)
            }
        }
    }
}

fn spool(mut reader: impl Read, file: File) -> io::Result<File> {
    let mut out = BufWriter::with_capacity(SPOOL_BUFFER, file);
    io::copy(&mut reader, &mut out)?;
    out.into_inner().map_err(IntoInnerError::into_error)
}

fn unreadable(path: &Path) -> impl FnOnce(StoreError) -> SourceError {
    let path = path.to_owned();
    move |error| {
        let source = Box::new(error);
        match *source {
            StoreError::Io { action: "open", .. } => SourceError::Open { path, source },
            _ => SourceError::Archive { path, source },
        }
    }
}

async fn read_list(
    store: &dyn ContentStore,
    nested: &Descriptor,
) -> Result<ImageIndex, SourceError> {
    let bytes = store
        .read(&nested.digest, MAX_DOCUMENT_BYTES)
        .await
        .map_err(|error| SourceError::List(Box::new(error)))?;
    let list = soci_oci::manifest::parse(&bytes, &nested.media_type);
    list.map_err(|error| SourceError::ListJson(Box::new(error)))
}
