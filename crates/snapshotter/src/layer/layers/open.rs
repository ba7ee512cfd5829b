//! Opens layers: finds an open one, opens one from the store, creates one from a zTOC, or downloads
//! one whole.
//!
//! A layer that is stored with another zTOC, or whole, is used as well, but only if its whole tar
//! has been verified to be the requested one. A zTOC alone only states which bytes are right.

use bytes::Bytes;
use soci_oci::{Descriptor, Digest};
use soci_store::containerd::Containerd;

use super::Layers;
use crate::{
    cpu::{Lane, Lost},
    fetch::Source,
    layer::{Expected, Layer, stream},
    metrics::{self, LayerEvent},
    store::{LayerKey, StoreError, proofs::Proof, sources::Origin},
    sync::Arc,
};

/// A layer with a zTOC, to be opened before it is downloaded.
#[derive(Debug)]
pub struct Lazy {
    /// The descriptor of the layer in its manifest.
    pub layer: Descriptor,
    /// The descriptor of its zTOC.
    pub ztoc: Descriptor,
    /// The bytes of the zTOC. They are checked against the descriptor. Not needed if the store has
    /// the layer.
    pub bytes: Option<Bytes>,
    /// What its tar must be.
    pub expected: Expected,
    /// The image that names it.
    pub origin: Origin,
    /// Where to download it.
    pub source: Source,
}

/// A layer without a zTOC, to be downloaded whole.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The descriptor of the layer in its manifest.
    pub layer: Descriptor,
    /// SHA-256 of its tar, as listed in the image configuration.
    pub diff_id: Digest,
    /// Its position in the image. Of the layers that wait, the lowest is downloaded first.
    pub order: u64,
    /// The image that names it.
    pub origin: Origin,
    /// Where to download it.
    pub sources: Vec<Source>,
    /// Where to keep its compressed bytes. A failure to keep them is only logged.
    pub keep: Option<Containerd>,
}

/// Why a layer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its files cannot be created or opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not in the store and the caller did not supply the zTOC.
    #[error("layer {0} is not in the store")]
    Absent(Digest),
    /// Downloading it whole failed.
    #[error(transparent)]
    Stream(#[from] stream::StreamError),
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl Layers {
    /// Opens a layer that can be read before it is downloaded: from the open layers, from the
    /// store, or from the zTOC.
    ///
    /// # Errors
    /// A zTOC that does not match its descriptor, is malformed, or cannot be served; the system's.
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
        let resolved = |event| metrics::global().operations.event(event, &layer.digest);
        let is_complete = |form: &Layer| form.is_complete();
        if let Some(complete) = self.proven_form(&exact, &expected, is_complete).await? {
            resolved(LayerEvent::ResolveHit);
            complete.add_source(source);
            self.name(&complete, origin).await;
            return Ok(complete);
        }
        let cell = self.cell(exact);
        resolved(match cell.initialized() {
            true => LayerEvent::ResolveHit,
            false => LayerEvent::ResolveMiss,
        });
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

    /// Opens a layer from the store, complete or not, without a zTOC or source from the caller.
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

    /// Downloads a layer whole, in one sequential pass. Nothing is visible before both digests are
    /// verified. A layer that was downloaded so before is used as it is, even if spans of it were
    /// evicted: a zTOC of our own makes them available again.
    ///
    /// # Errors
    /// A wrong digest, a tar that cannot be a layer, a failed download; the system's. All files are
    /// removed on error.
    pub async fn stream_whole(&self, whole: Whole) -> Result<Arc<Layer>, OpenError> {
        let key = LayerKey {
            layer: whole.layer.digest,
            ztoc: None,
        };
        let expected = Expected::DiffId(whole.diff_id);
        let is_usable = |form: &Layer| form.is_complete() || form.was_whole();
        if let Some(form) = self.proven_form(&key, &expected, is_usable).await? {
            whole.sources.into_iter().for_each(|it| form.add_source(it));
            self.name(&form, whole.origin).await;
            return Ok(form);
        }
        let (origin, diff_id) = (whole.origin.clone(), whole.diff_id);
        let cell = self.cell(key);
        let _tidy = self.tidy(key);
        let opened = cell.get_or_try_init(|| async {
            match self.find_stored(key).await? {
                Some(found) => Ok(found),
                None => self.download(whole).await,
            }
        });
        let opened = Arc::clone(opened.await?);
        if opened.key() == key {
            self.prove_whole(&opened).await?;
        } else if self.context.store.proofs().get(&opened.key()).is_none() {
            // The image's zTOC is equal to our own one, and the layer was lazy until now.
            let proof = Proof::Tar(diff_id);
            opened.completion.note_proof(proof).await?;
        }
        self.name(&opened, origin).await;
        Ok(opened)
    }

    /// Downloads a layer whole. A layer that was indexed in passing is also open under its own key.
    async fn download(&self, whole: Whole) -> Result<Arc<Layer>, OpenError> {
        let sources = whole.sources.clone();
        let ready = stream::pull_from_any(&self.context, whole).await?;
        let key = ready.key();
        if key.ztoc.is_none() {
            return self.store_whole(ready).await;
        }
        // Nobody else opens the layer in between.
        let cell = self.cell(key);
        let _tidy = self.tidy(key);
        let opened = cell.get_or_try_init(|| async {
            if let Some(found) = self.find_stored(key).await? {
                return Ok(found);
            }
            let layer = self.store_whole(ready).await?;
            let of = Arc::clone(&layer.completion);
            let finish = move || of.finish_at_once();
            // The lane of everything that completes layers or takes spans out.
            let finished = self.context.cpu.run(Lane::FilesBehind, finish).await?;
            if !matches!(finished, Ok(true)) {
                tracing::warn!(layer = %key.layer, "a layer that was downloaded is completed later; check the disk of the state root");
            }
            Ok::<_, OpenError>(layer)
        });
        let opened = Arc::clone(opened.await?);
        sources.into_iter().for_each(|it| opened.add_source(it));
        Ok(opened)
    }

    async fn store_whole(&self, ready: stream::Ready) -> Result<Arc<Layer>, OpenError> {
        let files = ready.store(&self.context).await?;
        let tally = self.context.tallies.of(files.number);
        tally.background.add_bytes(files.sources.layer.size);
        Ok(Layer::new(&self.context, files))
    }

    async fn find_stored(&self, key: LayerKey) -> Result<Option<Arc<Layer>>, OpenError> {
        let store = Arc::clone(&self.context.store);
        let opened = self.context.cpu.run(Lane::Files, move || {
            let opened = store.open_layer(&key);
            match &opened {
                Err(error @ StoreError::Damaged { .. }) => {
                    let error = error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        "removing a damaged layer; it is downloaded again when it is needed"
                    );
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

    /// Another form of the same layer that is usable and whose tar is verified to be the expected
    /// one.
    async fn proven_form(
        &self,
        key: &LayerKey,
        expected: &Expected,
        is_usable: impl Fn(&Layer) -> bool,
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
            if let Some(layer) = layer.filter(|layer| is_usable(layer)) {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    /// Records that an image names a layer.
    async fn name(&self, layer: &Arc<Layer>, origin: Origin) {
        if !layer.named.add_origin(origin) {
            return;
        }
        let writer = Arc::clone(layer);
        // Two jobs may write at once, so repeat until the file contains the latest record.
        let write = move || loop {
            let record = writer.record();
            writer.data.files.write_sources(&record)?;
            if writer.record() == record {
                return Ok::<_, std::io::Error>(());
            }
        };
        let written = self.context.cpu.run(Lane::Files, write).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(layer = %layer.digest(), "cannot record which image names a layer");
        }
    }
}
