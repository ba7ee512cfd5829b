//! The end of a download: what becomes a layer once both digests match.

use soci_oci::{Digest, Verifier};

use super::{Keep, StreamError, Unpack, decoding::Decompressed, turns::Turn};
use crate::{
    cpu::Lane,
    layer::Context,
    store::{Draft, LayerFiles, LayerKey, LayerStore, proofs::Proof, sources::Sources},
    sync::Arc,
};

/// What the stages leave.
pub(super) struct Pass {
    pub(super) layer: Digest,
    pub(super) compressed: Verifier,
    pub(super) decompressed: Decompressed,
    pub(super) tar: Verifier,
    pub(super) unpack: Unpack,
}

/// A layer whose bytes match both digests.
pub(super) struct Verified {
    draft: Draft,
    /// The table of places.
    table: Vec<u8>,
    sources: Sources,
}

/// A layer that is verified and not yet in the store.
pub(in crate::layer) struct Ready {
    pub(super) verified: Verified,
    pub(super) turn: Turn,
    pub(super) kept: Option<Keep>,
}

impl Verified {
    /// Verifies both digests, and writes the zTOC if one was made. Blocks on the disk.
    pub(super) fn new(
        store: &LayerStore,
        pass: Pass,
        mut sources: Sources,
    ) -> Result<Verified, StreamError> {
        let layer = || Box::new(pass.layer);
        let compressed = pass.compressed.finish();
        compressed.map_err(|source| StreamError::Layer {
            layer: layer(),
            source: Box::new(source),
        })?;
        let index = pass
            .decompressed
            .map_err(|source| StreamError::Decompress {
                layer: layer(),
                source,
            })?;
        let tar = pass.tar.finish();
        tar.map_err(|source| StreamError::DiffId {
            layer: layer(),
            source: Box::new(source),
        })?;
        let (draft, table) = pass.unpack.finish()?;
        if let Some(index) = index {
            let indexed = store.index(&draft, &sources.layer, *index, &table);
            sources.ztoc = indexed.unwrap_or_else(|error| {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(layer = %pass.layer, error, "no zTOC can be kept for the layer");
                None
            });
        }
        Ok(Verified {
            draft,
            table,
            sources,
        })
    }

    fn store(self, store: &LayerStore) -> Result<LayerFiles, StreamError> {
        let key = self.key();
        // The digest of a zTOC determines every byte, so this holds whatever becomes of the layer.
        if let (Some(_), Some(diff_id)) = (key.ztoc, self.sources.diff_id)
            && let Err(error) = store.proofs().add(key, &Proof::Tar(diff_id))
        {
            tracing::warn!(layer = %key.layer, error = %error, "cannot record the result of verifying a layer; it is verified again after a restart");
        }
        Ok(store.finish_whole(self.draft, self.sources, &self.table)?)
    }

    fn key(&self) -> LayerKey {
        LayerKey {
            layer: self.sources.layer.digest,
            ztoc: self.sources.ztoc.as_ref().map(|ztoc| ztoc.digest),
        }
    }
}

impl Ready {
    /// The identity of the layer. It has a zTOC if one was made.
    pub(in crate::layer) fn key(&self) -> LayerKey {
        self.verified.key()
    }

    /// Makes the layer durable and visible.
    ///
    /// # Errors
    /// The system's. All files are removed on error.
    pub(in crate::layer) async fn store(
        self,
        context: &Context,
    ) -> Result<LayerFiles, StreamError> {
        let Ready {
            verified,
            turn,
            kept,
        } = self;
        let store = Arc::clone(&context.store);
        let finish = move || verified.store(&store);
        let files = context.cpu.run(Lane::Files, finish).await??;
        drop(turn);
        if let Some(kept) = kept {
            kept.commit().await;
        }
        Ok(files)
    }
}
