//! Damage on disk after correct bytes were stored.

use async_trait::async_trait;

use super::*;
use crate::{
    layer::{Pace, Repairs, Scrubbed},
    sync::Mutex,
};

/// Records the state of a layer when its readers are moved, and completes it afterwards.
pub(super) struct Asked {
    layers: Arc<Layers>,
    source: Option<Source>,
    states: Mutex<Vec<(&'static str, bool, usize)>>,
}

impl Asked {
    pub(super) fn without_source(life: &Life) -> Asked {
        Asked {
            layers: Arc::clone(&life.layers),
            source: None,
            states: Mutex::default(),
        }
    }

    pub(super) fn new(life: &Life, made: &Made) -> Asked {
        Asked {
            layers: Arc::clone(&life.layers),
            source: Some(source(Arc::new(MemoryBlob::new(made.layer.clone())))),
            states: Mutex::default(),
        }
    }

    fn note(&self, when: &'static str, layer: &Layer) {
        let present = layer.progress().spans_present;
        let complete = layer.is_complete();
        self.states.lock().push((when, complete, present));
    }
}

#[async_trait]
impl Repairs for Asked {
    async fn before(&self, layer: &Arc<Layer>, complete: bool) -> Result<(), String> {
        let when = if complete { "before" } else { "on the device" };
        self.note(when, layer);
        layer.add_source(self.source.clone().ok_or("no source")?);
        Ok(())
    }

    fn after(&self, layer: &Arc<Layer>) {
        self.note("after", layer);
        self.layers.complete(layer);
    }

