//! Images on disk: an OCI layout in a folder or an uncompressed tar, and which of its manifests is
//! meant.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::store::archive::Archive;
use soci_oci::store::layout::{INDEX_NAME, Layout, read_root_file};
use soci_oci::store::{Content, ContentStore, StoreError, errno};
use soci_oci::{Descriptor, ImageIndex, json, media_type};

/// An image that is only read.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    pub(crate) layout: Either,
}

/// The two forms of a layout.
#[derive(Debug)]
pub(crate) enum Either {
    Folder(Layout),
    Archive(Archive),
}

impl Source {
    /// Opens a folder or an archive; nothing is copied.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let metadata = std::fs::metadata(path).map_err(|error| {
            anyhow::anyhow!(
                "failed to access input {shown}: stat {shown}: {}",
                errno(&error)
            )
        })?;
        let layout = if metadata.is_dir() {
            Either::Folder(Layout::at(path))
        } else {
            Either::Archive(Archive::open(path).map_err(|error| match error {
                StoreError::Io { action: "open", .. } => {
                    anyhow::anyhow!("failed to open tar {shown}: {error}")
                }
                error => anyhow::anyhow!("failed to extract OCI tar {shown}: {error}"),
            })?)
        };
        Ok(Self {
            path: path.to_owned(),
            layout,
        })
    }

    /// The blobs.
    pub(crate) fn store(&self) -> Arc<dyn ContentStore> {
        match &self.layout {
            Either::Folder(layout) => Arc::new(layout.clone()),
            Either::Archive(archive) => Arc::new(archive.clone()),
        }
    }

    /// `index.json`, as it stands.
    pub(crate) fn index_json(&self) -> Result<Bytes> {
        let bytes = match &self.layout {
            Either::Folder(layout) => read_root_file(layout.root(), INDEX_NAME, MAX_DOCUMENT_BYTES),
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
        };
        bytes.with_context(|| format!("failed to read index.json from {}", self.path.display()))
    }

    /// The manifest or index to convert. Members whose blobs are not there are left out; where that
    /// makes another index, it is put into `work`.
    pub(crate) async fn root(&self, work: &dyn ContentStore) -> Result<Descriptor> {
        let bytes = self.index_json()?;
        let index: ImageIndex = json::from_slice(&bytes).context("unmarshal index.json")?;
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

async fn read_list(store: &dyn ContentStore, nested: &Descriptor) -> Result<ImageIndex> {
    let bytes = store
        .read(&nested.digest, MAX_DOCUMENT_BYTES)
        .await
        .context("read manifest list")?;
    let list = soci_oci::manifest::parse(&bytes, &nested.media_type);
    list.context("unmarshal manifest list")
}
