//! The open layers of the node, and their tasks.
//!
//! A layer is opened once and shared. Concurrent requests for the same layer wait for one opening.

use std::collections::HashMap;

use tokio::{
    runtime::Handle,
    sync::{OnceCell, Semaphore},
};
use tokio_util::task::TaskTracker;

use super::{
    Context, Layer, Options, ReadWait,
    completion::Completion,
    paced::Queue,
    spans::{Room, Spare, Waits},
    starts::AllStarts,
    stream::Turns,
    tally::Tallies,
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
mod starts;
mod upkeep;
mod uses;

pub use open::{Lazy, OpenError, Whole};
pub use scrub::{Pace, Repairs, Scrubbed};
pub use uses::UseOrder;

type Cell = Arc<OnceCell<Arc<Layer>>>;

/// An opening in progress; see [`Layers::tidy`].
struct Tidy<'a> {
    layers: &'a Layers,
    key: LayerKey,
}

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        let mut open = self.layers.open.lock();
        // Two references: the list's and the dropping caller's. Another caller would hold a third
        // one and continues the opening.
        if let Some(cell) = open.get(&self.key)
            && match cell.get() {
                None => Arc::strong_count(cell) <= 2,
                // A layer that was indexed in passing. It is also open under its own key.
                Some(layer) => layer.key() != self.key,
            }
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
    /// The layers whose rest is downloaded at a fixed pace, if that is configured.
    pub(super) paced: Option<Arc<Queue<Completion>>>,
    tending: Vec<tokio::task::AbortHandle>,
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
        let paced = options.pace.map(|pace| Arc::new(Queue::new(pace)));
        let whole = &options.whole;
        let passes = Turns::new(whole.passes(), whole.passes_per_image());
        let tasks = TaskTracker::new();
        let context = Arc::new(Context {
            tasks: tasks.clone(),
            cpu,
            fetch,
            store,
            options,
            passes,
            proving: Semaphore::new(1),
            early: Room::default(),
            spare: Spare::default(),
            writeback: Arc::clone(&writeback),
            waits: Waits::default(),
            starts: AllStarts::default(),
            tallies: Tallies::default(),
            used: AtomicU64::new(0),
        });
        Arc::new_cyclic(|layers: &Weak<Layers>| {
            let syncer = runtime.spawn(upkeep::run(layers.clone(), every));
            let flusher = runtime.spawn(writeback::run(writeback, Arc::downgrade(&context)));
            let mut tending = vec![syncer.abort_handle(), flusher.abort_handle()];
            if let Some(queue) = paced.clone() {
                let task = runtime.spawn(async move { queue.run().await });
                tending.push(task.abort_handle());
            }
            Layers {
                context,
                runtime: runtime.clone(),
                open: Mutex::default(),
                tasks,
                uses: Mutex::default(),
                paced,
                tending,
            }
        })
    }

    /// The store with the files.
    pub fn store(&self) -> &Arc<LayerStore> {
        &self.context.store
    }

    /// An open layer.
    pub fn get(&self, key: &LayerKey) -> Option<Arc<Layer>> {
        self.open.lock().get(key)?.get().cloned()
    }

    /// The most recent reads that waited for bytes, oldest first.
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

    /// Downloads the rest of a layer in the background. Layers are completed in the order of their
    /// numbers.
    pub fn complete(&self, layer: &Arc<Layer>) {
        layer.completion.wake();
        self.complete_later(layer);
    }

    /// Like [`Layers::complete`], but only when the layer is used again.
    pub fn complete_later(&self, layer: &Arc<Layer>) {
        self.run_completion(layer, self.paced.is_none());
        if let Some(queue) = self.paced.as_ref().filter(|_| !layer.is_complete())
            && layer.completion.enqueue()
        {
            queue.add(Arc::clone(&layer.completion));
        }
    }

    /// The first layer of an image was mounted. With a fixed pace, background downloads are silent
    /// for a while.
    pub fn image_mounted(&self) {
        if let Some(queue) = &self.paced {
            queue.be_silent();
        }
    }

    /// Records a use of a layer and resumes its background download.
    pub fn note_use(&self, key: &LayerKey) {
        if let Some(number) = self.context.store.number(key) {
            self.uses.lock().note(number);
            let store = Arc::clone(&self.context.store);
            self.context
                .cpu
                .spawn(Lane::FilesBehind, move || store.note_used(number));
        }
        if let Some(layer) = self.get(key)
            && layer.completion.wake_queued()
            && !layer.is_complete()
            && let Some(queue) = &self.paced
        {
            queue.add(Arc::clone(&layer.completion));
        }
    }

    /// When a layer was last used. `None` if that was before this process started.
    pub fn last_use(&self, number: LayerNumber) -> Option<UseOrder> {
        self.uses.lock().last(number)
    }

    /// Sorts layers: incomplete before complete ones, then least recently used first. Uses before
    /// this process started count too.
    pub async fn sort_by_use(&self, layers: &mut [(LayerNumber, LayerKey)]) {
        let numbers: Vec<_> = layers.iter().map(|(number, _)| *number).collect();
        let store = Arc::clone(&self.context.store);
        let job = move || {
            let used = |number| (number, store.last_used(number));
            numbers.into_iter().map(used).collect::<HashMap<_, _>>()
        };
        let before = self.context.cpu.run(Lane::FilesBehind, job).await;
        // Without the times, the order of this process and the numbers remain.
        let before = before.unwrap_or_default();
        layers.sort_by_cached_key(|(number, key)| {
            let complete = self.get(key).is_none_or(|layer| layer.is_complete());
            let before = before.get(number).copied().flatten();
            (complete, self.last_use(*number), before, *number)
        });
    }

    /// The order of the next use that is recorded.
    pub fn use_order(&self) -> UseOrder {
        self.uses.lock().now()
    }

    /// Marks a layer complete once its readers have read all of it. Downloads nothing itself.
    pub fn complete_when_read(&self, layer: &Arc<Layer>) {
        self.run_completion(layer, false);
    }

    pub(super) fn run_completion(&self, layer: &Arc<Layer>, fetches: bool) {
        if !layer.is_complete() {
            self.tasks
                .spawn_on(Arc::clone(&layer.completion).run(fetches), &self.runtime);
        }
    }

    /// Removes a layer: waiting reads fail and its files are deleted. It must not be mounted.
    ///
    /// # Errors
    /// The system's.
    pub async fn remove(&self, key: &LayerKey) -> Result<(), OpenError> {
        let (cell, number) = {
            let mut open = self.open.lock();
            // Both under one lock, so that no caller finds the files of a layer that is being
            // removed.
            (open.remove(key), self.context.store.forget(key))
        };
        if let Some(layer) = cell.as_ref().and_then(|cell| cell.get()) {
            layer.close();
        }
        let Some(number) = number else { return Ok(()) };
        self.uses.lock().forget(number);
        self.context.tallies.forget(number);
        self.context.starts.forget(number);
        let store = Arc::clone(&self.context.store);
        Ok(self
            .context
            .cpu
            .run(Lane::FilesBehind, move || store.delete(number))
            .await??)
    }

    /// Closes a layer that has no other user, so that visiting every layer of the store does not
    /// keep them all open.
    pub(crate) fn close_unused(&self, layer: Arc<Layer>) {
        let mut open = self.open.lock();
        let key = layer.key();
        if let Some(cell) = open.get(&key)
            && Arc::strong_count(cell) == 1
            && cell.get().is_some_and(|same| Arc::ptr_eq(same, &layer))
            && Arc::strong_count(&layer) == 2
            && layer.is_idle()
        {
            layer.spans.tally().keep_error(layer.trouble.last_error());
            open.remove(&key);
        }
    }

    /// While the guard lives, completion leaves most of the bandwidth to others. For transfers that
    /// a container start waits for and that bypass the scheduler (zTOCs, manifests).
    pub fn hold_back(&self) -> HoldBack {
        self.context.fetch.hold_back()
    }

    /// Bytes arrived that were not requested through the scheduler. They show how fast the link is.
    pub fn came(&self, bytes: u64) {
        self.context.fetch.came(bytes);
    }

    fn cell(&self, key: LayerKey) -> Cell {
        Arc::clone(self.open.lock().entry(key).or_default())
    }

    /// Returns a guard that removes a failed opening from the list once no caller waits for it.
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
