//! zTOCs that were built on this machine.

use async_trait::async_trait;
use soci_oci::Descriptor;
use soci_store::{Blob, ContentStore, StoreError};
use std::sync::Arc;
use tokio::sync::OnceCell;

use super::{KnownError, ZtocSource};
use crate::artifacts::{Artifacts, ArtifactsError, Entry, Kind};
use crate::model::ZTOC_MEDIA_TYPE;

/// Returns recorded zTOCs that are still in a store. zTOCs that are missing from this store are not
/// candidates. Neither are those that a rebuild found, because anyone may have built them.
#[derive(Debug)]
pub struct RecordedZtocs {
    records: Artifacts,
    store: Arc<dyn ContentStore>,
    /// Read once, in ascending order of digest.
    entries: OnceCell<Vec<Entry>>,
}

impl RecordedZtocs {
    /// Uses these records and this store.
    #[must_use]
    pub fn new(records: Artifacts, store: Arc<dyn ContentStore>) -> Self {
        Self {
            records,
            store,
            entries: OnceCell::new(),
        }
    }

    /// Reads the records once. Call it to check that they are readable.
    pub async fn load(&self) -> Result<&[Entry], ArtifactsError> {
        let read = || async {
            let records = self.records.clone();
            let all = tokio::task::spawn_blocking(move || records.all()).await;
            // The task is never aborted, so this is a panic: propagate it.
            all.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        };
        self.entries.get_or_try_init(read).await.map(Vec::as_slice)
    }
}

#[async_trait]
impl ZtocSource for RecordedZtocs {
    async fn candidates(
        &self,
        layer: &Descriptor,
        span_size: u64,
    ) -> Result<Vec<Descriptor>, KnownError> {
        let layer = layer.digest.to_string();
        let is_of_layer = |entry: &&Entry| {
            entry.kind == Kind::Layer
                && !entry.is_found
                && entry.media_type == ZTOC_MEDIA_TYPE
                && entry.oci_digest == layer
                && entry.span_size == span_size
        };
        let entries = self.load().await?.iter().filter(is_of_layer);
        let ztoc = |entry: &Entry| Descriptor::new(ZTOC_MEDIA_TYPE, entry.digest, entry.size);
        Ok(entries.map(ztoc).collect())
    }

    async fn open(&self, ztoc: &Descriptor) -> Result<Blob, StoreError> {
        self.store.open(&ztoc.digest).await
    }
}
