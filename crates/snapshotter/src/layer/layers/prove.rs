//! Verifies the tars of layers, once per layer and one layer at a time.

use std::time::Duration;

use super::Layers;
use crate::{
    cpu::Lost,
    layer::{Layer, ProveError},
    store::proofs::Proof,
    sync::Arc,
};

/// A program that reads nothing missing for this long has probably started, or computes.
const START_PAUSE: Duration = Duration::from_secs(1);

impl Layers {
    /// The verified identity of the whole tar of a complete layer. Uses the recorded result, or
    /// verifies and records it. One layer at a time.
    ///
    /// # Errors
    /// [`ProveError`]. The caller may try again.
    pub async fn prove(&self, layer: &Arc<Layer>) -> Result<Proof, ProveError> {
        let key = layer.key();
        let proofs = || self.context.store.proofs();
        if let Some(known) = proofs().get(&key) {
            return Ok(known);
        }
        let turn = self.context.proving.acquire().await;
        let proof = layer.completion.find_proof().await?;
        drop(turn);
        layer.completion.note_proof(proof.clone()).await?;
        Ok(proof)
    }

    /// Whether a program seems to start: it waited for bytes a moment ago. Proving a layer takes CPU
    /// time and memory bandwidth from it.
    pub fn sees_a_start(&self) -> bool {
        self.context.fetch.was_urgent(START_PAUSE)
    }

    /// Records the tar of a layer that was downloaded whole. Both digests were verified during the
    /// download.
    pub(super) async fn prove_whole(&self, layer: &Layer) -> Result<(), Lost> {
        match layer.data.files.sources.diff_id {
            Some(diff_id) => layer.completion.note_proof(Proof::Tar(diff_id)).await,
            None => Ok(()),
        }
    }
}
