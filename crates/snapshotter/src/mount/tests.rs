//! Layers through the kernel: `soci-erofs` images, a real device, and real mounts in a temporary
//! directory.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal};
use soci_erofs::{Attributes, Image, Inode, Kind, NodeId};

use super::*;
use crate::device::testing::{Double, LONG, apart, begin, bytes, unavailable};
use crate::layer::{DeviceFile, ReadDone};

mod completion;
mod file;
mod hands;
mod kernels;
mod killed;
mod many;
mod reading;
mod ways;

/// A layer as the store lays it out: its metadata image and its data.
struct Layer {
    meta: Vec<u8>,
    data: Bytes,
    files: BTreeMap<&'static str, (u64, u64)>,
}

impl Layer {
    /// Files with pseudo-random content. Each starts on a page boundary and is padded with zeros.
    fn new(files: &[(&'static str, u64)]) -> Layer {
        let blocks = |size: u64| size.div_ceil(4096);
        let total = files.iter().map(|(_, size)| blocks(*size)).sum();
        let folder = Attributes {
            mode: 0o755,
            ..Attributes::default()
        };
        let mut image = Image::new(total, folder).unwrap();
        let mut data = Vec::new();
        let mut places = BTreeMap::new();
        for &(name, size) in files {
            let start = data.len() as u64;
            let kind = Kind::Regular {
                size,
                data_block: start / 4096,
            };
            let inode = image
                .inode(&Inode {
                    kind,
                    attributes: folder,
                })
                .unwrap();
            image.link(NodeId::ROOT, name.as_bytes(), inode).unwrap();
            data.extend(bytes(start, u32::try_from(size).unwrap()));
            data.resize(usize::try_from(start + blocks(size) * 4096).unwrap(), 0);
            places.insert(name, (start, size));
        }
        let mut meta = Vec::new();
        image.write(&mut meta).unwrap();
        Layer {
            meta,
            data: data.into(),
            files: places,
        }
    }

    fn content(&self, name: &str) -> Bytes {
        let (start, size) = self.files[name];
        let start = usize::try_from(start).unwrap();
        self.data
            .slice(start..start + usize::try_from(size).unwrap())
    }

    fn slice(&self, offset: u64, len: u32) -> Bytes {
        let offset = usize::try_from(offset).unwrap();
        self.data.slice(offset..offset + len as usize)
    }
}

/// Reads that have not been answered.
type Waiting = Arc<Mutex<Vec<(u64, u32, ReadDone)>>>;

/// A state directory with a device, a mount thread and one layer. All mounts are removed on drop.
struct World {
    folder: tempfile::TempDir,
    device: Arc<Device>,
    thread: MountThread,
    mounter: Arc<dyn Mounter>,
    layer: Arc<Layer>,
    /// Number of READs of the layer so far.
    reads: Arc<AtomicUsize>,
}

impl World {
    fn new(layer: Layer) -> World {
        World::on(Way::Loop, layer)
    }

    fn on(way: Way, layer: Layer) -> World {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::start(&folder.path().join("device"), 2).unwrap();
        let thread = MountThread::start().unwrap();
        let mounter = chosen(way).mounter(folder.path(), &thread);
        std::fs::write(folder.path().join("meta"), &layer.meta).unwrap();
        std::fs::write(folder.path().join("data"), &layer.data).unwrap();
        let reads = Arc::default();
        World {
            folder,
            device,
            thread,
            mounter,
            layer: Arc::new(layer),
            reads,
        }
    }

    /// Serves the layer with `behaviour`.
    fn serve(&self, behaviour: impl Fn(&Layer, u64, u32, ReadDone) + Send + Sync + 'static) {
        let (layer, reads) = (Arc::clone(&self.layer), Arc::clone(&self.reads));
        let size = layer.data.len() as u64;
        let behaviour = Box::new(move |offset, len, done: ReadDone| {
            reads.fetch_add(1, Ordering::SeqCst);
            behaviour(&layer, offset, len, done);
        });
        self.device.add(Arc::new(Double {
            number: 2,
            size,
            behaviour,
        }));
    }

    fn serve_at_once(&self) {
        self.serve(|layer, offset, len, done| done(Ok(layer.slice(offset, len))));
    }

    /// Makes every READ wait until the test answers it.
    fn serve_never(&self) -> Waiting {
        let waiting = Waiting::default();
        let park = Arc::clone(&waiting);
        self.serve(move |_, offset, len, done| park.lock().unwrap().push((offset, len, done)));
        waiting
    }

    fn answer(&self, waiting: &Waiting) {
        let parked = std::mem::take(&mut *waiting.lock().unwrap());
        for (offset, len, done) in parked {
            done(Ok(self.layer.slice(offset, len)));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn place(&self, name: &str) -> PathBuf {
        let at = self.path(name);
        std::fs::create_dir_all(&at).unwrap();
        at
    }

    fn image(&self, file: PathBuf, supply: Supply) -> LayerImage {
        LayerImage {
            meta: self.path("meta"),
            patch: "plain".to_owned(),
            copy: 0,
            source: LayerSource {
                number: 2,
                file,
                supply,
            },
        }
    }

    fn on_demand(&self) -> LayerImage {
        self.image(self.device.path(2), Supply::OnDemand)
    }

    fn complete(&self) -> LayerImage {
        self.image(self.path("data"), Supply::Complete)
    }

    /// Switches the layer to another source of its bytes.
    fn supply(&self, image: &LayerImage, places: &[PathBuf]) -> Result<(), MountError> {
        let shown = [(image.meta.clone(), places.to_vec())];
        wait(self.mounter.supply(&image.source, &shown))
    }

    /// The number of the loop device that is mounted at `at`.
    fn loop_at(&self, at: &Path) -> u32 {
        let table = self.table();
        let source = table.top(at).unwrap().source.clone();
        loops::index_of(source.to_str().unwrap()).unwrap()
    }

    /// The names of the files in the test's directory that are behind a loop device.
    fn files_behind_devices(&self) -> BTreeSet<String> {
        let backing = |device: loops::Attached| {
            let file = format!("/sys/block/loop{}/loop/backing_file", device.index);
            let path = std::fs::read_to_string(file).ok()?;
            let name = Path::new(path.trim_end())
                .strip_prefix(self.folder.path())
                .ok()?;
            Some(name.to_str()?.to_owned())
        };
        loops::attached("soci:data:")
            .into_iter()
            .filter_map(backing)
            .collect()
    }

    /// Mounts the layer at a directory `name`, with bytes on demand.
    fn mount(&self, name: &str) -> PathBuf {
        let at = self.place(name);
        wait(self.mounter.mount(&self.on_demand(), &at)).unwrap();
        at
    }

    fn wait_parked(&self, count: usize) {
        until(|| self.device.parked() >= count);
    }

    fn table(&self) -> MountTable {
        MountTable::read().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Stop the device first: an unmount waits for reads that are still parked.
        self.device.stop();
        let gone = wait(detach_all_under(&self.thread, self.folder.path()));
        if !std::thread::panicking() {
            gone.unwrap();
        }
    }
}

fn chosen(way: Way) -> Chosen {
    Chosen {
        way,
        xino: true,
        owners: None,
        reason: "a test".to_owned(),
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(LONG, future)
            .await
            .expect("the future completes in time")
    })
}

fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "the condition does not become true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let path = path.to_path_buf();
    apart(|| std::fs::read(path))
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}
