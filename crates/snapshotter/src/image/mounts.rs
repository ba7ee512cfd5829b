//! The mounts of layers and the sources of their bytes. No READ of a layer waits for the network
//! while its device is switched or unmounted.
//!
//! The first mount of a layer with a patch mounts its image. Every other one is a bind mount of it,
//! so that they share one file system and one page cache. Missing bytes come from the layer's file
//! on the device; a complete layer moves to `data`. Operations run one at a time.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tracing::warn;

mod known;

use self::known::{Known, Shown};
use super::discover::explain;
use super::layer_use::LayerUse;
use crate::device::Device;
use crate::layer::Layer;
use crate::mount::table::MountTable;
use crate::mount::thread::Unfinished;
use crate::mount::{LayerImage, LayerSource, MountError, Mounter, Supply, SwitchedLayer, Way};
use crate::store::LayerKey;
use crate::sync::{Arc, Mutex};

/// Maximum number of layers that move or settle in one turn, so that a mount does not wait long.
const AT_ONCE: usize = 16;

/// Layers that wait to be handled together, with the channels for their results.
#[derive(Debug, Default)]
struct Batch(Mutex<VecDeque<Waiting>>);

type Waiting = (Arc<Layer>, oneshot::Sender<Result<(), MountError>>);

impl Batch {
    /// Adds a layer. Its result arrives after someone has [taken](Batch::take) it.
    fn add(&self, layer: &Arc<Layer>) -> oneshot::Receiver<Result<(), MountError>> {
        let (done, result) = oneshot::channel();
        self.0.lock().push_back((Arc::clone(layer), done));
        result
    }

    /// Removes the first layers, at most [`AT_ONCE`]. Every layer is taken if there is one call for
    /// each.
    fn take(&self) -> Vec<Waiting> {
        let mut waiting = self.0.lock();
        let count = waiting.len().min(AT_ONCE);
        waiting.drain(..count).collect()
    }
}

/// The layer mounts of this process.
#[derive(Debug)]
pub struct Mounts {
    mounter: Arc<dyn Mounter>,
    device: Arc<Device>,
    known: Mutex<Known>,
    /// The mounted layers by number, also those of an earlier process, with their compressed sizes.
    mounted: Mutex<HashMap<u64, (LayerKey, u64)>>,
    /// Numbers of the layers whose READs may reach the device.
    on_device: Mutex<BTreeSet<u64>>,
    completing: Batch,
    settling: Batch,
    turn: Semaphore,
}

impl Mounts {
    /// Creates an empty set of mounts. `mounter` makes them; `device` serves missing bytes.
    pub fn new(mounter: Arc<dyn Mounter>, device: Arc<Device>) -> Self {
        Self {
            mounter,
            device,
            known: Mutex::default(),
            mounted: Mutex::default(),
            on_device: Mutex::default(),
            completing: Batch::default(),
            settling: Batch::default(),
            turn: Semaphore::new(1),
        }
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.turn.acquire().await.ok()
    }

    /// Mounts a layer at `at` through the image `meta` of `patch`, unless it is mounted there
    /// already.
    ///
    /// `copy` is the number of parents that show the same image. overlayfs rejects a chain with the
    /// same root twice, so each copy gets a file system of its own.
    pub(crate) async fn mount(
        &self,
        layer: &Arc<Layer>,
        patch: &str,
        copy: usize,
        meta: PathBuf,
        at: &Path,
    ) -> Result<(), MountError> {
        let _turn = self.turn().await;
        let shown = Shown {
            layer: layer.key(),
            patch: patch.to_owned(),
            copy,
        };
        // Check during the turn, because an earlier request may have mounted the same path.
        let table = MountTable::read().map_err(MountError::Table)?;
        if self.known.lock().by_path.get(at) == Some(&shown) && self.mounter.is_ours(&table, at) {
            return Ok(());
        }
        if !self.bind_from_another(&shown, at).await? {
            let image = LayerImage {
                meta: meta.clone(),
                patch: patch.to_owned(),
                copy,
                source: self.source(layer),
            };
            self.mounter.mount(&image, at).await?;
        }
        self.known.lock().add(shown, meta, at);
        self.note(layer);
        Ok(())
    }

