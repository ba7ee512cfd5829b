//! What the documents of one image may cost.

use super::StoreError;
use crate::digest::Digest;

/// Indexes within indexes beyond this depth are not followed.
pub const MAX_DEPTH: usize = 8;

/// Bytes of manifests and indexes of one image that are held in memory together: a hundred times what the
/// largest images of many platforms have.
pub const MAX_IMAGE_DOCUMENTS: u64 = 64 << 20;

/// Counts the documents of an image that are in memory together.
#[derive(Debug)]
pub struct DocumentBudget {
    image: Digest,
    left: u64,
}

impl DocumentBudget {
    /// For the image with this root; nothing is counted yet.
    #[must_use]
    pub fn new(image: Digest) -> Self {
        Self {
            image,
            left: MAX_IMAGE_DOCUMENTS,
        }
    }

    /// Counts a document of so many bytes.
    ///
    /// # Errors
    /// [`StoreError::TooManyDocuments`] where all documents together are too large.
    pub fn take(&mut self, bytes: u64) -> Result<(), StoreError> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or(StoreError::TooManyDocuments {
            image: self.image,
            limit: MAX_IMAGE_DOCUMENTS,
        })?;
        Ok(())
    }
}
