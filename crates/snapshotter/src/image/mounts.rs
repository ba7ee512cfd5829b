//! Which layers are mounted where: the one owner of mounts, of what they are fed from, and of the rule
//! that no READ of a layer waits for the network when its device changes hands or its mount goes.
//!
//! The first mount of a layer with a patch is a mount of its image; every other one is a bind of it, so
//! that there is one file system and one page cache. While bytes are missing they come from the layer's
//! file on the node's device; when the layer is complete it moves to `data`. One step at a time.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::warn;

use super::discover::explain;
use super::layer_use::LayerUse;
use crate::device::Device;
use crate::layer::Layer;
use crate::mount::table::MountTable;
use crate::mount::{LayerImage, LayerSource, MountError, Mounter, Supply, Way};
use crate::store::LayerKey;
use crate::sync::{Arc, Mutex};

/// One image of a layer: mounts of it share everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shown {
    layer: LayerKey,
    patch: String,
    copy: usize,
}

#[derive(Debug)]
struct Places {
    at: BTreeSet<PathBuf>,
    meta: PathBuf,
}

#[derive(Debug, Default)]
struct Known {
    shown: HashMap<Shown, Places>,
    by_path: HashMap<PathBuf, Shown>,
}

impl Known {
    fn add(&mut self, shown: Shown, meta: PathBuf, at: &Path) {
        self.forget(at);
        self.by_path.insert(at.to_owned(), shown.clone());
        let places = self.shown.entry(shown).or_insert_with(|| Places {
            at: BTreeSet::new(),
            meta,
        });
        places.at.insert(at.to_owned());
    }

    fn forget(&mut self, at: &Path) {
        if let Some(shown) = self.by_path.remove(at)
            && let Some(places) = self.shown.get_mut(&shown)
        {
            places.at.remove(at);
            if places.at.is_empty() {
                self.shown.remove(&shown);
            }
        }
    }

    /// Images of a layer and where they are.
    fn of(&self, layer: LayerKey) -> Vec<(PathBuf, Vec<PathBuf>)> {
        let of_layer = self.shown.iter().filter(|(shown, _)| shown.layer == layer);
        of_layer
            .map(|(_, places)| (places.meta.clone(), places.at.iter().cloned().collect()))
            .collect()
    }
}

/// The layer mounts of this process.
#[derive(Debug)]
pub struct Mounts {
    mounter: Arc<dyn Mounter>,
    device: Arc<Device>,
    known: Mutex<Known>,
    /// Layers whose READs may come to the device, by number.
    on_device: Mutex<BTreeSet<u64>>,
    turn: Semaphore,
}

impl Mounts {
    /// No mounts yet, to be made by `mounter` with `device` for what is not there.
    pub fn new(mounter: Arc<dyn Mounter>, device: Arc<Device>) -> Self {
        Self {
            mounter,
            device,
            known: Mutex::default(),
            on_device: Mutex::default(),
            turn: Semaphore::new(1),
        }
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.turn.acquire().await.ok()
    }

    /// Shows a layer at `at`, through the image `meta` of `patch`; nothing happens if it is shown there already.
    ///
    /// `copy` counts the parents that show the same image: overlayfs refuses one root twice in a chain, so an
    /// image with the same layer twice gets a file system for each.
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
        // Looked at under the turn: a request for the same place may have been here a moment ago.
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
        Ok(())
    }

    /// False: no place shows this image. A place that somebody unmounted is forgotten on the way.
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

    /// Where the bytes come from: `data` where everything is there, else the layer's file on the device.
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

    /// The layer is complete: it moves to `data`. Its READs find every byte present, so none waits for the network.
    pub(crate) async fn complete(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let _turn = self.turn().await;
        let shown = self.known.lock().of(layer.key());
        self.move_to_source(layer, &shown).await
    }

    /// Moves a layer to where its bytes are to come from now.
    async fn move_to_source(
        &self,
        layer: &Arc<Layer>,
        shown: &[(PathBuf, Vec<PathBuf>)],
    ) -> Result<(), MountError> {
        let source = self.source(layer);
        self.mounter.supply(&source, shown).await?;
        if source.supply == Supply::Complete {
            self.on_device.lock().remove(&source.number);
        }
        Ok(())
    }

    /// Ends the service of a complete layer on the device. False where a READ may still come: by the file way what a
    /// container has mounted never changes hands.
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

    /// The layer moves back to the device, while bytes are taken out of its `data`. `data` itself answers no READ
    /// that waits.
    pub(crate) async fn reopen(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let _turn = self.turn().await;
        let source = self.on_demand(layer);
        let shown = self.known.lock().of(layer.key());
        self.mounter.supply(&source, &shown).await
    }

    /// The start of a complete layer is over: one cached copy is enough.
    pub(crate) async fn settle(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let _turn = self.turn().await;
        let mut files = vec![layer.data_path()];
        files.extend(
            self.known
                .lock()
                .of(layer.key())
                .into_iter()
                .map(|(meta, _)| meta),
        );
        self.mounter.settle(layer.number().0, files).await
    }

    /// The layers that an earlier process mounted, by number.
    pub(crate) async fn find(&self) -> Result<Vec<u64>, MountError> {
        self.mounter.find().await
    }

    /// Answers reads of a layer, whatever its bytes come from now.
    pub(crate) fn serve(&self, layer: &Arc<Layer>) {
        self.on_device.lock().insert(layer.number().0);
        self.device.add(Arc::clone(layer) as _);
    }

    /// Every layer that an earlier process mounted is served: READs of others are errors from now on.
    pub(crate) fn restored(&self) {
        self.device.restored();
    }

    /// Moves a layer that an earlier process mounted to where its bytes come from now: to this process's connection,
    /// or to `data`. Every READ of it is answered, or failed with the earlier connection.
    pub(crate) async fn take_over(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let _turn = self.turn().await;
        self.move_to_source(layer, &[]).await
    }

    /// What `at` shows, if this process mounted it there or took it over.
    pub(crate) fn shown(&self, table: &MountTable, at: &Path) -> Option<LayerUse> {
        let shown = {
            let known = self.known.lock();
            let Shown { layer, patch, .. } = known.by_path.get(at)?.clone();
            LayerUse { layer, patch }
        };
        self.mounter.is_ours(table, at).then_some(shown)
    }

    /// Takes a layer away from `at`; none being there is no error.
    pub(crate) async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        let _turn = self.turn().await;
        // The kernel waits for READs when a file system goes: nobody is to wait for a layer that is taken away.
        let _refused = match self.mounter.last_layer_at(at).await {
            Ok(number) => number.map(|number| self.device.refuse(number)),
            Err(error) => {
                warn!(path = %at.display(), error = explain(&error), "the layer of a mount is not known");
                None
            }
        };
        self.mounter.unmount(at).await?;
        self.known.lock().forget(at);
        Ok(())
    }

    /// A layer leaves the store: no read of it is answered any more.
    pub(crate) fn forget(&self, number: u64) {
        self.on_device.lock().remove(&number);
        self.device.remove(number);
    }

    /// Lets go of what nothing uses.
    pub(crate) async fn let_go(&self) -> Result<usize, MountError> {
        self.mounter.let_go().await
    }
}
