//! The mount mode **loop**, the default: EROFS mounted from two loop devices, for `meta` and the
//! data.
//!
//! While bytes are missing, the data device is backed by the layer's file on the FUSE mount, with
//! direct I/O. When the layer is complete, the device switches to `data`, even while it is being
//! read. All images of a layer share its data device. Devices are named `soci:data:ROOT:LAYER` and
//! `soci:meta:ROOT:LAYER:IMAGE` (ROOT identifies the state directory, LAYER is the layer's number
//! in the store). The names survive a switch and a restart, so a later process finds the devices.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::fs::Advice;
use sha2::{Digest as _, Sha256};

use super::loops::{self, Loop};
use super::place::{self, FS_TYPE, Made, Pair};
use super::table::{MountEntry, MountTable};
use super::thread::{MountThread, Unfinished, each};
use super::{LayerImage, LayerSource, MountError, Mounter, Supply, SwitchedLayer, Way, plain};

/// Readahead of the meta device in KiB; that of the data device has no effect. A higher value does
/// not make reads faster, a lower one slows down sequential reads (measured; benchmark/README.md).
const READ_AHEAD_KB: u32 = 1024;

/// Characters of a patch key in a device name. Images of one layer whose keys share this prefix are
/// treated as equal.
const PATCH_CHARS: usize = 16;

/// Mounts layers from loop devices.
#[derive(Debug)]
pub(super) struct LoopMounter {
    thread: MountThread,
    state: Arc<State>,
}

/// Devices and mounts of this process. Changed only on the mount thread.
#[derive(Debug)]
pub(super) struct State {
    made: Made,
    names: Names,
    /// Data and meta devices by layer. If the kernel has reused a device number, the device's name
    /// reveals it.
    devices: Mutex<HashMap<u64, Devices>>,
}

#[derive(Debug, Default)]
struct Devices {
    data: Vec<u32>,
    meta: BTreeMap<u32, String>,
}

/// Names of the devices of one state directory.
#[derive(Debug, Clone)]
struct Names {
    root: String,
}

impl Names {
    /// `root` is canonical.
    fn of(root: &Path) -> Names {
        let mut hash = Sha256::new();
        hash.update(root.as_os_str().as_bytes());
        if let Ok(found) = std::fs::metadata(root) {
            hash.update(found.dev().to_le_bytes());
            hash.update(found.ino().to_le_bytes());
        }
        let [a, b, c, d, ..] = <[u8; 32]>::from(hash.finalize());
        Names {
            root: format!("{a:02x}{b:02x}{c:02x}{d:02x}"),
        }
    }

    fn data(&self, layer: u64) -> String {
        format!("soci:data:{}:{layer}", self.root)
    }

    fn meta(&self, image: &LayerImage) -> String {
        let (layer, copy) = (image.source.number, image.copy);
        let patch: String = image.patch.chars().take(PATCH_CHARS).collect();
        format!("soci:meta:{}:{layer}:{patch}:{copy}", self.root)
    }

    /// The layer of a data device of this state directory.
    fn data_layer(&self, label: &str) -> Option<u64> {
        label
            .strip_prefix(&format!("soci:data:{}:", self.root))?
            .parse()
            .ok()
    }

    /// The layer of a meta device of this state directory.
    fn meta_layer(&self, label: &str) -> Option<u64> {
        let rest = label.strip_prefix(&format!("soci:meta:{}:", self.root))?;
        rest.split(':').next()?.parse().ok()
    }
}

impl State {
    pub(super) fn new(root: &Path) -> State {
        State {
            made: Made::default(),
            names: Names::of(root),
            devices: Mutex::default(),
        }
    }

    fn with<T>(&self, layer: u64, job: impl FnOnce(&mut Devices) -> T) -> T {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        job(devices.entry(layer).or_default())
    }

    /// Mounts an image, unless it is already mounted at `at`.
    pub(super) fn mount(&self, image: &LayerImage, at: &Path) -> Result<(), MountError> {
        let label = self.names.meta(image);
        let table = MountTable::read().map_err(MountError::Table)?;
        if let Some(top) = table.top(at).filter(|top| top.fs_type == FS_TYPE) {
            let index = top.source.to_str().and_then(loops::index_of);
            if index.and_then(loops::label_of).as_ref() == Some(&label) {
                self.made.set(at, top.id);
                // The device may still be backed by a file of a closed FUSE connection.
                return self.supply_unless_there(&image.source);
            }
        }
        // Both stay open until the mount holds them.
        let data = self.data_device(&image.source)?;
        let meta = Loop::attach(&image.meta, &label, false)?;
        meta.set_readahead(READ_AHEAD_KB);
        let pair = Pair {
            source: &meta.path(),
            device: &data.path(),
        };
        place::put(&self.made, pair, at)?;
        self.with(image.source.number, |devices| {
            devices.meta.insert(meta.index(), label);
        });
        Ok(())
    }

