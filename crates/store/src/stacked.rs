//! Combines two stores: existing blobs in the lower one, new blobs in the upper one.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Blob, Content, ContentStore, Labels, Put, StoreError, blocking, is_blob};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;

/// Reads from the upper store first, then from the lower one. Writes only to the upper one, so that
/// the input stays unchanged.
#[derive(Debug, Clone)]
pub struct Stacked {
    /// Receives new blobs.
    pub upper: Arc<dyn ContentStore>,
    /// Read-only.
    pub lower: Arc<dyn ContentStore>,
}

#[async_trait]
impl ContentStore for Stacked {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match self.upper.size(digest).await? {
            Some(size) => Ok(Some(size)),
            None => self.lower.size(digest).await,
        }
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        match self.upper.open(digest).await {
            Err(error) if error.is_not_found() => self.lower.open(digest).await,
            other => other,
        }
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        // If the lower store's copy is damaged, store the blob in the upper one, which is read
        // first.
        let is_there = match self.lower.open(&descriptor.digest).await {
            Ok(blob) => is_right(blob, descriptor.clone()).await,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error),
        };
        if is_there {
            return Ok(Put::AlreadyThere);
        }
        self.upper.put(descriptor, content).await
    }

    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError> {
        self.upper.label(digest, labels).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        self.upper.delete(digest).await
    }

    fn distrust(&self, digest: &Digest) -> bool {
        self.upper.distrust(digest) || self.lower.distrust(digest)
    }

    async fn repositories(&self, digest: &Digest, host: &str) -> Result<Vec<String>, StoreError> {
        let mut known = self.upper.repositories(digest, host).await?;
        known.extend(self.lower.repositories(digest, host).await?);
        Ok(known)
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        match self.upper.read_range(digest, range.clone()).await {
            Err(error) if error.is_not_found() => self.lower.read_range(digest, range).await,
            other => other,
        }
    }
}

async fn is_right(blob: Blob, descriptor: Descriptor) -> bool {
    blocking(move || is_blob(blob.reader, &descriptor)).await
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layout::Layout;

    #[tokio::test]
    async fn what_is_damaged_below_is_put_on_top() {
        let folder = tempfile::tempdir().unwrap();
        let layout = |name| Layout::create(folder.path().join(name)).unwrap();
        let (upper, lower) = (layout("upper"), layout("lower"));
        let store = Stacked {
            upper: Arc::new(upper.clone()),
            lower: Arc::new(lower.clone()),
        };
        let blob = Descriptor::of("t", b"hello");
        let content = || Content::Bytes(Bytes::from_static(b"hello"));
        lower.put(&blob, content()).await.unwrap();
        assert_eq!(
            store.put(&blob, content()).await.unwrap(),
            Put::AlreadyThere
        );
        let path = lower.blob_path(&blob.digest);
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"hellO").unwrap();
        assert_eq!(store.put(&blob, content()).await.unwrap(), Put::Stored);
        assert_eq!(store.read(&blob.digest, 5).await.unwrap(), "hello");
    }
}
