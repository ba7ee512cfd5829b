//! Limits on the documents of one image.

use super::StoreError;
use soci_oci::digest::Digest;

/// Indexes nested deeper than this are not followed. Published images have at most two levels.
pub const MAX_DEPTH: usize = 8;

/// Total size in bytes of the manifests and indexes of one image that are held in memory together:
/// a hundred times the total of the largest multi-platform images.
pub const MAX_IMAGE_DOCUMENTS: u64 = 64 << 20;

/// Tracks the total size of an image's documents in memory.
#[derive(Debug)]
pub struct DocumentBudget {
    image: Digest,
    limit: u64,
    left: u64,
}

impl DocumentBudget {
    /// Creates the budget of [`MAX_IMAGE_DOCUMENTS`] for the image with this root.
    #[must_use]
    pub fn new(image: Digest) -> Self {
        Self::with_limit(image, MAX_IMAGE_DOCUMENTS)
    }

    /// Creates a budget of `limit` bytes.
    pub(crate) fn with_limit(image: Digest, limit: u64) -> Self {
        Self {
            image,
            limit,
            left: limit,
        }
    }

    /// Adds a document of this size in bytes.
    ///
    /// # Errors
    /// [`StoreError::TooManyDocuments`] if the total exceeds the limit.
    pub fn take(&mut self, bytes: u64) -> Result<(), StoreError> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or(StoreError::TooManyDocuments {
            image: self.image,
            limit: self.limit,
        })?;
        Ok(())
    }
}
