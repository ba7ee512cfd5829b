//! Images on disk: an OCI layout in a folder or an uncompressed tar, or the output of `docker
//! save`, and the selection of a manifest in them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::{Descriptor, ImageIndex, json, media_type};
use soci_store::archive::Archive;
use soci_store::docker_archive::{self, DockerArchive};
use soci_store::layout::{INDEX_NAME, LAYOUT_NAME, Layout};
use soci_store::{Content, ContentStore, StoreError, errno};

/// The annotation of an entry in a layout's index that contains the image's name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most names to list in an error message.
const MANY_NAMES: usize = 10;

/// An image that is only read.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    /// The requested image name, if any.
    tag: Option<String>,
    pub(crate) layout: Either,
}

/// The formats of an image on disk.
#[derive(Debug)]
pub(crate) enum Either {
    Folder(Layout),
    Archive(Archive),
    Docker(DockerArchive),
}

impl Source {
    /// Opens a folder or an archive without copying anything. Without `follow_links`, blobs of a
    /// folder must not be links out of it.
    pub(crate) fn open(path: &Path, follow_links: bool) -> Result<Self> {
        let shown = path.display();
        let metadata = std::fs::metadata(path).map_err(|error| {
            anyhow::anyhow!(
                "failed to access input {shown}: stat {shown}: {}",
                errno(&error)
            )
        })?;
        let layout = if metadata.is_dir() {
            let layout = Layout::at(path);
            Either::Folder(if follow_links {
                layout
            } else {
                layout.contained()
            })
        } else {
            Either::Archive(Archive::open(path).map_err(|error| unreadable(path, error))?)
        };
        Ok(Self {
            path: path.to_owned(),
            tag: None,
            layout,
        })
    }

    /// Opens the image with this name in a folder or an archive.
    pub(crate) fn tagged(path: &Path, tag: Option<&str>, follow_links: bool) -> Result<Self> {
        let mut source = Self::open(path, follow_links)?;
        source.tag = tag.map(str::to_owned);
        Ok(source)
    }

    /// Opens the image with this name in an archive of `docker save`.
    pub(crate) async fn docker(path: &Path, name: Option<&str>) -> Result<Self> {
        let source = Self::open(path, false)?;
        match source.layout {
            Either::Archive(archive) => {
                Self::of_docker(path, archive, name.map(str::to_owned)).await
            }
            _ => bail!(
                "{} is a folder, not an archive of docker save",
                path.display()
            ),
        }
    }

    async fn of_docker(path: &Path, archive: Archive, name: Option<String>) -> Result<Self> {
        let opened = move || DockerArchive::open(archive, name.as_deref());
        let opened = tokio::task::spawn_blocking(opened).await?;
        let opened = opened.with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
            tag: None,
            layout: Either::Docker(opened),
        })
    }

    /// Reads an archive from standard input. It is stored in an unnamed file in `folder`, because
    /// reading an archive needs random access.
    pub(crate) async fn piped(folder: &Path) -> Result<Self> {
        let path = Path::new("standard input");
        let failed = || format!("keep standard input in {}", folder.display());
        let mut file = tempfile::tempfile_in(folder).with_context(failed)?;
        let spool = move || io::copy(&mut io::stdin().lock(), &mut file).map(|_| file);
        let file: File = tokio::task::spawn_blocking(spool)
            .await?
            .with_context(failed)?;
        let archive = Archive::of(file, path).map_err(|error| unreadable(path, error))?;
        let has = |name: &str| archive.member(name).is_some();
        if has(docker_archive::MANIFEST_NAME) && !has(INDEX_NAME) && !has(LAYOUT_NAME) {
            return Self::of_docker(path, archive, None).await;
        }
        Ok(Self {
            path: path.to_owned(),
            tag: None,
            layout: Either::Archive(archive),
        })
    }

    /// The blobs of the image.
    pub(crate) fn store(&self) -> Arc<dyn ContentStore> {
        match &self.layout {
            Either::Folder(layout) => Arc::new(layout.clone()),
            Either::Archive(archive) => Arc::new(archive.clone()),
            Either::Docker(archive) => Arc::new(archive.clone()),
        }
    }

    pub(crate) fn index_json(&self) -> Result<Bytes> {
        let bytes = match &self.layout {
            Either::Folder(layout) => layout.read_root(INDEX_NAME, MAX_DOCUMENT_BYTES),
            Either::Archive(archive) => archive
                .read_member(INDEX_NAME, MAX_DOCUMENT_BYTES)
                .and_then(|bytes| {
                    let cause = std::io::Error::from_raw_os_error(2);
                    let path = self.path.join(INDEX_NAME);
                    bytes.ok_or(StoreError::Io {
                        action: "open",
                        path,
                        cause,
                    })
                }),
            Either::Docker(archive) => {
                let only = ImageIndex::new(vec![archive.root().clone()]);
                Ok(json::to_vec(&only).into())
            }
        };
        bytes.with_context(|| format!("failed to read index.json from {}", self.path.display()))
    }

    /// The index, reduced to the requested image.
    pub(crate) fn index(&self) -> Result<ImageIndex> {
        let mut index: ImageIndex =
            json::from_slice(&self.index_json()?).context("unmarshal index.json")?;
        let Some(tag) = &self.tag else {
            return Ok(index);
        };
        let named = |member: &&Descriptor| member.annotation(REF_NAME) == Some(tag);
        let Some(member) = index.manifests().iter().find(named) else {
            let names = index
                .manifests()
                .iter()
                .filter_map(|it| it.annotation(REF_NAME));
            let names: Vec<&str> = names.take(MANY_NAMES).collect();
            let names = if names.is_empty() {
                "no names".to_owned()
            } else {
                names.join(", ")
            };
            bail!(
                "no image named {tag:?} in {}; it has {names}",
                self.path.display()
            );
        };
        // The name belongs to the layout, not to the image.
        let mut member = member.clone();
        member.annotations.remove(REF_NAME);
        index.manifests = Some(vec![member]);
        Ok(index)
    }

    /// The manifest or index to convert. Entries with missing blobs are omitted; if that changes
    /// the index, the new one is stored in `work`.
    pub(crate) async fn root(&self, work: &dyn ContentStore) -> Result<Descriptor> {
        let index = self.index()?;
        let store = self.store();
        let nested = match index.manifests() {
            [] => bail!("index.json contains no manifests"),
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
            ([], _) => bail!("manifest list contains no entries with available blobs"),
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

fn unreadable(path: &Path, error: StoreError) -> anyhow::Error {
    let shown = path.display();
    match error {
        StoreError::Io { action: "open", .. } => {
            anyhow::anyhow!("failed to open tar {shown}: {error}")
        }
        error => anyhow::anyhow!("failed to extract OCI tar {shown}: {error}"),
    }
}

async fn read_list(store: &dyn ContentStore, nested: &Descriptor) -> Result<ImageIndex> {
    let bytes = store
        .read(&nested.digest, MAX_DOCUMENT_BYTES)
        .await
        .context("read manifest list")?;
    let list = soci_oci::manifest::parse(&bytes, &nested.media_type);
    list.context("unmarshal manifest list")
}
