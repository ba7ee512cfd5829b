//! A layer from its compressed bytes to a mounted directory: zTOC, store, scheduler, tree, image,
//! device and mount together, without containerd.
//!
//! Other processes (`diff`, `cat`) read below a mount, because this process serves it.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use soci_oci::{Descriptor, Digest};
use soci_registry::testing::{FaultyFetcher, FetchFault, noise};
use soci_snapshotter::cpu::Cpu;
use soci_snapshotter::device::Device;
use soci_snapshotter::fetch::{self, Scheduler, Source};
use soci_snapshotter::layer::{self, DeviceFile, Layer, Layers, Lazy};
use soci_snapshotter::mount::table::MountTable;
use soci_snapshotter::mount::thread::MountThread;
use soci_snapshotter::mount::{
    Allowed, LayerImage, LayerSource, Mounter, Supply, choose, detach_all_under,
};
use soci_snapshotter::store::LayerStore;
use soci_snapshotter::store::sources::Origin;
use soci_snapshotter::tree::{Patch, Rules, Tree};
use soci_ztoc::{BuildOptions, Builder, Compression};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Time limit of each step; longer means that it hangs.
const LONG: Duration = Duration::from_secs(60);

/// How long reads wait during an outage in these tests.
const BUDGET: Duration = Duration::from_secs(2);

/// Small, so that a small layer has many spans.
const SPAN: u64 = 256 << 10;

/// A compressed layer, its zTOC, and the directory it was made from.
struct Sample {
    folder: TempDir,
    blob: Vec<u8>,
    ztoc: Vec<u8>,
}

impl Sample {
    fn new() -> Sample {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        for index in 0..60_u64 {
            let sub = tree.join(format!("dir{}", index % 7));
            std::fs::create_dir_all(&sub).unwrap();
            let len = usize::try_from(index * index * 37 % 70_000).unwrap();
            std::fs::write(sub.join(format!("file{index}")), noise(index, len)).unwrap();
        }
        std::fs::write(tree.join("big"), noise(99, 3_000_000)).unwrap();
        std::fs::write(tree.join("empty"), "").unwrap();
        std::os::unix::fs::symlink("dir1/file1", tree.join("link")).unwrap();
        std::fs::hard_link(tree.join("big"), tree.join("same")).unwrap();
        let tar = Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .args(["-czf", "-", "."])
            .output()
            .unwrap();
        assert!(tar.status.success());
        let options = BuildOptions {
            span_size: SPAN,
            ..BuildOptions::default()
        };
        let mut built = Builder::new(options)
            .build(&tar.stdout[..], Compression::Gzip)
            .unwrap();
        let mut ztoc = Vec::new();
        built.encode(&mut ztoc).unwrap();
        Sample {
            folder,
            blob: tar.stdout,
            ztoc,
        }
    }

    fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        urls: Vec::new(),
        annotations: Default::default(),
        data: Vec::new(),
        platform: None,
        artifact_type: String::new(),
    }
}

/// The engine of a daemon in one directory. Mounts are removed on drop.
struct Node {
    runtime: Runtime,
    root: PathBuf,
    device: Arc<Device>,
    thread: MountThread,
    mounter: Arc<dyn Mounter>,
    layers: Arc<Layers>,
    blob: Arc<FaultyFetcher>,
}

impl Node {
    fn start(root: &Path, sample: &Sample, script: Vec<FetchFault>) -> Node {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let root = root.canonicalize().unwrap();
        let thread = MountThread::start().unwrap();
        runtime.block_on(detach_all_under(&thread, &root)).unwrap();
        let device = Device::start(&root.join("device"), 2).unwrap();
        let chosen = runtime.block_on(choose(Allowed::Auto, &root, &device, &thread));
        let mounter = chosen.unwrap().mounter(&root, &thread);
        let cpu = Cpu::new(NonZeroUsize::new(2).unwrap()).unwrap();
        let options = fetch::Options {
            read_budget: BUDGET,
            ..fetch::Options::default()
        };
        let scheduler = Scheduler::start(options, runtime.handle());
        let store = Arc::new(LayerStore::open(&root, None).unwrap());
        let pause = (Duration::from_millis(50), Duration::from_millis(200));
        let options = layer::Options {
            pause,
            ..layer::Options::default()
        };
        let layers = Layers::new(store, cpu, scheduler, options, runtime.handle());
        let blob = Arc::new(FaultyFetcher::new(sample.blob.clone(), script));
        Node {
            runtime,
            root,
            device,
            thread,
            mounter,
            layers,
            blob,
        }
    }

