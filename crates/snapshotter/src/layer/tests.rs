#![allow(
    clippy::cast_possible_truncation,
    reason = "offsets of small test layers"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a test waits for every task that it spawns"
)]

use std::{num::NonZeroUsize, os::unix::fs::FileExt, time::Duration};

use soci_oci::{
    fetch::Fetcher,
    testing::{FaultyFetcher, FetchFault, MemoryBlob},
};
use tempfile::TempDir;

use super::*;
use crate::{
    fetch,
    store::{StoreError, sources::Origin},
};

mod made;
mod whole;

use made::{Form, Made};

/// A node: its folder outlives the process parts, which can be started again.
struct Node {
    root: TempDir,
    boot: String,
}

/// One life of the process.
struct Life {
    layers: Arc<Layers>,
}

impl Node {
    fn new() -> Node {
        Node {
            root: tempfile::tempdir().expect("a folder"),
            boot: "boot-1".to_owned(),
        }
    }

    fn start(&self) -> Life {
        self.start_with(Options::default(), fetch::Options::default())
    }

    fn start_with(&self, options: Options, fetch: fetch::Options) -> Life {
        Life {
            layers: start_in(self.root.path(), &self.boot, options, fetch),
        }
    }

    fn file(&self, layer: &Layer, name: &str) -> PathBuf {
        self.root
            .path()
            .join("layers")
            .join(layer.number().to_string())
            .join(name)
    }
}

fn start_in(
    root: &std::path::Path,
    boot: &str,
    options: Options,
    fetch: fetch::Options,
) -> Arc<Layers> {
    let runtime = tokio::runtime::Handle::current();
    let two = NonZeroUsize::new(2).expect("two");
    let cpu = Cpu::with_idle(two, drop_scratch).expect("threads");
    let fetch = Scheduler::start(fetch, &runtime);
    let store = Arc::new(LayerStore::open(root, Some(boot)).expect("a store"));
    let pause = Duration::from_millis(20);
    let options = Options {
        pause: (pause, pause),
        ..options
    };
    Layers::new(store, cpu, fetch, options, &runtime)
}

fn origin() -> Origin {
    Origin {
        reference: "registry.example/app:1".to_owned(),
        manifest: Digest::sha256(b"manifest").to_string(),
        index: None,
        found: "a test".to_owned(),
    }
}

fn source(fetcher: Arc<dyn Fetcher>) -> Source {
    Source {
        name: Arc::from("registry.example"),
        fetcher,
    }
}

impl Life {
    async fn open(&self, made: &Made, fetcher: Arc<dyn Fetcher>) -> Arc<Layer> {
        self.try_open(made, fetcher).await.expect("the layer opens")
    }

    async fn try_open(
        &self,
        made: &Made,
        fetcher: Arc<dyn Fetcher>,
    ) -> Result<Arc<Layer>, OpenError> {
        let lazy = Lazy {
            layer: made.descriptor(),
            ztoc: made.ztoc_descriptor(),
            bytes: Some(made.ztoc.clone().into()),
            origin: origin(),
            source: source(fetcher),
        };
        self.layers.open_lazy(lazy).await
    }
}

async fn read(layer: &Arc<Layer>, range: Range<u64>) -> Result<Bytes, ReadError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    layer.read(
        range,
        Box::new(move |result| {
            drop(tell.send(result));
        }),
    );
    told.await.expect("every read is answered")
}

async fn completes(layer: &Arc<Layer>) {
    let mut complete = layer.completion();
    let wait = complete.wait_for(|complete| *complete);
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("not complete: {:?}", layer.progress()))
        .expect("the layer lives");
}

