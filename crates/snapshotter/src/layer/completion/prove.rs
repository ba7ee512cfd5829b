//! Verifies that a layer is what its index says: compares the whole tar with the zTOC's entries and
//! computes its digest.
//!
//! Most of the tar is hashed while it is stored. The rest is read from the store when the layer is
//! complete. The part of the stream after the archive is downloaded again if it was not kept.

use std::io;

use soci_oci::Digest;

use super::Completion;
use crate::{
    cpu::{Lane, Lost},
    layer::passing::{STEP, Tar},
    store::proofs::Proof,
    sync::Arc,
};

/// Why a layer could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// Bytes are missing.
    #[error("layer {0} is not complete")]
    Incomplete(Digest),
    /// Its files cannot be read, or do not contain what was written.
    #[error("cannot read layer {layer}")]
    Store {
        /// The layer.
        layer: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The part after the archive cannot be downloaded.
    #[error("cannot download the end of layer {layer}")]
    Fetch {
        /// The layer.
        layer: Digest,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl Completion {
    /// Determines what the whole tar of a complete layer is.
    pub(in crate::layer) async fn find_proof(&self) -> Result<Proof, ProveError> {
        let layer = *self.data.digest();
        if !self.is_complete() {
            return Err(ProveError::Incomplete(layer));
        }
        if self.data.ztoc().is_none() {
            // The digest was verified during the download; see `stream`.
            let diff_id = self.data.files.sources.diff_id;
            return diff_id.map(Proof::Tar).ok_or_else(|| ProveError::Store {
                layer,
                source: io::Error::new(io::ErrorKind::NotFound, "its diff-ID was not recorded"),
            });
        }
        let tar = self.read_rest(self.passing.take()).await?;
        let tar = self.pass_behind(tar).await?;
        let data = Arc::clone(&self.data);
        let job = move || data.ztoc().map(|ztoc| tar.finish(ztoc));
        let proof = self.context.cpu.run(Lane::ComputeLast, job).await?;
        proof.ok_or(ProveError::Incomplete(layer))
    }

    /// Reads the part that was not hashed from the store, one job at a time.
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

    /// Hashes the part of the stream after the archive, either as kept or from spans that are
    /// downloaded again.
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
                let ztoc = data.ztoc().ok_or("the layer has no zTOC")?;
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

    /// Every byte is stored but a header does not match: records that the layer is not what its
    /// index says.
    pub(super) async fn prove_false(&self) {
        let (layer, image) = (self.data.digest(), self.data.image());
        tracing::error!(layer = %layer, image = &*image, "the layer is fully downloaded but does not match its index; running containers can still read it, and no new container starts from it");
        let why = self.trouble.last_error();
        let why = why.unwrap_or_else(|| "a tar header does not match the zTOC".to_owned());
        if let Err(lost) = self.note_proof(Proof::False(why.into())).await {
            tracing::error!(layer = %layer, error = %lost, "cannot record the result of verifying a layer");
        }
    }

    /// Permanently records what the layer is.
    pub(in crate::layer) async fn note_proof(&self, proof: Proof) -> Result<(), Lost> {
        let (store, key) = (Arc::clone(&self.context.store), self.data.files.key);
        let job = move || store.proofs().add(key, &proof);
        if let Err(error) = self.context.cpu.run(Lane::FilesBehind, job).await? {
            tracing::warn!(layer = %key.layer, error = %error, "cannot record the result of verifying a layer; it is verified again after a restart");
        }
        Ok(())
    }
}
