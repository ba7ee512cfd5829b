//! Which layers are mounted where.
//!
//! The first mount of a layer with a patch is a mount of its image; every other one is a bind of it, so that
//! there is one file system and one page cache. While bytes are missing the image's device is the layer's file
//! on the node's device; when the layer is complete all places get a mount on `data` beneath, and what uses the
//! old one keeps it. One mount is decided and made at a time.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::device::Device;
use crate::layer::Layer;
use crate::mount::table::MountTable;
use crate::mount::{LayerImage, MountError, Mounter, Supply};
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
    supply: Supply,
    meta: PathBuf,
}

#[derive(Debug, Default)]
struct Known {
    shown: HashMap<Shown, Places>,
    by_path: HashMap<PathBuf, Shown>,
}

/// The layer mounts of this process.
#[derive(Debug)]
pub struct Mounts {
    mounter: Arc<dyn Mounter>,
    device: Arc<Device>,
    known: Mutex<Known>,
    turn: Semaphore,
}

impl Mounts {
    /// No mounts yet, to be made by `mounter` with `device` for what is not there.
    pub fn new(mounter: Arc<dyn Mounter>, device: Arc<Device>) -> Self {
        Self {
            mounter,
            device,
            known: Mutex::default(),
            turn: Semaphore::new(1),
        }
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.turn.acquire().await.ok()
    }

    /// Shows a layer at `at`, through the image `meta` of `patch`.
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
        let first = self.first_place(&shown);
        let supply = match first {
            Some(from) => {
                self.mounter.bind(&from, at).await?;
                None
            }
            None => {
                let image = self.image(layer, meta.clone());
                self.mounter.mount(&image, at).await?;
                Some(image.supply)
            }
        };
        let mut known = self.known.lock();
        known.by_path.insert(at.to_owned(), shown.clone());
        let places = known.shown.entry(shown).or_insert_with(|| Places {
            at: BTreeSet::new(),
            supply: supply.unwrap_or(Supply::OnDemand),
            meta,
        });
        places.at.insert(at.to_owned());
        Ok(())
    }

    fn first_place(&self, shown: &Shown) -> Option<PathBuf> {
        self.known.lock().shown.get(shown)?.at.first().cloned()
    }

    /// What to mount: `data` where everything is there, else the layer's file on the device.
    fn image(&self, layer: &Arc<Layer>, meta: PathBuf) -> LayerImage {
        if layer.is_complete() {
            return LayerImage {
                meta,
                device: layer.data_path(),
                supply: Supply::Complete,
            };
        }
        let number = layer.number().0;
        self.device.add(Arc::clone(layer) as _);
        LayerImage {
            meta,
            device: self.device.path(number),
            supply: Supply::OnDemand,
        }
    }

    /// The layer is complete: its places get mounts on `data`.
    pub(crate) async fn complete(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        let _turn = self.turn().await;
        for (shown, meta, at) in self.on_demand(layer.key()) {
            let image = LayerImage {
                meta,
                device: layer.data_path(),
                supply: Supply::Complete,
            };
            self.mounter.replace(&image, &at).await?;
            if let Some(places) = self.known.lock().shown.get_mut(&shown) {
                places.supply = Supply::Complete;
            }
        }
        Ok(())
    }

    fn on_demand(&self, layer: LayerKey) -> Vec<(Shown, PathBuf, Vec<PathBuf>)> {
        let known = self.known.lock();
        let of_layer = known
            .shown
            .iter()
            .filter(|(shown, places)| shown.layer == layer && places.supply == Supply::OnDemand);
        of_layer
            .map(|(shown, places)| {
                (
                    shown.clone(),
                    places.meta.clone(),
                    places.at.iter().cloned().collect(),
                )
            })
            .collect()
    }

    /// Whether this process made the mount at `at`, and it is still there.
    pub(crate) fn has(&self, table: &MountTable, at: &Path) -> bool {
        self.known.lock().by_path.contains_key(at) && self.mounter.is_ours(table, at)
    }

    /// Takes a layer away from `at`; none being there is no error.
    pub(crate) async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        let _turn = self.turn().await;
        self.mounter.unmount(at).await?;
        let mut known = self.known.lock();
        if let Some(shown) = known.by_path.remove(at)
            && let Some(places) = known.shown.get_mut(&shown)
        {
            places.at.remove(at);
            if places.at.is_empty() {
                known.shown.remove(&shown);
            }
        }
        Ok(())
    }

    /// A layer leaves the store: no read of it is answered any more.
    pub(crate) fn forget(&self, number: u64) {
        self.device.remove(number);
    }
}