use std::ops::Range;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_reads_equal_the_tar() {
    for form in [Form::Gzip, Form::Members, Form::Plain] {
        let made = Made::new(form, 60, 16 << 10);
        assert!(made.spans() > 4, "{form:?}: {} spans", made.spans());
        let node = Node::new();
        let life = node.start();
        let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
        let layer = life.open(&made, Arc::clone(&blob) as _).await;
        let data = made.data();
        assert_eq!(layer.data_size(), data.len() as u64);
        let mut seed = 7_u64;
        for _ in 0..200 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = (seed >> 20) % layer.data_size();
            let len = 1 + (seed >> 40) % 40_000;
            let range = start..(start + len).min(layer.data_size());
            let bytes = read(&layer, range.clone()).await.expect("bytes");
            assert_eq!(
                &bytes[..],
                &data[range.start as usize..range.end as usize],
                "{form:?} {range:?}"
            );
        }
        let overlaps = made.spans() as u64 * 2;
        assert!(
            blob.bytes_sent() <= made.layer.len() as u64 + overlaps,
            "nothing came twice"
        );
        assert!(read(&layer, 0..layer.data_size() + 1).await.is_err());
        assert!(read(&layer, 5..5).await.expect("an empty read").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_at_once_cost_one_fetch() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(FaultyFetcher::new(
        made.layer.clone(),
        [FetchFault::Delay(Duration::from_millis(100))],
    ));
    let layer = life.open(&made, Arc::clone(&blob) as _).await;
    let data = made.data();
    let reads: Vec<_> = (0..64_u64)
        .map(|i| {
            let (layer, start) = (Arc::clone(&layer), i * 1000 % layer.data_size());
            let end = (start + 30_000).min(layer.data_size());
            tokio::spawn(async move { (start..end, read(&layer, start..end).await) })
        })
        .collect();
    for reader in reads {
        let (range, bytes) = reader.await.expect("no panic");
        let bytes = bytes.expect("bytes");
        assert_eq!(&bytes[..], &data[range.start as usize..range.end as usize]);
    }
    let overlaps = made.spans() as u64 * 2;
    assert!(blob.blob().bytes_sent() <= made.layer.len() as u64 + overlaps);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupt_bytes_are_never_given_out() {
    let made = Made::new(Form::Gzip, 20, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let flips = std::iter::repeat_n(FetchFault::Flip(5000), 4);
    let blob = Arc::new(FaultyFetcher::new(made.layer.clone(), flips));
    let layer = life.open(&made, Arc::clone(&blob) as _).await;
    let first = layer.places().file(0).expect("a file");
    let wanted = first.data..first.data + first.size;
    for _ in 0..2 {
        let error = read(&layer, wanted.clone()).await.expect_err("wrong bytes");
        assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("registry.example/app:1") && text.contains("span 0"),
            "{text}"
        );
        assert!(layer.progress().spans_present == 0);
        let mut stored = vec![0; first.size as usize];
        layer
            .files
            .data
            .read_exact_at(&mut stored, first.data)
            .expect("readable");
        assert!(
            stored.iter().all(|byte| *byte == 0),
            "nothing unverified is in the store"
        );
    }
    // The registry is right again: nothing wrong was remembered.
    let bytes = read(&layer, wanted).await.expect("bytes");
    assert_eq!(
        &bytes[..],
        &made.data()[first.data as usize..][..first.size as usize]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_were_damaged_once_are_fetched_again() {
    let made = Made::new(Form::Gzip, 20, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(FaultyFetcher::new(
        made.layer.clone(),
        [FetchFault::Flip(5000)],
    ));
    let layer = life.open(&made, blob).await;
    let range = 0..layer.data_size();
    assert_eq!(
        &read(&layer, range).await.expect("bytes")[..],
        &made.data()[..]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_header_disagrees_is_an_error_for_ever() {
    let mut made = Made::new(Form::Gzip, 30, 16 << 10);
    made.lie_about("file-7-name");
    let liar = made.file_index("file-7-");
    let node = Node::new();
    let life = node.start();
    let layer = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    let check = async |layer: &Arc<Layer>, when: &str| {
        let data = made.data();
        for index in 0..layer.places().files() {
            let file = layer.places().file(index).expect("a file");
            let range = file.data..file.data + file.size;
            match read(layer, range.clone()).await {
                Ok(bytes) => {
                    assert_ne!(index, liar, "{when}");
                    assert_eq!(&bytes[..], &data[range.start as usize..range.end as usize]);
                }
                Err(error) => {
                    assert!(matches!(error, ReadError::Header { .. }), "{error}");
                    assert_eq!(index, liar, "{when}: {error}");
                }
            }
        }
        assert!(!layer.is_complete(), "{when}");
    };
    check(&layer, "on demand").await;
    life.layers.complete(&layer);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(layer.progress().spans_present, made.spans());
    check(&layer, "after completion").await;
    assert!(
        layer
            .progress()
            .last_error
            .is_some_and(|error| error.contains("disagree"))
    );
    drop((layer, life));
    let life = node.start();
    let key = life.layers.store().list()[0].1;
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("is there");
    check(&layer, "after a restart").await;
    drop((layer, life));
    // Who switches the check off gets what is stored.
    let trusting = Options {
        trust_headers: true,
        ..Options::default()
    };
    let life = node.start_with(trusting, fetch::Options::default());
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("is there");
    assert_eq!(
        read(&layer, 0..layer.data_size())
            .await
            .expect("bytes")
            .len(),
        made.data().len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completion_brings_everything_and_lasts() {
    let made = Made::new(Form::Members, 80, 16 << 10);
    let mut node = Node::new();
    let life = node.start();
    let faults = [
        FetchFault::Refuse,
        FetchFault::Cut(3000),
        FetchFault::Flip(9000),
    ];
    let layer = life
        .open(
            &made,
            Arc::new(FaultyFetcher::new(made.layer.clone(), faults)),
        )
        .await;
    assert!(!layer.is_complete());
    life.layers.complete(&layer);
    life.layers.complete(&layer);
    completes(&layer).await;
    let progress = layer.progress();
    assert_eq!(
        (progress.spans_present, progress.complete),
        (made.spans(), true)
    );
    let (key, number) = (layer.key(), layer.number());
    assert_eq!(
        std::fs::read(layer.data_path()).expect("readable"),
        made.data()
    );
    drop((layer, life));
    // A power loss after that changes nothing, and nobody has to be asked.
    node.boot = "boot-2".to_owned();
    let life = node.start();
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("is there");
    assert_eq!(layer.number(), number);
    assert!(layer.is_complete() && !layer.has_source());
    assert_eq!(
        &read(&layer, 0..layer.data_size()).await.expect("bytes")[..],
        &made.data()[..]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_what_is_present_needs_no_registry() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let mut node = Node::new();
    let life = node.start();
    let layer = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    let (first, last) = (
        layer.places().file(0),
        layer.places().file(layer.places().files() - 1),
    );
    let (first, last) = (first.expect("a file"), last.expect("a file"));
    let first = first.data..first.data + first.size;
    let last = last.data..last.data + last.size;
    read(&layer, first.clone()).await.expect("bytes");
    let key = layer.key();
    drop((layer, life));
    // Same boot: what was written is there. Missing bytes fail at once without a source.
    let life = node.start();
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("is there");
    let bytes = read(&layer, first.clone()).await.expect("bytes");
    assert_eq!(
        &bytes[..],
        &made.data()[first.start as usize..first.end as usize]
    );
    let error = read(&layer, last.clone()).await.expect_err("nobody to ask");
    assert!(matches!(error, ReadError::Fetch { .. }), "{error}");
    layer.add_source(source(Arc::new(MemoryBlob::new(made.layer.clone()))));
    read(&layer, last.clone()).await.expect("bytes");
    life.layers.sync_all().await;
    let durable = layer.progress().spans_present;
    let third = layer
        .places()
        .file(layer.places().files() / 2)
        .expect("a file");
    read(&layer, third.data..third.data + 1)
        .await
        .expect("bytes");
    assert!(layer.progress().spans_present > durable);
    drop((layer, life));
    // Another boot: only what was synced.
    node.boot = "boot-2".to_owned();
    let life = node.start();
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("is there");
    assert_eq!(layer.progress().spans_present, durable);
    read(&layer, first).await.expect("bytes");
    read(&layer, third.data..third.data + 1)
        .await
        .expect_err("nobody to ask");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torn_files_are_made_again_after_a_power_loss() {
    let made = Made::new(Form::Gzip, 30, 16 << 10);
    let mut node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let layer = life.open(&made, blob()).await;
    layer
        .write_meta("a1", |to| to.write_all(b"an image"))
        .expect("written");
    assert!(layer.meta("a1").expect("readable").is_some());
    let (places, meta, ztoc) = (
        node.file(&layer, "places"),
        node.file(&layer, "meta-a1"),
        node.file(&layer, "ztoc"),
    );
    let (key, number) = (layer.key(), layer.number());
    drop((layer, life));
    let tear = |path: &std::path::Path| {
        // Another file under the name: what is still mapped must not be cut.
        let whole = std::fs::read(path).expect("is there");
        let torn = path.with_extension("torn");
        std::fs::write(&torn, &whole[..whole.len() / 2]).expect("written");
        std::fs::rename(&torn, path).expect("renamed");
    };
    tear(&places);
    tear(&meta);
    node.boot = "boot-2".to_owned();
    let life = node.start();
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("is there");
    assert!(
        layer.meta("a1").expect("readable").is_none(),
        "to be written again"
    );
    layer.add_source(source(blob()));
    assert_eq!(
        &read(&layer, 0..layer.data_size()).await.expect("bytes")[..],
        &made.data()[..]
    );
    drop((layer, life));
    tear(&ztoc);
    node.boot = "boot-3".to_owned();
    let life = node.start();
    assert!(
        life.layers
            .open_present(&key)
            .await
            .expect("no error")
            .is_none()
    );
    let layer = life.open(&made, blob()).await;
    assert!(layer.number() > number, "numbers are not used again");
    assert_eq!(
        &read(&layer, 0..layer.data_size()).await.expect("bytes")[..],
        &made.data()[..]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_wait_for_the_registry_and_fail_when_the_budget_is_spent() {
    let made = Made::new(Form::Gzip, 20, 16 << 10);
    let node = Node::new();
    let budget = fetch::Options {
        read_budget: Duration::from_millis(1500),
        ..fetch::Options::default()
    };
    let life = node.start_with(Options::default(), budget);
    let blob = Arc::new(FaultyFetcher::new(made.layer.clone(), []));
    let layer = life.open(&made, Arc::clone(&blob) as _).await;
    let all = 0..layer.data_size();
    blob.set_online(false);
    life.layers.complete(&layer);
    let waiting = tokio::spawn({
        let (layer, all) = (Arc::clone(&layer), all.clone());
        async move { read(&layer, all).await }
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!waiting.is_finished());
    blob.set_online(true);
    waiting.await.expect("no panic").expect("bytes, late");
    completes(&layer).await;

    let other = Made::new(Form::Gzip, 21, 16 << 10);
    let blob = Arc::new(FaultyFetcher::new(other.layer.clone(), []));
    blob.set_online(false);
    let layer = life.open(&other, Arc::clone(&blob) as _).await;
    life.layers.complete(&layer);
    let begin = std::time::Instant::now();
    read(&layer, 0..100).await.expect_err("the budget is spent");
    assert!(
        begin.elapsed() > Duration::from_millis(1200),
        "{:?}",
        begin.elapsed()
    );
    let begin = std::time::Instant::now();
    read(&layer, 0..100).await.expect_err("at once");
    assert!(
        begin.elapsed() < Duration::from_millis(500),
        "{:?}",
        begin.elapsed()
    );
    blob.set_online(true);
    completes(&layer).await;
    read(&layer, 0..100).await.expect("bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_layer_answers_who_waits_and_leaves_nothing() {
    let made = Made::new(Form::Gzip, 20, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(FaultyFetcher::new(
        made.layer.clone(),
        [FetchFault::Stall(0)],
    ));
    let layer = life.open(&made, blob).await;
    let folder = node
        .file(&layer, "data")
        .parent()
        .expect("a folder")
        .to_owned();
    let waiting = tokio::spawn({
        let layer = Arc::clone(&layer);
        async move { read(&layer, 0..100).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    life.layers.remove(&layer.key()).await.expect("removed");
    let error = waiting.await.expect("no panic").expect_err("removed");
    assert!(matches!(error, ReadError::Removed { .. }), "{error}");
    assert!(!folder.exists());
    assert!(life.layers.store().list().is_empty());
    read(&layer, 0..100).await.expect_err("removed");
    let again = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    assert_ne!(again.number(), layer.number());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_layer_for_two_images_and_another_for_another_ztoc() {
    let made = Made::new(Form::Gzip, 40, 16 << 10);
    let other = made.with_span_size(64 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let (a, b) = tokio::join!(life.open(&made, blob()), life.open(&made, blob()));
    assert!(Arc::ptr_eq(&a, &b));
    let c = life.open(&other, blob()).await;
    assert_ne!(a.number(), c.number());
    assert_eq!(life.layers.store().find(&made.descriptor().digest).len(), 2);
    // Once one of them is complete it serves for both.
    life.layers.complete(&a);
    completes(&a).await;
    let third = made.with_span_size(48 << 10);
    assert!(Arc::ptr_eq(&life.open(&third, blob()).await, &a));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ztoc_that_is_not_the_one_or_not_for_the_layer_is_refused() {
    let made = Made::new(Form::Gzip, 10, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let refused = |error: OpenError| match error {
        OpenError::Store(error) => error,
        other => panic!("{other}"),
    };
    let mut wrong = made.clone();
    wrong.ztoc[100] ^= 1;
    let lazy = Lazy {
        layer: made.descriptor(),
        ztoc: made.ztoc_descriptor(),
        bytes: Some(wrong.ztoc.clone().into()),
        origin: origin(),
        source: source(blob()),
    };
    let error = refused(
        life.layers
            .open_lazy(lazy)
            .await
            .expect_err("another digest"),
    );
    assert!(matches!(error, StoreError::ZtocDigest { .. }), "{error}");
    wrong.ztoc.truncate(50);
    let error = refused(life.try_open(&wrong, blob()).await.expect_err("malformed"));
    assert!(matches!(error, StoreError::Ztoc { .. }), "{error}");
    let mut longer = made.clone();
    longer.layer.push(0);
    let error = refused(
        life.try_open(&longer, blob())
            .await
            .expect_err("another size"),
    );
    assert!(matches!(error, StoreError::Size { .. }), "{error}");
    assert_eq!(
        std::fs::read_dir(node.root.path().join("layers"))
            .expect("readable")
            .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_that_does_not_fit_in_memory_is_refused() {
    use std::io::Read as _;
    let content = 129_u64 << 20;
    let header = made::header("big", b'0', content);
    let tar = header.chain(std::io::repeat(0).take(content + 1024));
    let options = soci_ztoc::BuildOptions {
        span_size: 1 << 30,
        ..Default::default()
    };
    let built = soci_ztoc::Builder::new(options).build(tar, soci_ztoc::Compression::Plain);
    let mut ztoc = Vec::new();
    built.expect("a zTOC").encode(&mut ztoc).expect("encoded");
    let layer = soci_oci::Descriptor::new("layer", Digest::sha256(b"big"), content + 1536);
    let named = soci_oci::Descriptor::of("ztoc", &ztoc);
    let node = Node::new();
    let store = LayerStore::open(node.root.path(), Some("boot")).expect("a store");
    let error = store
        .create_lazy(&layer, &named, &ztoc, origin())
        .expect_err("too large");
    assert!(matches!(error, StoreError::Span { span: 0, .. }), "{error}");
}

/// A small file system of its own; none where this process may not mount.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().expect("a folder");
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("no zero byte");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(
            "tmpfs",
            folder.path(),
            "tmpfs",
            flags,
            Some(options.as_c_str()),
        )
        .ok()?;
        Some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.0.path(), flags).expect("our own mount");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_reads_are_served_from_memory() {
    let made = Made::new(Form::Gzip, 120, 64 << 10);
    let data = made.data();
    // Without the right to mount there is no small disk; the same path is then covered by the next test.
    let Some(disk) = SmallDisk::new(20 << 20) else {
        return;
    };
    let filler = disk.0.path().join("filler");
    let life = Life {
        layers: start_in(
            disk.0.path(),
            "boot",
            Options::default(),
            fetch::Options::default(),
        ),
    };
    let layer = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    let free = life.layers.store().free().expect("statvfs");
    std::fs::write(&filler, vec![1; (free - (256 << 10)) as usize]).expect("room for it");
    life.layers.complete(&layer);
    for start in (0..layer.data_size()).step_by(50_000) {
        let range = start..(start + 70_000).min(layer.data_size());
        let bytes = read(&layer, range.clone())
            .await
            .expect("bytes from memory");
        assert_eq!(
            &bytes[..],
            &data[range.start as usize..range.end as usize],
            "{range:?}"
        );
    }
    assert!(layer.progress().spans_present < made.spans());
    assert!(!layer.is_complete());
    std::fs::remove_file(&filler).expect("removed");
    completes(&layer).await;
    assert_eq!(std::fs::read(layer.data_path()).expect("readable"), data);
    drop((layer, life));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_nothing_still_lets_reads_through() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let mut files = life
        .layers
        .store()
        .create_lazy(
            &made.descriptor(),
            &made.ztoc_descriptor(),
            &made.ztoc,
            origin(),
        )
        .expect("files");
    files.data = std::fs::File::open(files.data_path()).expect("read only");
    let layer = Layer::new(Arc::clone(&life.layers.context), files, vec![source(blob)]);
    let data = made.data();
    for start in (0..layer.data_size()).step_by(30_000) {
        let range = start..(start + 60_000).min(layer.data_size());
        let bytes = read(&layer, range.clone())
            .await
            .expect("bytes from memory");
        assert_eq!(
            &bytes[..],
            &data[range.start as usize..range.end as usize],
            "{range:?}"
        );
    }
    assert_eq!(layer.progress().spans_present, 0);
}
