//! Two stores as one: what is there already below, what is new on top.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Blob, Content, ContentStore, Labels, Put, StoreError};
use crate::descriptor::Descriptor;
use crate::digest::Digest;

/// Reads from the upper store first, then from the lower; writes to the upper only. New blobs go
/// beside an input that stays as it is.
#[derive(Debug, Clone)]
pub struct Stacked {
    /// Takes what is new.
    pub upper: Arc<dyn ContentStore>,
    /// Is only read.
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
        match self.lower.size(&descriptor.digest).await? {
            Some(size) if size == descriptor.size => Ok(Put::AlreadyThere),
            _ => self.upper.put(descriptor, content).await,
        }
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
