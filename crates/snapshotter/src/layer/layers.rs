//! The open layers of the node, and the tasks that belong to them.
//!
//! A layer is opened once and shared; two images that want the same at the same time wait for one opening.

use std::collections::HashMap;

use tokio::{
    runtime::Handle,
    sync::{OnceCell, Semaphore},
};
use tokio_util::task::TaskTracker;

use super::{
    Context, Layer, Options, ReadWait,
    spans::{Spare, Waits},
    stream,
    writeback::{self, Writeback},
};
use crate::{
    cpu::{Cpu, Lane},
    fetch::{HoldBack, Scheduler},
    store::{LayerKey, LayerNumber, LayerStore},
    sync::{Arc, Mutex, Weak, atomic::AtomicU64},
};

mod evict;
mod open;
mod prove;
mod scrub;
mod upkeep;
mod uses;

pub use open::{Lazy, OpenError, Whole};
pub use scrub::{Pace, Repairs, Scrubbed};
pub use uses::UseOrder;

type Cell = Arc<OnceCell<Arc<Layer>>>;

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
            && Arc::strong_count(cell) <= 2
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
    uses: Mutex<uses::Uses>,
    tending: [tokio::task::AbortHandle; 2],
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
        let writeback = Arc::new(Writeback::default());
        let context = Arc::new(Context {
            cpu,
            fetch,
            store,
            options,
            passes: Semaphore::new(stream::PASSES),
            proving: Semaphore::new(1),
            spare: Spare::default(),
            writeback: Arc::clone(&writeback),
            waits: Waits::default(),
            used: AtomicU64::new(0),
        });
        Arc::new_cyclic(|layers: &Weak<Layers>| {
            let syncer = runtime.spawn(upkeep::run(layers.clone(), every));
            let flusher = runtime.spawn(writeback::run(writeback, Arc::downgrade(&context)));
            Layers {
                context,
                runtime: runtime.clone(),
                open: Mutex::default(),
                tasks: TaskTracker::new(),
                uses: Mutex::default(),
                tending: [syncer.abort_handle(), flusher.abort_handle()],
            }
        })
    }

    /// Where the files are.
    pub fn store(&self) -> &Arc<LayerStore> {
        &self.context.store
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
        layer.completion.wake();
        self.run_completion(layer, true);
    }

    /// As [`Layers::complete`], but only when the layer is used again.
    pub fn complete_later(&self, layer: &Arc<Layer>) {
        self.run_completion(layer, true);
    }

    /// Somebody uses a layer: what is missing of it is fetched again.
    pub fn note_use(&self, key: &LayerKey) {
        if let Some(number) = self.context.store.number(key) {
            self.uses.lock().note(number);
        }
        if let Some(layer) = self.get(key) {
            layer.completion.wake();
        }
    }

    /// When a layer was used last; none if that was before this process.
    pub fn last_use(&self, number: LayerNumber) -> Option<UseOrder> {
        self.uses.lock().last(number)
    }

    /// Uses that are noted from now on have this order, or a later one.
    pub fn use_order(&self) -> UseOrder {
        self.uses.lock().now()
    }

    /// Makes a layer complete when its readers have read all of it; fetches nothing itself.
    pub fn complete_when_read(&self, layer: &Arc<Layer>) {
        self.run_completion(layer, false);
    }

    fn run_completion(&self, layer: &Arc<Layer>, fetches: bool) {
        if !layer.is_complete() {
            self.tasks
                .spawn_on(Arc::clone(&layer.completion).run(fetches), &self.runtime);
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
        self.uses.lock().forget(number);
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
            && Arc::strong_count(cell) == 1
            && cell.get().is_some_and(|same| Arc::ptr_eq(same, &layer))
            && Arc::strong_count(&layer) == 2
            && layer.is_idle()
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
        Arc::clone(self.open.lock().entry(key).or_default())
    }

    /// Takes an opening that failed out of the list, when who waits for it is gone.
    fn tidy(&self, key: LayerKey) -> Tidy<'_> {
        Tidy { layers: self, key }
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for task in &self.tending {
            task.abort();
        }
        for layer in self.all() {
            layer.close();
        }
        self.tasks.close();
    }
}