    /// The attached data device of a layer, or a new one.
    fn data_device(&self, source: &LayerSource) -> Result<Loop, MountError> {
        if let Some(found) = self.data_devices(source.number).into_iter().next() {
            return Ok(found);
        }
        let direct = source.supply == Supply::OnDemand;
        let label = self.names.data(source.number);
        let device = Loop::attach(&source.file, &label, direct)?;
        self.with(source.number, |devices| devices.data.push(device.index()));
        Ok(device)
    }

    /// The attached data devices of a layer.
    fn data_devices(&self, layer: u64) -> Vec<Loop> {
        let label = self.names.data(layer);
        self.with(layer, |devices| {
            let open: Vec<_> = devices
                .data
                .iter()
                .filter_map(|&index| Loop::open(index, &label))
                .collect();
            devices.data = open.iter().map(Loop::index).collect();
            open
        })
    }

    /// The attached meta devices of a layer.
    fn meta_devices(&self, layer: u64) -> Vec<Loop> {
        self.with(layer, |devices| {
            devices
                .meta
                .retain(|&index, label| loops::label_of(index).as_ref() == Some(label));
            let open = |(&index, label): (&u32, &String)| Loop::open(index, label);
            devices.meta.iter().filter_map(open).collect()
        })
    }

    /// Unmounts the layer at `at`, and forgets its devices if this was its last mount.
    fn unmount(&self, at: &Path) -> Result<(), MountError> {
        let layer = self.last_layer_at(at);
        place::unmount(&self.made, at)?;
        if let Some(layer) = layer.filter(|&layer| self.data_devices(layer).is_empty()) {
            let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
            devices.remove(&layer);
        }
        Ok(())
    }

    /// The layer that is mounted at `at`, unless it is mounted elsewhere too: as a bind mount, or
    /// as another file system that an earlier process made.
    fn last_layer_at(&self, at: &Path) -> Option<u64> {
        let table = MountTable::read().ok()?;
        let layer = |entry: &MountEntry| {
            let index = loops::index_of(entry.source.to_str()?)?;
            self.names.meta_layer(&loops::label_of(index)?)
        };
        let top = table.top(at)?;
        let number = layer(top)?;
        let shown_too = |entry: &MountEntry| {
            entry.id != top.id && (entry.device == top.device || layer(entry) == Some(number))
        };
        (!table.entries().iter().any(shown_too)).then_some(number)
    }

    /// Switches the data devices of a layer. The caller guarantees that no READ of the layer waits.
    pub(super) fn supply(&self, source: &LayerSource) -> Result<(), MountError> {
        let results = self.supply_all(std::slice::from_ref(source));
        results.into_iter().collect()
    }

    /// Switches the data devices of several layers at the same time, because each switch waits for
    /// an RCU grace period of the kernel.
    fn supply_all(&self, sources: &[LayerSource]) -> Vec<Result<(), MountError>> {
        let (mut moved, mut results) = (Vec::new(), Vec::with_capacity(sources.len()));
        for switched in each(sources, |source| self.switch(source)) {
            results.push(switched.map(|devices| moved.extend(devices)));
        }
        // Use the page cache: the pages that were just written are the fastest source.
        each(&moved, |device| device.set_direct(false));
        results
    }

    /// Switches the data devices of a layer. Returns those that now use `data`.
    fn switch(&self, source: &LayerSource) -> Result<Vec<Loop>, MountError> {
        let mut moved = Vec::new();
        for device in self.data_devices(source.number) {
            if device.is_on(&source.file) && source.supply == Supply::Complete {
                continue;
            }
            match source.supply {
                Supply::Complete => {
                    device.change(&source.file)?;
                    moved.push(device);
                }
                Supply::OnDemand => {
                    device.set_direct(true);
                    device.change(&source.file)?;
                    if !device.set_direct(true) {
                        return Err(MountError::Buffered(source.file.clone()));
                    }
                }
            }
        }
        Ok(moved)
    }

    fn supply_unless_there(&self, source: &LayerSource) -> Result<(), MountError> {
        let devices = self.data_devices(source.number);
        if devices.iter().all(|device| device.is_on(&source.file)) {
            return Ok(());
        }
        self.supply(source)
    }

    /// Switches the devices of layers to direct I/O and drops the page cache of their files, to
    /// keep only one cached copy.
    fn settle(&self, layers: &[(u64, Vec<PathBuf>)]) {
        let mut devices = Vec::new();
        for (layer, _) in layers {
            devices.extend(self.data_devices(*layer));
            devices.extend(self.meta_devices(*layer));
        }
        each(&devices, |device| device.set_direct(true));
        for path in layers.iter().flat_map(|(_, files)| files) {
            let forgotten = std::fs::File::open(path).and_then(|file| {
                rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(std::io::Error::from)
            });
            if let Err(error) = forgotten {
                tracing::debug!(path = %path.display(), %error, "cannot drop the page cache of a file");
            }
        }
    }

