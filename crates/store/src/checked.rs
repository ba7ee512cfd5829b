//! A store that verifies what another store returns.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Blob, Content, ContentStore, Labels, Put, StoreError};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;

/// A store whose content may be wrong. Blobs that are not in `trusted` are verified while they are
/// read to their end.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The underlying store.
    pub store: Arc<dyn ContentStore>,
    /// Blobs that an earlier read has verified.
    pub trusted: Arc<HashSet<Digest>>,
}

#[async_trait]
impl ContentStore for Checked {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.store.size(digest).await
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let blob = self.store.open(digest).await?;
        if self.trusted.contains(digest) {
            return Ok(blob);
        }
        let size = blob.size;
        let reader = blob.verified(&Descriptor::new("", *digest, size))?;
        Ok(Blob {
            size,
            reader: Box::new(reader),
        })
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        self.store.put(descriptor, content).await
    }

    fn distrust(&self, digest: &Digest) -> bool {
        self.store.distrust(digest)
    }

    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError> {
        self.store.label(digest, labels).await
    }
}