    fn rest(&self, layer: &Arc<Layer>) {
        self.layers.complete_later(layer);
    }
}

async fn complete_layer(life: &Life, made: &Made) -> Arc<Layer> {
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(made, blob).await;
    life.layers.complete(&layer);
    completes(&layer).await;
    layer
}

async fn scrub(life: &Life, layer: crate::store::LayerKey, asked: &Asked) -> Scrubbed {
    let scrubbed = life.layers.scrub(&layer, Pace::default(), asked).await;
    scrubbed
        .expect("no error")
        .expect("the layer is in the store")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_detected_and_repaired() {
    for form in [Form::Gzip, Form::Members, Form::Plain] {
        let made = Made::new(form, 60, 16 << 10);
        let node = Node::new();
        let life = node.start();
        let layer = complete_layer(&life, &made).await;
        let asked = Asked::new(&life, &made);
        let found = scrub(&life, layer.key(), &asked).await;
        assert_eq!((found.checked, found.differing), (made.spans(), 0));
        assert_eq!(found.bytes, made.tar.len() as u64);
        assert!(asked.states.lock().is_empty(), "readers are not disturbed");

        let file = layer.places().file(4).expect("a file");
        let damage: [(&std::fs::File, u64); 3] = [
            (&layer.data.files.data, file.data + file.size / 2),
            // The padding after a file, which no span writes.
            (&layer.data.files.data, file.data + file.size),
            (&layer.data.files.heads, layer.places().heads_size() - 1500),
        ];
        assert_ne!((file.data + file.size) % 4096, 0);
        for (file, at) in damage {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("readable");
            file.write_all_at(&[byte[0] ^ 1], at).expect("damaged");
            file.sync_data().expect("on the disk");
            asked.states.lock().clear();
            let found = scrub(&life, layer.key(), &asked).await;
            assert_eq!((found.differing, found.refetched), (1, 1), "{found:?}");
            assert_eq!(found.problem, None);
            // Readers are moved while every span is present and the layer is no longer complete.
            let all = made.spans();
            let states = asked.states.lock().clone();
            assert_eq!(states, [("before", false, all), ("after", false, all - 1)]);
            completes(&layer).await;
            let stored = std::fs::read(layer.data_path()).expect("readable");
            assert!(stored == made.data(), "{form:?} at {at}");
            let found = scrub(&life, layer.key(), &asked).await;
            assert_eq!(found.differing, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unrepaired_damage_is_not_served_after_a_crash() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let mut node = Node::new();
    let life = node.start();
    let layer = complete_layer(&life, &made).await;
    let (key, file) = (layer.key(), layer.places().file(0).expect("a file"));
    drop((layer, life));
    let life = node.start();
    // The layer is not open, and the scrub does not keep it open.
    let mut asked = Asked::new(&life, &made);
    scrub(&life, key, &asked).await;
    assert!(life.layers.open.lock().is_empty());

    let layer = life.layers.open_present(&key).await.expect("opens");
    let layer = layer.expect("exists");
    layer
        .data
        .files
        .data
        .write_all_at(b"damage", file.data)
        .expect("damaged");
    layer.data.files.data.sync_data().expect("on the disk");
    asked.source = None;
    let pass = {
        let layers = Arc::clone(&life.layers);
        tokio::spawn(async move { layers.scrub(&key, Pace::default(), &asked).await })
    };
    let begin = std::time::Instant::now();
    while layer.progress().spans_present == made.spans() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the damaged span is removed"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pass.abort();
    drop((pass.await, layer, life));
    node.boot = "boot-2".to_owned();
    let life = node.start();
    let layer = life.layers.open_present(&key).await.expect("opens");
    let layer = layer.expect("exists");
    assert!(!layer.is_complete());
    read(&layer, file.data..file.data + 6)
        .await
        .expect_err("no wrong bytes");
    layer.add_source(source(Arc::new(MemoryBlob::new(made.layer.clone()))));
    let bytes = read(&layer, file.data..file.data + file.size).await;
    let wanted = &made.data()[file.data as usize..(file.data + file.size) as usize];
    assert_eq!(&bytes.expect("bytes")[..], wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_spans_are_removed_from_an_incomplete_layer() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, blob).await;
    store(&layer, FIRST).await;
    let before = read(&layer, FIRST).await.expect("bytes");
    layer.completion.sync().expect("synced");
    let damaged = layer.data.files.data.write_all_at(b"damage", FIRST.start);
    damaged.expect("damaged");
    layer.data.files.data.sync_data().expect("on the disk");
    let asked = Asked::new(&life, &made);
    let found = scrub(&life, layer.key(), &asked).await;
    assert_eq!((found.differing, found.refetched), (1, 0), "{found:?}");
    assert!(found.problem.expect("a problem").contains("not complete"));
    // Its readers are on the device, where a READ can wait, so they are not moved.
    let states = asked.states.lock().clone();
    assert_eq!(states, [("on the device", false, 1)]);
    assert_eq!(read(&layer, FIRST).await.expect("bytes"), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_layer_is_compared_with_its_diff_id() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    compare_whole(&made).await;
    // tar fills up its last record.
    compare_whole(&made.with_behind(&[0; 9216], 16 << 10)).await;
}

async fn compare_whole(made: &Made) {
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = whole::pull(&life, made, Digest::sha256(&made.tar), blob).await;
    let layer = layer.expect("pulled");
    let asked = Asked::new(&life, made);
    let found = scrub(&life, layer.key(), &asked).await;
    assert_eq!((found.checked, found.differing), (1, 0), "{found:?}");
    layer
        .data
        .files
        .heads
        .write_all_at(b"x", 700)
        .expect("damaged");
    layer.data.files.heads.sync_data().expect("on the disk");
    let found = scrub(&life, layer.key(), &asked).await;
    assert_eq!((found.differing, found.refetched), (1, 0), "{found:?}");
    let remedy = found.problem.expect("a remedy");
    assert!(remedy.contains("pull it again"), "{remedy}");
    assert!(asked.states.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_checksums_are_recorded_after_a_crash() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let layer = life.open(&made, blob()).await;
    store(&layer, FIRST).await;
    let (key, sums) = (layer.key(), node.file(&layer, "sums"));
    let asked = Asked::new(&life, &made);
    let found = scrub(&life, key, &asked).await;
    assert_eq!(found.checked, 0, "no span is durable");
    // Simulates a process that was killed after it wrote the bytes and before it wrote the
    // checksum.
    let length = std::fs::metadata(&sums).expect("exists").len();
    drop((layer, life));
    let zeros = vec![0; length as usize - 64];
    let file = std::fs::File::options().write(true).open(&sums);
    file.expect("exists")
        .write_all_at(&zeros, 64)
        .expect("written");
    let life = node.start();
    let layer = life.layers.open_present(&key).await.expect("opens");
    let layer = layer.expect("exists");
    layer.completion.sync().expect("synced");
    let asked = Asked::new(&life, &made);
    let found = scrub(&life, key, &asked).await;
    assert_eq!((found.checked, found.differing), (1, 0), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_whose_checksums_cannot_be_recorded_stay_present() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let layer = life.open(&made, blob()).await;
    store(&layer, FIRST).await;
    let there = layer.data.files.present.count();
    assert!(there > 0);
    // Simulates a full disk: the checksums cannot be written.
    let sums = node.file(&layer, "sums");
    let file = std::fs::File::options().write(true).open(&sums);
    let file = file.expect("exists");
    let length = file.metadata().expect("its size").len();
    file.set_len(64).expect("shortened");
    layer
        .completion
        .sync()
        .expect_err("no checksum can be read");
    let present = &layer.data.files.present;
    assert_eq!(present.count(), there, "the bytes are still present");
    assert_eq!(present.volatile().len(), there, "not durable yet");
    file.set_len(length).expect("space is available again");
    layer.completion.sync().expect("synced");
    assert_eq!((present.count(), present.volatile().len()), (there, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrub_respects_its_rate_limit() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let layer = complete_layer(&life, &made).await;
    let asked = Asked::new(&life, &made);
    let store = life.layers.store();
    assert_eq!(store.since_scrub(layer.number()), None);
    let pace = Pace {
        bytes_per_second: Some(made.tar.len() as u64),
    };
    let begin = std::time::Instant::now();
    let found = life.layers.scrub(&layer.key(), pace, &asked).await;
    assert!(found.expect("no error").is_some());
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(900), "{took:?}");
    let since = store.since_scrub(layer.number()).expect("recorded");
    assert!(since < Duration::from_secs(60), "{since:?}");
}
