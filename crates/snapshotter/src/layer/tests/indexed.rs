//! Layers that are downloaded whole and indexed in passing.

use super::{scrub::Asked, whole::pull, *};
use crate::layer::Pace;

pub(super) fn indexing() -> Options {
    Options {
        whole: WholeOptions {
            indexes: true,
            ..WholeOptions::default()
        },
        ..Options::default()
    }
}

/// A layer with several spans of the default size, and the zTOC that two passes make of it.
fn made(form: Form) -> Made {
    let made = Made::new(form, 1100, soci_ztoc::DEFAULT_SPAN_SIZE);
    assert!(form == Form::Plain || made.spans() > 2, "{}", made.spans());
    made
}

async fn pull_it(life: &Life, made: &Made, fetcher: impl Fetcher + 'static) -> Arc<Layer> {
    let pulled = pull(life, made, Digest::sha256(&made.tar), Arc::new(fetcher));
    pulled.await.expect("pulled")
}

async fn evict(life: &Life, made: &Made, layer: &Arc<Layer>) -> u64 {
    let asked = Asked::new(life, made);
    let (key, now) = (layer.key(), life.layers.use_order());
    let evicted = life.layers.evict(&key, u64::MAX, now, &asked);
    evicted.await.expect("no error")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_was_pulled_whole_is_evicted_and_downloaded_in_parts() {
    for form in [Form::Gzip, Form::Members] {
        let made = made(form);
        let mut node = Node::new();
        let life = node.start_with(indexing(), fetch::Options::default());
        let layer = pull_it(&life, &made, MemoryBlob::new(made.layer.clone())).await;
        assert!(layer.is_complete());
        let key = layer.key();
        assert_eq!(key.ztoc, Some(made.ztoc_descriptor().digest));
        let data = made.data();
        assert!(std::fs::read(layer.data_path()).expect("readable") == data);
        let proof = Proof::Tar(Digest::sha256(&made.tar));
        assert_eq!(life.layers.store().proofs().get(&key), Some(proof));
        // Everything has a checksum.
        let asked = Asked::new(&life, &made);
        let scrubbed = life.layers.scrub(&key, Pace::default(), &asked).await;
        let scrubbed = scrubbed.expect("no error").expect("in the store");
        assert_eq!((scrubbed.checked, scrubbed.differing), (made.spans(), 0));

        assert!(evict(&life, &made, &layer).await > 0);
        assert_eq!(layer.progress().spans_present, 0);
        drop((layer, asked, life));
        node.boot = "boot-2".to_owned();
        let life = node.start();
        let opened = life.layers.open_present(&key).await.expect("opens");
        let layer = opened.expect("in the store");
        let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
        layer.add_source(source(blob));
        let half = data.len() as u64 / 2;
        let bytes = read(&layer, half..half + 100_000).await.expect("bytes");
        assert!(bytes[..] == data[half as usize..][..100_000]);
        assert!(!layer.is_complete(), "only what is read is downloaded");
        let fetched = layer.progress().bytes_fetched_on_demand;
        assert!(fetched < made.layer.len() as u64, "{fetched}");
        // The next pull takes it as it is, and the rest follows.
        let again = pull_it(&life, &made, MemoryBlob::new(made.layer.clone())).await;
        assert!(Arc::ptr_eq(&again, &layer) && !layer.is_complete());
        life.layers.complete(&layer);
        completes(&layer).await;
        assert!(std::fs::read(layer.data_path()).expect("readable") == data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_of_an_evicted_span_never_reach_a_reader() {
    let made = made(Form::Gzip);
    let node = Node::new();
    let life = node.start_with(indexing(), fetch::Options::default());
    let layer = pull_it(&life, &made, MemoryBlob::new(made.layer.clone())).await;
    assert!(evict(&life, &made, &layer).await > 0);
    let mut wrong = made.layer.clone();
    for byte in wrong.iter_mut().skip(1000) {
        *byte ^= 1;
    }
    let key = layer.key();
    drop((layer, life));
    let life = node.start();
    let opened = life.layers.open_present(&key).await.expect("opens");
    let layer = opened.expect("in the store");
    layer.add_source(source(Arc::new(MemoryBlob::new(wrong))));
    let error = read(&layer, FIRST).await.expect_err("wrong bytes");
    assert!(matches!(error, ReadError::Corrupt { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_once_share_an_indexed_layer_and_other_formats_stay_whole() {
    let node = Node::new();
    let life = node.start_with(indexing(), fetch::Options::default());
    let gzip = made(Form::Gzip);
    let blob = || MemoryBlob::new(gzip.layer.clone());
    let (one, two) = tokio::join!(pull_it(&life, &gzip, blob()), pull_it(&life, &gzip, blob()));
    assert!(Arc::ptr_eq(&one, &two));
    assert!(life.layers.get(&one.key()).is_some());
    assert_eq!(life.layers.store().list().len(), 1);
    let refuses = FaultyFetcher::new(Vec::new(), [FetchFault::Forbid]);
    let three = pull_it(&life, &gzip, refuses).await;
    assert!(Arc::ptr_eq(&one, &three));
    // It also serves an image that has the same zTOC for it, or another one.
    let mut other = gzip.clone();
    other.build(16 << 10);
    for made in [&gzip, &other] {
        let lazy = life.open(made, Arc::new(MemoryBlob::new(Vec::new()))).await;
        assert!(Arc::ptr_eq(&lazy, &one));
    }
    let plain = made(Form::Plain);
    let layer = pull_it(&life, &plain, MemoryBlob::new(plain.layer.clone())).await;
    assert_eq!(layer.key().ztoc, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_no_ztoc_can_serve_stays_whole() {
    // A directory with a size: the headers behind it cannot be found from a zTOC.
    let mut tar = made::header("odd/", b'5', 512).to_vec();
    tar.extend(made::header("file", b'0', 5));
    tar.extend(b"bytes");
    tar.resize(4096, 0);
    let mut made = Made {
        form: Form::Gzip,
        layer: Vec::new(),
        tar,
        ztoc: Vec::new(),
        files: Vec::new(),
    };
    made.compress();
    let node = Node::new();
    let life = node.start_with(indexing(), fetch::Options::default());
    let layer = pull_it(&life, &made, MemoryBlob::new(made.layer.clone())).await;
    assert_eq!((layer.key().ztoc, layer.is_complete()), (None, true));
    assert!(!node.file(&layer, "ztoc").exists());
    assert_eq!(evict(&life, &made, &layer).await, 0);
}
