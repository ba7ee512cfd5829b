//! What the tars of layers are: found out once, one layer at a time.

use super::Layers;
use crate::{
    cpu::Lost,
    layer::{Layer, ProveError},
    store::proofs::Proof,
    sync::Arc,
};

impl Layers {
    /// What the whole tar of a complete layer is: as the table knows it, or found out and noted there. One layer at a time.
    ///
    /// # Errors
    /// [`ProveError`]: it may be asked again.
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

    /// Notes the tar of a layer that was pulled whole: both its digests were checked on the way.
    pub(super) async fn prove_whole(&self, layer: &Layer) -> Result<(), Lost> {
        match layer.data.files.sources.diff_id {
            Some(diff_id) => layer.completion.note_proof(Proof::Tar(diff_id)).await,
            None => Ok(()),
        }
    }
}
