//! How a layer gets into the list: found open, in the store, made from a zTOC, or pulled whole.
//!
//! What is there under another zTOC, or was pulled whole, serves too, but only when its whole tar was found to be the one
//! that is asked for: a zTOC says of itself which bytes are right.

use bytes::Bytes;
use soci_oci::{Descriptor, Digest};
use soci_ztoc::Compression;

use super::Layers;
use crate::{
    cpu::{Lane, Lost},
    fetch::Source,
    layer::{Expected, Layer, stream},
    store::{LayerKey, StoreError, proofs::Proof, sources::Origin},
    sync::Arc,
};

/// A layer with a zTOC, to be opened before its bytes are here.
#[derive(Debug)]
pub struct Lazy {
    /// The layer, as the manifest names it.
    pub layer: Descriptor,
    /// Its zTOC.
    pub ztoc: Descriptor,
    /// The zTOC's bytes; checked against the descriptor. Not needed if the store has the layer.
    pub bytes: Option<Bytes>,
    /// What its tar must be.
    pub expected: Expected,
    /// Who names it.
    pub origin: Origin,
    /// Where its bytes can be had.
    pub source: Source,
}

/// A layer without a zTOC, to be pulled whole.
#[derive(Debug)]
pub struct Whole {
    /// The layer, as the manifest names it.
    pub layer: Descriptor,
    /// SHA-256 of its tar, as the image's configuration names it.
    pub diff_id: Digest,
    /// How it is compressed.
    pub compression: Compression,
    /// Who names it.
    pub origin: Origin,
    /// Where its bytes can be had.
    pub sources: Vec<Source>,
}

/// Why a layer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was not in the store and the zTOC's bytes were not brought.
    #[error("layer {0} is not in the store")]
    Absent(Digest),
    /// Pulling it whole went wrong.
    #[error(transparent)]
    Stream(#[from] stream::StreamError),
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl Layers {
    /// A layer that can be read before its bytes are here: found open, in the store, or made from the zTOC's bytes.
    ///
    /// # Errors
    /// A zTOC that is not its descriptor's, malformed or not servable; the system's.
    pub async fn open_lazy(&self, lazy: Lazy) -> Result<Arc<Layer>, OpenError> {
        let Lazy {
            layer,
            ztoc,
            bytes,
            expected,
            origin,
            source,
        } = lazy;
        let exact = LayerKey {
            layer: layer.digest,
            ztoc: Some(ztoc.digest),
        };
        if let Some(complete) = self.proven_form(&exact, &expected).await? {
            complete.add_source(source);
            self.name(&complete, origin).await;
            return Ok(complete);
        }
        let cell = self.cell(exact);
        let _tidy = self.tidy(exact);
        let opened = cell.get_or_try_init(|| async {
            if let Some(found) = self.find_stored(exact).await? {
                return Ok(found);
            }
            let bytes = bytes.ok_or(OpenError::Absent(layer.digest))?;
            let (store, origin) = (Arc::clone(&self.context.store), origin.clone());
            let make = move || store.create_lazy(&layer, &ztoc, bytes, origin);
            let files = self.context.cpu.run(Lane::Files, make).await??;
            Ok::<_, OpenError>(Layer::new(&self.context, files))
        });
        let opened = Arc::clone(opened.await?);
        opened.add_source(source);
        self.name(&opened, origin).await;
        Ok(opened)
    }

    /// A layer that the store has, in any state of completeness, without anybody's help.
    ///
    /// # Errors
    /// The system's.
    pub async fn open_present(&self, key: &LayerKey) -> Result<Option<Arc<Layer>>, OpenError> {
        if self.context.store.number(key).is_none() {
            return Ok(self.get(key));
        }
        let cell = self.cell(*key);
        let _tidy = self.tidy(*key);
        let opened = cell.get_or_try_init(|| async {
            self.find_stored(*key)
                .await?
                .ok_or(OpenError::Absent(key.layer))
        });
        match opened.await {
            Ok(layer) => Ok(Some(Arc::clone(layer))),
            Err(OpenError::Absent(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pulls a layer whole: one ordered pass, both digests checked before anything is visible.
    ///
    /// # Errors
    /// A digest that is not the one, a tar that cannot be a layer, bytes that do not come; the system's. Nothing is left
    /// behind.
    pub async fn stream_whole(&self, whole: Whole) -> Result<Arc<Layer>, OpenError> {
        let key = LayerKey {
            layer: whole.layer.digest,
            ztoc: None,
        };
        let expected = Expected::DiffId(whole.diff_id);
        if let Some(complete) = self.proven_form(&key, &expected).await? {
            self.name(&complete, whole.origin).await;
            return Ok(complete);
        }
        let origin = whole.origin.clone();
        let cell = self.cell(key);
        let _tidy = self.tidy(key);
        let opened = cell.get_or_try_init(|| async {
            if let Some(found) = self.find_stored(key).await? {
                return Ok(found);
            }
            let files = stream::pull(&self.context, whole).await?;
            Ok::<_, OpenError>(Layer::new(&self.context, files))
        });
        let opened = Arc::clone(opened.await?);
        self.prove_whole(&opened).await?;
        self.name(&opened, origin).await;
        Ok(opened)
    }

    async fn find_stored(&self, key: LayerKey) -> Result<Option<Arc<Layer>>, OpenError> {
        let store = Arc::clone(&self.context.store);
        let opened = self.context.cpu.run(Lane::Files, move || {
            let opened = store.open_layer(&key);
            match &opened {
                Err(error @ StoreError::Damaged { .. }) => {
                    let error = error as &dyn std::error::Error;
                    tracing::warn!(error, "removing a damaged layer");
                    store
                        .forget(&key)
                        .map_or(Ok(()), |number| store.delete(number))?;
                    Ok(None)
                }
                Err(error) if error.is_lasting() => {
                    store.set_aside(&key, error);
                    Ok(None)
                }
                _ => opened,
            }
        });
        let files = opened.await??;
        Ok(files.map(|files| Layer::new(&self.context, files)))
    }

    /// Another form of the same layer that is complete, and whose tar is the one that is asked for.
    async fn proven_form(
        &self,
        key: &LayerKey,
        expected: &Expected,
    ) -> Result<Option<Arc<Layer>>, OpenError> {
        let proofs = self.context.store.proofs();
        let is_right = |form: &LayerKey| match proofs.get(form) {
            Some(Proof::Tar(tar)) => expected.is(&tar) == Some(true),
            Some(Proof::False(_)) | None => false,
        };
        let mut forms = self.context.store.find(&key.layer);
        forms.retain(|form| form != key && is_right(form));
        for form in forms {
            let layer = self.open_present(&form).await?;
            if let Some(layer) = layer.filter(|layer| layer.is_complete()) {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    /// Notes who names a layer.
    async fn name(&self, layer: &Arc<Layer>, origin: Origin) {
        if !layer.named.add_origin(origin) {
            return;
        }
        let writer = Arc::clone(layer);
        // Until what was written last is what is known: two jobs may write at once.
        let write = move || loop {
            let record = writer.record();
            writer.data.files.write_sources(&record)?;
            if writer.record() == record {
                return Ok::<_, std::io::Error>(());
            }
        };
        let written = self.context.cpu.run(Lane::Files, write).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(layer = %layer.digest(), "who names the layer is not noted");
        }
    }
}