    fn open(&self, sample: &Sample) -> Arc<Layer> {
        let lazy = Lazy {
            layer: descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &sample.blob),
            ztoc: descriptor("application/octet-stream", &sample.ztoc),
            bytes: Some(sample.ztoc.clone().into()),
            expected: layer::Expected::Unknown,
            origin: Origin {
                reference: "registry.test/image:1".to_owned(),
                manifest: Digest::sha256(b"manifest").to_string(),
                index: None,
                found: "set by the test".to_owned(),
            },
            source: Source::new("registry.test", "image", Arc::clone(&self.blob) as _),
        };
        self.runtime.block_on(self.layers.open_lazy(lazy)).unwrap()
    }

    /// The layer's metadata image, created from its table of contents if necessary.
    fn meta(&self, layer: &Arc<Layer>) -> PathBuf {
        let patch = Patch::plain(Rules {
            base: true,
            user_namespace: false,
        });
        if let Some(meta) = layer.meta(&patch.key()).unwrap() {
            return meta;
        }
        let entries = layer.entries().unwrap();
        let places = layer.places();
        let block_of = |ordinal: usize| Some(places.data_of(u32::try_from(ordinal).ok()?)? / 4096);
        let tree = Tree::build(entries.iter(), layer.data_size() / 4096, block_of, &patch).unwrap();
        let write = |out: &mut dyn std::io::Write| {
            tree.image()
                .write(out)
                .map(|_| ())
                .map_err(std::io::Error::other)
        };
        layer.write_meta(&patch.key(), write).unwrap()
    }

    fn source(layer: &Arc<Layer>, file: PathBuf, supply: Supply) -> LayerSource {
        LayerSource {
            number: layer.number().0,
            file,
            supply,
        }
    }

    fn on_demand(&self, layer: &Arc<Layer>) -> LayerImage {
        let file = self.device.path(layer.number().0);
        LayerImage {
            meta: self.meta(layer),
            patch: "plain".to_owned(),
            copy: 0,
            source: Self::source(layer, file, Supply::OnDemand),
        }
    }

    /// Mounts the layer with bytes on demand.
    fn mount(&self, layer: &Arc<Layer>) -> PathBuf {
        self.device.add(Arc::clone(layer) as Arc<dyn DeviceFile>);
        let at = self.root.join("at");
        std::fs::create_dir_all(&at).unwrap();
        self.runtime
            .block_on(self.mounter.mount(&self.on_demand(layer), &at))
            .unwrap();
        at
    }

    /// Downloads the rest and waits for it.
    fn finish(&self, layer: &Arc<Layer>) {
        self.layers.complete(layer);
        let mut completion = layer.completion();
        let complete = completion.wait_for(|complete| *complete);
        let waited = self
            .runtime
            .block_on(async { tokio::time::timeout(LONG, complete).await });
        assert!(
            waited.is_ok_and(|seen| seen.is_ok()),
            "{:?}",
            layer.progress()
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The device first, because an unmount waits for unanswered reads.
        self.device.stop();
        let gone = self
            .runtime
            .block_on(detach_all_under(&self.thread, &self.root));
        if !std::thread::panicking() {
            gone.unwrap();
        }
    }
}