    /// Registers the devices that an earlier process attached. Returns the layers with a data
    /// device.
    fn find(&self) -> Vec<u64> {
        let mut layers = Vec::new();
        for loops::Attached { index, label } in loops::attached("soci:") {
            if let Some(layer) = self.names.data_layer(&label) {
                self.with(layer, |devices| devices.data.push(index));
                layers.push(layer);
            } else if let Some(layer) = self.names.meta_layer(&label) {
                self.with(layer, |devices| devices.meta.insert(index, label));
            }
        }
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    /// Releases unused devices. For a device in use, the kernel only sets autoclear.
    fn let_go(&self) -> usize {
        let ours = |label: &str| {
            self.names.data_layer(label).is_some() || self.names.meta_layer(label).is_some()
        };
        let attached = loops::attached("soci:");
        let before = attached.iter().filter(|found| ours(&found.label));
        let mut gone = 0;
        for loops::Attached { index, label } in before {
            if let Some(device) = Loop::open(*index, label) {
                let cleared = device.clear();
                drop(device);
                if cleared.is_ok() && loops::label_of(*index).as_ref() != Some(label) {
                    gone += 1;
                }
            }
        }
        gone
    }
}

impl LoopMounter {
    /// Device names are derived from `root`, the canonical state directory.
    pub(super) fn new(thread: MountThread, root: &Path) -> LoopMounter {
        LoopMounter {
            thread,
            state: Arc::new(State::new(root)),
        }
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        step: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, MountError> {
        let state = Arc::clone(&self.state);
        Ok(self.thread.run(move || step(&state)).await?)
    }
}

#[async_trait]
impl Mounter for LoopMounter {
    fn way(&self) -> Way {
        Way::Loop
    }

    async fn mount(&self, image: &LayerImage, at: &Path) -> Result<(), MountError> {
        let (image, at) = (image.checked()?, plain(at)?.to_path_buf());
        self.on_thread(move |state| state.mount(&image, &at))
            .await?
    }

    async fn bind(&self, from: &Path, at: &Path) -> Result<(), MountError> {
        let (from, at) = (plain(from)?.to_path_buf(), plain(at)?.to_path_buf());
        self.on_thread(move |state| place::bind(&state.made, &from, &at))
            .await?
    }

    async fn supply(
        &self,
        source: &LayerSource,
        _shown: &[(PathBuf, Vec<PathBuf>)],
    ) -> Result<(), MountError> {
        let source = source.clone();
        self.on_thread(move |state| state.supply(&source)).await?
    }

    async fn supply_all(&self, layers: &[SwitchedLayer]) -> Vec<Result<(), MountError>> {
        let sources: Vec<_> = layers.iter().map(|layer| layer.source.clone()).collect();
        let switched = self.on_thread(move |state| state.supply_all(&sources));
        switched.await.unwrap_or_else(|_| {
            let failed = layers
                .iter()
                .map(|_| Err(MountError::Unfinished(Unfinished)));
            failed.collect()
        })
    }

    async fn settle(&self, layers: Vec<(u64, Vec<PathBuf>)>) -> Result<(), MountError> {
        self.on_thread(move |state| state.settle(&layers)).await
    }

    async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        let at = plain(at)?.to_path_buf();
        self.on_thread(move |state| state.unmount(&at)).await?
    }

    fn is_ours(&self, table: &MountTable, at: &Path) -> bool {
        self.state.made.is_top(table, at)
    }

    async fn find(&self) -> Result<Vec<u64>, MountError> {
        self.on_thread(State::find).await
    }

    async fn last_layer_at(&self, at: &Path) -> Result<Option<u64>, MountError> {
        let at = plain(at)?.to_path_buf();
        self.on_thread(move |state| state.last_layer_at(&at)).await
    }

    async fn let_go(&self) -> Result<usize, MountError> {
        self.on_thread(State::let_go).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_tell_folder_layer_and_image() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (Names::of(folder.path()), Names::of(Path::new("/")));
        let data = ours.data(u64::MAX);
        let meta = ours.meta(&LayerImage {
            meta: "/meta".into(),
            patch: "f".repeat(64),
            copy: 9,
            source: LayerSource {
                number: u64::MAX,
                file: "/data".into(),
                supply: Supply::Complete,
            },
        });
        assert!(
            data.len() < 64 && meta.len() < 64 && meta.ends_with(":9"),
            "{data} {meta}"
        );
        assert_eq!(ours.data_layer(&data), Some(u64::MAX));
        assert_eq!(ours.meta_layer(&meta), Some(u64::MAX));
        assert_eq!(
            (other.data_layer(&data), other.meta_layer(&meta)),
            (None, None)
        );
        assert_eq!(
            (ours.data_layer(&meta), ours.meta_layer(&data)),
            (None, None)
        );
    }
}