    /// Returns false if no mount shows this image. Forgets mounts that another process unmounted.
    async fn bind_from_another(&self, shown: &Shown, at: &Path) -> Result<bool, MountError> {
        loop {
            let from = {
                let known = self.known.lock();
                let places = known.shown.get(shown);
                places.and_then(|places| places.at.iter().find(|from| *from != at).cloned())
            };
            let Some(from) = from else {
                return Ok(false);
            };
            match self.mounter.bind(&from, at).await {
                Ok(()) => return Ok(true),
                Err(MountError::NotOurs(_)) => {
                    warn!(path = %from.display(), "somebody unmounted a layer");
                    self.known.lock().forget(&from);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The source of the layer's bytes: `data` if it is complete, else its file on the device.
    fn source(&self, layer: &Arc<Layer>) -> LayerSource {
        let number = layer.number().0;
        if layer.is_complete() {
            return LayerSource {
                number,
                file: layer.data_path(),
                supply: Supply::Complete,
            };
        }
        self.on_demand(layer)
    }

    fn on_demand(&self, layer: &Arc<Layer>) -> LayerSource {
        let number = layer.number().0;
        self.serve(layer);
        LayerSource {
            number,
            file: self.device.path(number),
            supply: Supply::OnDemand,
        }
    }

    /// Moves a complete layer to `data`. All of its bytes are present, so no READ waits for the
    /// network. Layers that wait for their turn move together.
    pub(crate) async fn complete(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let moved = self.completing.add(layer);
        let turn = self.turn().await;
        let (layers, done): (Vec<_>, Vec<_>) = self.completing.take().into_iter().unzip();
        for (result, done) in self.move_to_data(&layers).await.into_iter().zip(done) {
            // The caller may have stopped waiting. The layer has moved.
            let _ = done.send(result);
        }
        drop(turn);
        moved
            .await
            .unwrap_or(Err(MountError::Unfinished(Unfinished)))
    }

    async fn move_to_data(&self, layers: &[Arc<Layer>]) -> Vec<Result<(), MountError>> {
        if layers.is_empty() {
            return Vec::new();
        }
        let switched: Vec<_> = layers
            .iter()
            .map(|layer| SwitchedLayer {
                source: self.source(layer),
                shown: self.known.lock().of(layer.key()),
            })
            .collect();
        let results = self.mounter.supply_all(&switched).await;
        for (layer, result) in switched.iter().zip(&results) {
            if result.is_ok() {
                self.switched(&layer.source);
            }
        }
        results
    }

    fn switched(&self, source: &LayerSource) {
        if source.supply == Supply::Complete {
            self.on_device.lock().remove(&source.number);
        }
    }

    /// Stops serving a complete layer on the device. Returns false if a READ may still arrive:
    /// mounts from files never switch their source.
    pub(crate) async fn retire(&self, layer: &Arc<Layer>) -> bool {
        let _turn = self.turn().await;
        let number = layer.number().0;
        let moved = self.mounter.way() == Way::Loop && !self.on_device.lock().contains(&number);
        let retires = moved && layer.is_complete();
        if retires {
            self.device.remove(number);
        }
        retires
    }

    /// Moves the layer back to the device before bytes are removed from its `data`, because a READ
    /// of `data` cannot wait for a download.
    pub(crate) async fn reopen(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let _turn = self.turn().await;
        let source = self.on_demand(layer);
        let shown = self.known.lock().of(layer.key());
        self.mounter.supply(&source, &shown).await
    }

    /// Drops duplicate cached pages of a complete layer when its start phase is over. Layers that
    /// wait for their turn settle together.
    pub(crate) async fn settle(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let settled = self.settling.add(layer);
        let turn = self.turn().await;
        let (layers, done): (Vec<_>, Vec<_>) = self.settling.take().into_iter().unzip();
        if !layers.is_empty() {
            let files = |layer: &Arc<Layer>| {
                let shown = self.known.lock().of(layer.key());
                let metas = shown.into_iter().map(|(meta, _)| meta);
                let files = std::iter::once(layer.data_path()).chain(metas).collect();
                (layer.number().0, files)
            };
            self.mounter
                .settle(layers.iter().map(files).collect())
                .await?;
        }
        for done in done {
            // The caller may have stopped waiting. The layer is settled.
            let _ = done.send(Ok(()));
        }
        drop(turn);
        settled
            .await
            .unwrap_or(Err(MountError::Unfinished(Unfinished)))
    }

    /// Numbers of the layers that an earlier process mounted.
    pub(crate) async fn find(&self) -> Result<Vec<u64>, MountError> {
        self.mounter.find().await
    }

    /// Serves reads of a layer on the device, regardless of its current source.
    pub(crate) fn serve(&self, layer: &Arc<Layer>) {
        self.on_device.lock().insert(layer.number().0);
        self.device.add(Arc::clone(layer) as _);
    }

    /// A layer is mounted, by this process or an earlier one.
    pub(crate) fn note(&self, layer: &Layer) {
        let size = layer.progress().bytes_total;
        let mounted = (layer.key(), size);
        self.mounted.lock().insert(layer.number().0, mounted);
    }

    /// The mounted layers with their compressed sizes.
    pub(crate) fn mounted(&self) -> Vec<(LayerKey, u64)> {
        self.mounted.lock().values().copied().collect()
    }

    /// The mount points of this process, with their layers.
    pub(crate) fn mount_points(&self) -> Vec<(PathBuf, LayerKey)> {
        let known = self.known.lock();
        let points = known.by_path.iter();
        points
            .map(|(at, shown)| (at.clone(), shown.layer))
            .collect()
    }

    /// Declares that all layers of an earlier process are served. READs of other layers fail from
    /// now on.
    pub(crate) fn restored(&self) {
        self.device.restored();
    }

    /// Switches a layer that an earlier process mounted to its current source: this process's
    /// connection or `data`. Pending READs are answered, or fail with the earlier connection.
    pub(crate) async fn take_over(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let _turn = self.turn().await;
        let source = self.source(layer);
        self.mounter.supply(&source, &[]).await?;
        self.switched(&source);
        Ok(())
    }

    /// What `at` shows, if this process mounted it or took it over.
    pub(crate) fn shown(&self, table: &MountTable, at: &Path) -> Option<LayerUse> {
        let shown = {
            let known = self.known.lock();
            let Shown { layer, patch, .. } = known.by_path.get(at)?.clone();
            LayerUse { layer, patch }
        };
        self.mounter.is_ours(table, at).then_some(shown)
    }

    /// Unmounts the layer at `at`. It is not an error if none is mounted.
    pub(crate) async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        let _turn = self.turn().await;
        // Refuse READs, because an unmount waits for them and must not wait for the network.
        let number = match self.mounter.last_layer_at(at).await {
            Ok(number) => number,
            Err(error) => {
                warn!(path = %at.display(), error = explain(&error), "the layer of a mount is not known");
                None
            }
        };
        let _refused = number.map(|number| self.device.refuse(number));
        self.mounter.unmount(at).await?;
        let last = {
            let mut known = self.known.lock();
            let last = known.is_last(at);
            known.forget(at);
            last
        };
        self.mounted
            .lock()
            .retain(|mounted, (layer, _)| number != Some(*mounted) && last != Some(*layer));
        Ok(())
    }

    /// Stops serving a layer that is removed from the store.
    pub(crate) fn forget(&self, number: u64) {
        self.mounted.lock().remove(&number);
        self.on_device.lock().remove(&number);
        self.device.remove(number);
    }

    /// Releases devices and mounts that nothing uses. Returns the number of devices.
    pub(crate) async fn let_go(&self) -> Result<usize, MountError> {
        self.mounter.let_go().await
    }
}