/// Waits for a process with a time limit. Returns whether it succeeded.
fn ends(mut process: Child) -> bool {
    let start = Instant::now();
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status.success();
        }
        if start.elapsed() > LONG {
            process.kill().unwrap();
            panic!("a reader hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn spawn(program: &str, arguments: &[&str], paths: &[&Path]) -> Child {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(paths)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Whether two directories contain the same names, links and contents.
fn same(one: &Path, other: &Path) -> bool {
    ends(spawn("diff", &["-r", "--no-dereference"], &[one, other]))
}

/// Whether every byte of a file can be read and equals that of the other file.
fn same_file(one: &Path, other: &Path) -> bool {
    ends(spawn("cmp", &["-s"], &[one, other]))
}

#[test]
fn a_layer_reads_as_unpacked_while_lazy_and_when_complete() {
    let (root, sample) = (tempfile::tempdir().unwrap(), Sample::new());
    let node = Node::start(root.path(), &sample, Vec::new());
    let layer = node.open(&sample);
    let at = node.mount(&layer);
    assert_eq!(
        layer.progress().spans_present,
        0,
        "mounting reads no byte of the layer"
    );
    assert!(same_file(
        &at.join("dir3/file38"),
        &sample.tree().join("dir3/file38")
    ));
    let progress = layer.progress();
    assert!(
        progress.spans_present < progress.spans_total,
        "{progress:?}"
    );
    assert!(same(&at, &sample.tree()));

    node.finish(&layer);
    node.blob.set_online(false);
    let data = Node::source(&layer, layer.data_path(), Supply::Complete);
    node.runtime
        .block_on(node.mounter.supply(&data, &[]))
        .unwrap();
    assert!(node.mounter.is_ours(&MountTable::read().unwrap(), &at));
    node.device.remove(layer.number().0);
    assert!(same(&at, &sample.tree()));
}

#[test]
fn readers_wait_through_an_outage_and_get_the_right_bytes() {
    let (root, sample) = (tempfile::tempdir().unwrap(), Sample::new());
    let node = Node::start(root.path(), &sample, Vec::new());
    let at = node.mount(&node.open(&sample));
    node.blob.set_online(false);
    let reader = spawn(
        "cmp",
        &["-s"],
        &[&at.join("big"), &sample.tree().join("big")],
    );
    std::thread::sleep(BUDGET / 4);
    assert!(node.device.parked() > 0, "the reader waits");
    node.blob.set_online(true);
    assert!(ends(reader));
}

#[test]
fn an_outage_longer_than_the_budget_is_an_error_and_passes() {
    let (root, sample) = (tempfile::tempdir().unwrap(), Sample::new());
    let node = Node::start(root.path(), &sample, Vec::new());
    let at = node.mount(&node.open(&sample));
    node.blob.set_online(false);
    let (file, original) = (at.join("big"), sample.tree().join("big"));
    let start = Instant::now();
    assert!(!same_file(&file, &original));
    assert!(start.elapsed() >= BUDGET, "waited {:?}", start.elapsed());
    // The budget is counted from the start of the outage, so the next reader does not wait again.
    let start = Instant::now();
    assert!(!same_file(&file, &original));
    assert!(
        start.elapsed() < BUDGET,
        "waited {:?} again",
        start.elapsed()
    );
    node.blob.set_online(true);
    let start = Instant::now();
    while !same_file(&file, &original) {
        assert!(start.elapsed() < LONG, "reads do not recover");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn corrupt_bytes_are_never_served() {
    let (root, sample) = (tempfile::tempdir().unwrap(), Sample::new());
    let node = Node::start(root.path(), &sample, Vec::new());
    let at = node.mount(&node.open(&sample));
    let middle = u64::try_from(sample.blob.len() / 2).unwrap();
    // At least as many faults as requests while the tree is read once.
    for _ in 0..64 {
        node.blob.push(FetchFault::Flip(middle));
    }
    // Reading the whole tree includes the span with the wrong byte.
    assert!(!same(&at, &sample.tree()));
    // Correct spans are kept, wrong ones are requested again.
    let start = Instant::now();
    while !same(&at, &sample.tree()) {
        assert!(start.elapsed() < LONG, "reads do not recover");
    }
}

#[test]
fn stored_data_is_read_after_a_restart_without_a_registry() {
    let (root, sample) = (tempfile::tempdir().unwrap(), Sample::new());
    let file = "dir1/file50";
    let original = sample.tree().join(file);
    let key = {
        let node = Node::start(root.path(), &sample, Vec::new());
        let layer = node.open(&sample);
        assert!(same_file(&node.mount(&layer).join(file), &original));
        layer.key()
    };
    let node = Node::start(root.path(), &sample, Vec::new());
    node.blob.set_online(false);
    let layer = node
        .runtime
        .block_on(node.layers.open_present(&key))
        .unwrap()
        .unwrap();
    assert!(layer.progress().spans_present > 0);
    let at = node.mount(&layer);
    assert!(same_file(&at.join(file), &original));
    assert!(!same(&at, &sample.tree()), "the rest is missing");
}
