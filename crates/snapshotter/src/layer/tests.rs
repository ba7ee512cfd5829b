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
    cpu::Cpu,
    fetch::{self, Scheduler},
    places::LEAD,
    store::{LayerStore, StoreError, proofs::Proof, sources::Origin},
};

mod damage;
mod edges;
mod full;
mod lives;
mod made;
mod prove;
mod scrub;
mod sources;
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
            .join(crate::store::FOLDER)
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
    Source::new("registry.example", "app", fetcher)
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
            expected: made.expected(),
            origin: origin(),
            source: source(fetcher),
        };
        self.layers.open_lazy(lazy).await
    }
}

/// Bytes of the first file.
const FIRST: Range<u64> = LEAD..LEAD + 100;

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

/// The same, and waits until the spans are in the store: a read is answered from memory before.
async fn store(layer: &Arc<Layer>, range: Range<u64>) {
    for _ in 0..2 {
        read(layer, range.clone()).await.expect("bytes");
    }
}

async fn completes(layer: &Arc<Layer>) {
    let mut complete = layer.completion();
    let wait = complete.wait_for(|complete| *complete);
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("not complete: {:?}", layer.progress()))
        .expect("the layer lives");
}

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
            // Around the contents: what is in front of them and behind is there without a span.
            let around = layer.places().contents();
            let around = around.start - 50_000..around.end + 50_000;
            let start = around.start + (seed >> 20) % (around.end - around.start);
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
            let (layer, contents) = (Arc::clone(&layer), layer.places().contents());
            let start = contents.start + i * 1000 % (contents.end - contents.start);
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
async fn a_read_that_waited_tells_for_what() {
    let made = Made::new(Form::Gzip, 20, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let delay = FetchFault::Delay(Duration::from_millis(100));
    let blob = Arc::new(FaultyFetcher::new(made.layer.clone(), [delay]));
    let layer = life.open(&made, blob).await;
    store(&layer, FIRST).await;
    // Noted behind the answer. The second read may have waited for the write, and may be noted first.
    let begin = std::time::Instant::now();
    let wait = loop {
        let long = |wait: &ReadWait| wait.took_us >= 99_000;
        if let Some(wait) = life.layers.waits().into_iter().find(long) {
            break wait;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing noted");
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert_eq!(
        (wait.offset, wait.bytes),
        (FIRST.start, FIRST.end - FIRST.start)
    );
    assert_eq!(
        (wait.number, &*wait.layer),
        (layer.number().0, &*layer.digest().to_string())
    );
    let longest = wait.spans.iter().map(|span| span.wire_us).max();
    assert!(longest.is_some_and(|wire| wire >= 99_000), "{wait:#?}");
    assert!(wait.error.is_none());
    // What is here is not waited for.
    read(&layer, FIRST).await.expect("bytes");
    assert!(life.layers.waits().len() <= 2);
    let begin = std::time::Instant::now();
    while layer.spans.under_way() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "a span is left");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
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
    read(&layer, FIRST).await.expect_err("the budget is spent");
    assert!(
        begin.elapsed() > Duration::from_millis(1200),
        "{:?}",
        begin.elapsed()
    );
    let begin = std::time::Instant::now();
    read(&layer, FIRST).await.expect_err("at once");
    assert!(
        begin.elapsed() < Duration::from_millis(500),
        "{:?}",
        begin.elapsed()
    );
    blob.set_online(true);
    completes(&layer).await;
    read(&layer, FIRST).await.expect("bytes");
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
        async move { read(&layer, FIRST).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    life.layers.remove(&layer.key()).await.expect("removed");
    let error = waiting.await.expect("no panic").expect_err("removed");
    assert!(matches!(error, ReadError::Removed { .. }), "{error}");
    assert!(!folder.exists());
    assert!(life.layers.store().list().is_empty());
    read(&layer, FIRST).await.expect_err("removed");
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
    // One that is complete serves for others only when its tar was found to be theirs.
    life.layers.complete(&a);
    completes(&a).await;
    let third = made.with_span_size(48 << 10);
    assert_ne!(life.open(&third, blob()).await.number(), a.number());
    life.layers.prove(&a).await.expect("found out");
    let fourth = made.with_span_size(40 << 10);
    assert!(Arc::ptr_eq(&life.open(&fourth, blob()).await, &a));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_under_a_foreign_digest_serve_nobody_else() {
    let good = Made::new(Form::Plain, 40, 16 << 10);
    // Other bytes under the good layer's digest, with an index that is true to them: its registry is in it.
    let mut forged = good.clone();
    let at = LEAD_FILE;
    forged.layer[at] ^= 1;
    forged.build(16 << 10);
    let node = Node::new();
    let life = node.start();
    let named = |made: &Made, expected| Lazy {
        layer: good.descriptor(),
        ztoc: made.ztoc_descriptor(),
        bytes: Some(made.ztoc.clone().into()),
        expected,
        origin: origin(),
        source: source(Arc::new(MemoryBlob::new(made.layer.clone()))),
    };
    let foreign = Expected::DiffId(Digest::sha256(&forged.layer));
    let bad = life
        .layers
        .open_lazy(named(&forged, foreign))
        .await
        .expect("opens");
    life.layers.complete(&bad);
    completes(&bad).await;
    let proof = life.layers.prove(&bad).await.expect("found out");
    assert_eq!(proof, Proof::Tar(Digest::sha256(&forged.layer)));
    let layer = life
        .layers
        .open_lazy(named(&good, good.expected()))
        .await
        .expect("opens");
    assert_ne!(layer.number(), bad.number());
    let data = read(&layer, 0..layer.data_size()).await.expect("bytes");
    assert_eq!(&data[..], &good.data()[..]);
    let blob = Arc::new(MemoryBlob::new(good.layer.clone()));
    let pulled = whole::pull(&life, &good, Digest::sha256(&good.tar), blob).await;
    let whole = pulled.expect("both digests are right");
    assert_ne!(whole.number(), bad.number());
}

/// An offset in the content of the first file with content.
const LEAD_FILE: usize = 2 * 512 + 512;

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
        expected: Expected::Unknown,
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
        std::fs::read_dir(node.root.path().join(crate::store::FOLDER))
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
