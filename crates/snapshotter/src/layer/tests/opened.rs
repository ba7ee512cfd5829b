//! Opening, sharing, removing, and rejecting layers.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_a_layer_fails_waiting_reads_and_deletes_its_files() {
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
        .expect("a directory")
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
async fn images_share_a_layer_only_with_the_same_ztoc() {
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
    // A complete layer serves other images only after its tar is verified to be the one they
    // expect.
    life.layers.complete(&a);
    completes(&a).await;
    let third = made.with_span_size(48 << 10);
    assert_ne!(life.open(&third, blob()).await.number(), a.number());
    life.layers.prove(&a).await.expect("proven");
    let fourth = made.with_span_size(40 << 10);
    assert!(Arc::ptr_eq(&life.open(&fourth, blob()).await, &a));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_bytes_under_another_layers_digest_are_not_shared() {
    let good = Made::new(Form::Plain, 40, 16 << 10);
    // Other bytes under the good layer's digest, with an index that matches them, as a malicious
    // registry could serve.
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
    let proof = life.layers.prove(&bad).await.expect("proven");
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

/// An offset in the content of the first nonempty file.
const LEAD_FILE: usize = 2 * 512 + 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_ztoc_is_rejected() {
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
    let error = refused(life.layers.open_lazy(lazy).await.expect_err("wrong digest"));
    assert!(matches!(error, StoreError::ZtocDigest { .. }), "{error}");
    wrong.ztoc.truncate(50);
    let error = refused(life.try_open(&wrong, blob()).await.expect_err("malformed"));
    assert!(matches!(error, StoreError::Ztoc { .. }), "{error}");
    let mut longer = made.clone();
    longer.layer.push(0);
    let error = refused(
        life.try_open(&longer, blob())
            .await
            .expect_err("wrong size"),
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
async fn a_span_that_is_too_large_for_memory_is_rejected() {
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
