//! The open layers of the node, and the tasks that belong to them.
//!
//! A layer is opened once and shared; two images that want the same at the same time wait for one opening. What is there
//! under another zTOC, or was pulled whole, serves too, but only when its whole tar was found to be the one that is asked
//! for: a zTOC says of itself which bytes are right.

use std::{collections::HashMap, sync::Arc as StdArc};

use bytes::Bytes;
use soci_oci::{Descriptor, Digest};
use soci_ztoc::Compression;
use tokio::{runtime::Handle, sync::OnceCell};
use tokio_util::task::TaskTracker;

use super::{Context, Expected, Layer, Options, ReadWait, stream, upkeep};
use crate::{
    cpu::{Cpu, Lane, Lost},
    fetch::{HoldBack, Scheduler, Source},
    store::{LayerKey, LayerStore, StoreError, proofs::Proof, sources::Origin},
    sync::{Arc, Mutex},
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

type Cell = StdArc<OnceCell<Arc<Layer>>>;

/// An opening that is under way; see [`Layers::tidy`].
struct Tidy<'a> {
    layers: &'a Layers,
    key: LayerKey,
}

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        let mut open = self.layers.open.lock();
        // The list's and the one of who drops this: another caller would have a third, and goes on with it.
        if let Some(cell) = open.get(&self.key)
            && cell.get().is_none()
            && StdArc::strong_count(cell) <= 2
        {
            open.remove(&self.key);
        }
    }
}

/// All open layers.
#[derive(Debug)]
pub struct Layers {
    pub(super) context: Arc<Context>,
    runtime: Handle,
    pub(super) open: Mutex<HashMap<LayerKey, Cell>>,
    tasks: TaskTracker,
    syncer: tokio::task::AbortHandle,
}

impl Layers {
    /// The layers of a store. Their tasks run on `runtime` until this is dropped.
    pub fn new(
        store: Arc<LayerStore>,
        cpu: Arc<Cpu>,
        fetch: Arc<Scheduler>,
        options: Options,
        runtime: &Handle,
    ) -> Arc<Layers> {
        let every = options.sync_every;
        let passes = tokio::sync::Semaphore::new(stream::PASSES);
        let context = Arc::new(Context {
            cpu,
            fetch,
            store,
            options,
            passes,
            proving: tokio::sync::Semaphore::new(1),
            spare: super::spare::Spare::default(),
            waits: super::trace::Waits::default(),
            used: super::AtomicU64::new(0),
        });
        Arc::new_cyclic(|layers: &crate::sync::Weak<Layers>| {
            let syncer = runtime.spawn(upkeep::run(layers.clone(), every));
            Layers {
                context,
                runtime: runtime.clone(),
                open: Mutex::default(),
                tasks: TaskTracker::new(),
                syncer: syncer.abort_handle(),
            }
        })
    }

    /// Where the files are.
    pub fn store(&self) -> &Arc<LayerStore> {
        &self.context.store
    }

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
            Ok::<_, OpenError>(Layer::new(Arc::clone(&self.context), files))
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
            Ok::<_, OpenError>(Layer::new(Arc::clone(&self.context), files))
        });
        let opened = Arc::clone(opened.await?);
        self.prove_whole(&opened).await?;
        self.name(&opened, origin).await;
        Ok(opened)
    }

    /// An open layer.
    pub fn get(&self, key: &LayerKey) -> Option<Arc<Layer>> {
        self.open.lock().get(key)?.get().cloned()
    }

    /// The newest reads that waited for bytes, oldest first.
    pub fn waits(&self) -> Vec<ReadWait> {
        self.context.waits.newest()
    }

    /// Every open layer.
    pub fn all(&self) -> Vec<Arc<Layer>> {
        self.open
            .lock()
            .values()
            .filter_map(|cell| cell.get().cloned())
            .collect()
    }

    /// Fetches the rest of a layer in the background. Layers are completed in the order of their numbers.
    pub fn complete(&self, layer: &Arc<Layer>) {
        self.run_completion(layer, true);
    }

    /// Makes a layer complete when its readers have read all of it; fetches nothing itself.
    pub fn complete_when_read(&self, layer: &Arc<Layer>) {
        self.run_completion(layer, false);
    }

    fn run_completion(&self, layer: &Arc<Layer>, fetches: bool) {
        if !layer.is_complete() {
            self.tasks
                .spawn_on(Arc::clone(layer).run_completion(fetches), &self.runtime);
        }
    }

    /// Removes a layer: reads that wait fail, its files go. Mounts on it must be gone.
    ///
    /// # Errors
    /// The system's.
    pub async fn remove(&self, key: &LayerKey) -> Result<(), OpenError> {
        let (cell, number) = {
            let mut open = self.open.lock();
            // Both at once, so that nobody finds the files of a layer that is being removed.
            (open.remove(key), self.context.store.forget(key))
        };
        if let Some(layer) = cell.as_ref().and_then(|cell| cell.get()) {
            layer.close();
        }
        let Some(number) = number else { return Ok(()) };
        let store = Arc::clone(&self.context.store);
        Ok(self
            .context
            .cpu
            .run(Lane::FilesBehind, move || store.delete(number))
            .await??)
    }

    /// Closes a layer that nobody else has: who looks at every layer of the store does not keep them all open.
    pub(crate) fn close_unused(&self, layer: Arc<Layer>) {
        let mut open = self.open.lock();
        let key = layer.key();
        if let Some(cell) = open.get(&key)
            && StdArc::strong_count(cell) == 1
            && cell.get().is_some_and(|same| Arc::ptr_eq(same, &layer))
            && Arc::strong_count(&layer) == 2
        {
            open.remove(&key);
        }
    }

    /// While the guard lives, completion leaves most of the line to others: for transfers that a container's start waits
    /// for and that do not go through the scheduler (zTOCs, manifests).
    pub fn hold_back(&self) -> HoldBack {
        self.context.fetch.hold_back()
    }

    fn cell(&self, key: LayerKey) -> Cell {
        StdArc::clone(self.open.lock().entry(key).or_default())
    }

    /// Takes an opening that failed out of the list, when who waits for it is gone.
    fn tidy(&self, key: LayerKey) -> Tidy<'_> {
        Tidy { layers: self, key }
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
        Ok(files.map(|files| Layer::new(Arc::clone(&self.context), files)))
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
            writer.files.write_sources(&record)?;
            if writer.record() == record {
                return Ok::<_, std::io::Error>(());
            }
        };
        let written = self.context.cpu.run(Lane::Files, write).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(layer = %layer.files.key.layer, "who names the layer is not noted");
        }
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        self.syncer.abort();
        for layer in self.all() {
            layer.close();
        }
        self.tasks.close();
    }
}
