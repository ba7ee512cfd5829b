//! Is a layer what its index says? Its whole tar against the zTOC's entries, and the tar's digest.
//!
//! Most of it was hashed while it passed; the rest is read from the store when the layer is complete, and what was not
//! kept of the stream behind the archive is fetched again.

use std::io;

use soci_oci::Digest;

use super::Completion;
use crate::{
    cpu::{Lane, Lost},
    layer::passing::{STEP, Tar},
    store::proofs::Proof,
    sync::Arc,
};

/// Why it is not known yet what a layer is.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// Bytes are missing.
    #[error("layer {0} is not complete")]
    Incomplete(Digest),
    /// Its files cannot be read, or are not what was written.
    #[error("read layer {layer}")]
    Store {
        /// The layer.
        layer: Digest,
        /// The system's account.
        #[source]
        source: io::Error,
    },
    /// What is behind its archive does not come.
    #[error("the end of layer {layer} cannot be fetched")]
    Fetch {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl Completion {
    /// What the whole tar of the layer is, which must be complete.
    pub(in crate::layer) async fn find_proof(&self) -> Result<Proof, ProveError> {
        let layer = *self.data.digest();
        if !self.is_complete() {
            return Err(ProveError::Incomplete(layer));
        }
        if self.data.ztoc().is_none() {
            // Checked while it was pulled; see `stream`.
            let diff_id = self.data.files.sources.diff_id;
            return diff_id.map(Proof::Tar).ok_or_else(|| ProveError::Store {
                layer,
                source: io::Error::new(io::ErrorKind::NotFound, "its diff-ID was not noted"),
            });
        }
        let tar = self.read_rest(self.passing.take()).await?;
        let tar = self.pass_behind(tar).await?;
        let data = Arc::clone(&self.data);
        let job = move || data.ztoc().map(|ztoc| tar.finish(ztoc));
        let proof = self.context.cpu.run(Lane::ComputeLast, job).await?;
        proof.ok_or(ProveError::Incomplete(layer))
    }

    /// Reads what did not pass from the store, job by job.
    async fn read_rest(&self, mut tar: Box<Tar>) -> Result<Box<Tar>, ProveError> {
        let layer = *self.data.digest();
        loop {
            let data = Arc::clone(&self.data);
            let job = move || {
                let ztoc = data.ztoc().ok_or(io::ErrorKind::NotFound)?;
                let done = tar.read_on(&data, ztoc, STEP)?;
                Ok((done, tar))
            };
            let read = self.context.cpu.run(Lane::ComputeLast, job).await?;
            let (done, next) = read.map_err(|source| ProveError::Store { layer, source })?;
            if done {
                return Ok(next);
            }
            if !self.is_complete() || self.spans.is_closed() {
                return Err(ProveError::Incomplete(layer));
            }
            tar = next;
        }
    }

    /// Passes what the stream has behind the archive: as it was kept, or of spans that are fetched again.
    async fn pass_behind(&self, mut tar: Box<Tar>) -> Result<Box<Tar>, ProveError> {
        let Some(ztoc) = self.data.ztoc() else {
            return Ok(tar);
        };
        if let Some(kept) = self.passing.take_behind() {
            tar.push(ztoc, &kept);
            return Ok(tar);
        }
        let spans = ztoc.spans();
        for span in spans.ids().filter(|span| spans.is_cut(*span)) {
            let delivery = self.spans.fetch_again(span);
            let delivery = delivery.await.map_err(|error| self.unfetched(error))?;
            let data = Arc::clone(&self.data);
            let job = move || {
                let ztoc = data.ztoc().ok_or("it has no zTOC")?;
                tar.push_behind(ztoc, span, &delivery.bytes)
                    .map_err(|error| error.to_string())?;
                Ok::<_, String>(tar)
            };
            let passed = self.context.cpu.run(Lane::ComputeLast, job).await?;
            tar = passed.map_err(|error| self.unfetched(error))?;
        }
        Ok(tar)
    }

    fn unfetched(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ProveError {
        ProveError::Fetch {
            layer: *self.data.digest(),
            source: error.into(),
        }
    }

    /// Every byte is there, and a header disagrees: notes that the layer is not what its index says.
    pub(super) async fn prove_false(&self) {
        let (layer, image) = (self.data.digest(), self.data.image());
        tracing::error!(layer = %layer, image = &*image, "every byte is there, but the layer is not what its index says; it stays on the device, and no container is started from it");
        let why = self.trouble.last_error();
        let why = why.unwrap_or_else(|| "a tar header disagrees with the zTOC".to_owned());
        if let Err(lost) = self.note_proof(Proof::False(why.into())).await {
            tracing::error!(layer = %layer, error = %lost, "a verdict");
        }
    }

    /// Notes what the layer is, for good.
    pub(in crate::layer) async fn note_proof(&self, proof: Proof) -> Result<(), Lost> {
        let (store, key) = (Arc::clone(&self.context.store), self.data.files.key);
        let job = move || store.proofs().add(key, &proof);
        if let Err(error) = self.context.cpu.run(Lane::FilesBehind, job).await? {
            tracing::warn!(layer = %key.layer, error = %error, "what a layer is was not noted; it is found out again after a restart");
        }
        Ok(())
    }
}
