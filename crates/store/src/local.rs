//! The content store `soci`: an OCI layout in the state directory, compatible with the reference.
//!
//! Both programs can use the same directory. The reference reads `index.json` at startup to find
//! the manifests, so every stored manifest is listed there; zTOCs and configurations are not.
//! Nothing is ever removed. A lock on the directory serializes changes to `index.json`.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;

use super::layout::{INDEX_NAME, Layout, read_root_file};
use super::{Blob, Content, ContentStore, Labels, Put, StoreError, blocking};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::ImageIndex;
use soci_oci::{json, media_type};

/// Maximum size of `index.json` in bytes: enough for several hundred thousand manifests.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The content store in a state directory.
#[derive(Debug, Clone)]
pub struct LocalStore {
    layout: Layout,
}

impl LocalStore {
    /// Returns the store `content` in a state directory. Does not access the disk until a blob is
    /// stored.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            layout: Layout::at(root.join("content")),
        }
    }

    /// The layout that contains the blobs.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn store(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        Layout::create(self.layout.root())?;
        let put = self.layout.store(descriptor, content)?;
        let kind = descriptor.media_type.as_str();
        if media_type::is_manifest(kind) || media_type::is_index(kind) {
            self.enlist(descriptor)?;
        }
        Ok(put)
    }

    /// Adds a manifest to `index.json` unless it is already listed.
    fn enlist(&self, descriptor: &Descriptor) -> Result<(), StoreError> {
        let root = self.layout.root();
        let folder = File::open(root).map_err(StoreError::io("open", root))?;
        folder.lock().map_err(StoreError::io("lock", root))?;
        let mut index = self.index()?;
        let listed = index.manifests.get_or_insert_default();
        if listed.iter().any(|known| known.digest == descriptor.digest) {
            return Ok(());
        }
        listed.push(Descriptor {
            artifact_type: descriptor.artifact_type.clone(),
            ..Descriptor::new(
                descriptor.media_type.clone(),
                descriptor.digest,
                descriptor.size,
            )
        });
        self.layout.write_index(&json::to_vec(&index))
    }

    fn index(&self) -> Result<ImageIndex, StoreError> {
        let root = self.layout.root();
        let bytes = match read_root_file(root, INDEX_NAME, MAX_INDEX_BYTES) {
            Err(StoreError::Io { cause, .. }) if cause.kind() == ErrorKind::NotFound => {
                return Ok(ImageIndex::new(Vec::new()));
            }
            other => other?,
        };
        json::from_slice(&bytes).map_err(|error| {
            let cause = io::Error::new(ErrorKind::InvalidData, error);
            StoreError::io("decode", &root.join(INDEX_NAME))(cause)
        })
    }
}

#[async_trait]
impl ContentStore for LocalStore {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.layout.size(digest).await
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        self.layout.open(digest).await
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        let (store, descriptor) = (self.clone(), descriptor.clone());
        blocking(move || store.store(&descriptor, content)).await
    }

    async fn label(&self, _: &Digest, _: &Labels) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.layout.list().await
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.layout.read_range(digest, range).await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TYPE: &str = "application/vnd.amazon.soci.index.v1+json";

    fn manifest(bytes: &'static [u8]) -> (Descriptor, Content) {
        let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, bytes);
        descriptor.artifact_type = TYPE.to_owned();
        let annotation = ("org.opencontainers.image.ref.name".into(), "x".into());
        descriptor.annotations = [annotation].into();
        (descriptor, Content::Bytes(Bytes::from_static(bytes)))
    }

    fn index_of(store: &LocalStore) -> String {
        fs::read_to_string(store.layout().root().join(INDEX_NAME)).unwrap()
    }

    #[tokio::test]
    async fn manifests_are_listed_once_and_other_blobs_are_not() {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::at(root.path());
        assert_eq!(store.list().await.unwrap(), []);
        assert!(!store.layout().root().exists());

        let ztoc = Descriptor::of(media_type::OCTET_STREAM, b"ztoc");
        let content = Content::Bytes(Bytes::from_static(b"ztoc"));
        store.put(&ztoc, content).await.unwrap();
        for put in [Put::Stored, Put::AlreadyThere] {
            let (descriptor, content) = manifest(b"{}");
            assert_eq!(store.put(&descriptor, content).await.unwrap(), put);
        }
        let (descriptor, _) = manifest(b"{}");
        assert_eq!(
            index_of(&store),
            format!(
                "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"manifests\":[{{\"mediaType\":\"{}\",\"digest\":\"{}\",\"size\":2,\"artifactType\":\"{TYPE}\"}}]}}",
                media_type::OCI_INDEX,
                media_type::OCI_MANIFEST,
                descriptor.digest
            )
        );
        assert_eq!(store.list().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_folder_of_the_reference_is_used_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::at(root.path());
        let folder = store.layout().root();
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        fs::create_dir(folder.join("ingest")).unwrap();
        fs::write(
            folder.join("oci-layout"),
            "{\"imageLayoutVersion\": \"1.0.0\"}\n",
        )
        .unwrap();
        fs::write(
            folder.join(INDEX_NAME),
            "{\"schemaVersion\":2,\"manifests\":null}",
        )
        .unwrap();
        let (descriptor, content) = manifest(b"{}");
        store.put(&descriptor, content).await.unwrap();
        let index = index_of(&store);
        assert!(
            index.starts_with("{\"schemaVersion\":2,\"manifests\":[{"),
            "{index}"
        );
        let marker = fs::read_to_string(folder.join("oci-layout")).unwrap();
        assert!(marker.ends_with('\n'), "the marker was replaced");
    }

    #[tokio::test]
    async fn a_damaged_index_is_named_and_not_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::at(root.path());
        let folder = store.layout().root();
        fs::create_dir(folder).unwrap();
        fs::write(folder.join(INDEX_NAME), "{").unwrap();
        let (descriptor, content) = manifest(b"{}");
        let error = store.put(&descriptor, content).await.unwrap_err();
        assert!(error.to_string().contains("index.json"), "{error}");
        assert_eq!(index_of(&store), "{");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn writers_at_the_same_time_are_all_listed() {
        let root = tempfile::tempdir().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..16_u8 {
            let store = LocalStore::at(root.path());
            let bytes = Bytes::from(vec![number]);
            let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
            tasks.spawn(async move { store.put(&descriptor, Content::Bytes(bytes)).await });
        }
        for put in tasks.join_all().await {
            assert_eq!(put.unwrap(), Put::Stored);
        }
        let index = LocalStore::at(root.path()).index().unwrap();
        assert_eq!(index.manifests().len(), 16);
    }
}
