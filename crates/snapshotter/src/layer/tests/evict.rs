//! Eviction, with concurrent readers and background downloads.

use super::{scrub::Asked, *};
use crate::sync::atomic::{AtomicBool, Ordering};

fn taken(layer: &Layer) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let blocks = |file: &std::fs::File| file.metadata().expect("stat").blocks();
    (blocks(&layer.data.files.data) + blocks(&layer.data.files.heads)) * 512
}

async fn complete_and_proven(life: &Life, made: &Made) -> Arc<Layer> {
    let layer = life
        .open(made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    life.layers.complete(&layer);
    completes(&layer).await;
    let proof = life.layers.prove(&layer).await.expect("proven");
    assert!(matches!(proof, Proof::Tar(_)));
    layer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_layer_is_completed_again_when_it_is_used() {
    let made = Made::new(Form::Gzip, 400, 64 << 10);
    let node = Node::new();
    let life = node.start();
    let layer = complete_and_proven(&life, &made).await;
    let asked = Asked::new(&life, &made);
    let (key, before) = (layer.key(), taken(&layer));
    let freed = life
        .layers
        .evict(&key, 1 << 20, life.layers.use_order(), &asked)
        .await
        .expect("no error");
    assert!(freed >= 1 << 20 && freed < before, "{freed} of {before}");
    assert_eq!(taken(&layer), before - freed);
    assert!(!layer.is_complete());
    let freed = life
        .layers
        .evict(&key, u64::MAX, life.layers.use_order(), &asked)
        .await
        .expect("no error");
    assert!(
        freed > 0 && taken(&layer) < before / 10,
        "{}",
        taken(&layer)
    );
    assert_eq!(layer.progress().spans_present, 0);
    assert!(life.layers.store().proofs().get(&key).is_some());
    // An unused layer stays evicted, even after a crash.
    let marks =
        crate::store::present::Present::open(&node.file(&layer, "present"), made.spans(), "boot-1");
    assert_eq!(marks.expect("marks").count(), 0);
    let data = made.data();
    let half = layer.data_size() / 2..layer.data_size();
    let bytes = read(&layer, half.clone()).await.expect("bytes");
    assert!(bytes[..] == data[half.start as usize..]);
    assert!(!layer.is_complete());
    life.layers.note_use(&key);
    completes(&layer).await;
    assert_eq!(std::fs::read(layer.data_path()).expect("readable"), data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_never_see_a_hole() {
    let made = Made::new(Form::Gzip, 400, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let layer = complete_and_proven(&life, &made).await;
    let asked = Asked::new(&life, &made);
    let data = Arc::new(made.data());
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4_u64)
        .map(|reader| {
            let (layer, data, over) = (Arc::clone(&layer), Arc::clone(&data), Arc::clone(&over));
            tokio::spawn(async move {
                let (mut seed, mut reads) = (reader, 0_u64);
                while !over.load(Ordering::Relaxed) {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let contents = layer.places().contents();
                    let start = contents.start + (seed >> 20) % (contents.end - contents.start);
                    let range = start..(start + 1 + (seed >> 40) % 100_000).min(layer.data_size());
                    let bytes = read(&layer, range.clone()).await.expect("bytes");
                    let wanted = &data[range.start as usize..range.end as usize];
                    assert!(bytes[..] == *wanted, "{range:?}");
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    let begin = std::time::Instant::now();
    let (key, mut freed) = (layer.key(), 0);
    while begin.elapsed() < Duration::from_secs(4) || freed == 0 {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "nothing was evicted"
        );
        let evicted = life
            .layers
            .evict(&key, 512 << 10, life.layers.use_order(), &asked);
        freed += evicted.await.expect("no error");
        life.layers.note_use(&key);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    over.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.expect("no panic") > 10);
    }
    completes(&layer).await;
    assert!(std::fs::read(layer.data_path()).expect("readable") == *data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_used_during_eviction_keeps_its_space() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let layer = complete_and_proven(&life, &made).await;
    let asked = Asked::new(&life, &made);
    let (key, before) = (layer.key(), taken(&layer));
    let since = life.layers.use_order();
    life.layers.note_use(&key);
    let freed = life.layers.evict(&key, u64::MAX, since, &asked).await;
    assert_eq!((freed.expect("no error"), taken(&layer)), (0, before));
    completes(&layer).await;
    // Missing spans are downloaded for the user of the layer.
    let now = life.layers.use_order();
    let freed = life.layers.evict(&key, 1, now, &asked).await;
    assert!(freed.expect("no error") > 0 && !layer.is_complete());
    life.layers.note_use(&key);
    let freed = life.layers.evict(&key, u64::MAX, now, &asked).await;
    assert_eq!(freed.expect("no error"), 0);
    completes(&layer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_with_immovable_readers_and_whole_layers_are_not_evicted() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let layer = complete_and_proven(&life, &made).await;
    let before = taken(&layer);
    let nobody = Asked::without_source(&life);
    let key = layer.key();
    let freed = life
        .layers
        .evict(&key, u64::MAX, life.layers.use_order(), &nobody)
        .await;
    assert_eq!(freed.expect("no error"), 0);
    completes(&layer).await;
    assert_eq!(taken(&layer), before);
    // Use another node, because here the proven lazy form would be used.
    let other = Node::new();
    let life = other.start();
    let diff_id = Digest::sha256(&made.tar);
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let whole = whole::pull(&life, &made, diff_id, blob)
        .await
        .expect("pulled");
    let asked = Asked::new(&life, &made);
    let key = whole.key();
    let freed = life
        .layers
        .evict(&key, u64::MAX, life.layers.use_order(), &asked)
        .await;
    assert_eq!((freed.expect("no error"), whole.is_complete()), (0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_eviction_survives_a_restart() {
    let mades = [2, 3].map(|count| Made::new(Form::Gzip, count, 16 << 10));
    let node = Node::new();
    let life = node.start();
    let mut made = Vec::new();
    for each in &mades {
        let layer = life
            .open(each, Arc::new(MemoryBlob::new(each.layer.clone())))
            .await;
        life.layers.note_use(&layer.key());
        made.push((layer.number(), layer.key(), layer.data_path().to_path_buf()));
    }
    for (number, ..) in &made {
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while life.layers.store().last_used(*number).is_none() {
            assert!(std::time::Instant::now() < until, "the use is recorded");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    drop(life);
    let used_at = |index: usize, at: &str| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&made[index].2, "user.soci.used", at.as_bytes(), flags)
            .expect("an attribute");
    };
    let life = node.start();
    let order = async || {
        let mut list: Vec<_> = made
            .iter()
            .map(|(number, key, _)| (*number, *key))
            .collect();
        life.layers.sort_by_use(&mut list).await;
        list.into_iter()
            .map(|(number, _)| number)
            .collect::<Vec<_>>()
    };
    let [first, second] = [made[0].0, made[1].0];
    used_at(0, "1000");
    assert_eq!(order().await, [first, second]);
    used_at(1, "999");
    assert_eq!(order().await, [second, first]);
    life.layers.note_use(&made[1].1);
    assert_eq!(
        order().await,
        [first, second],
        "a use in this process is later"
    );
}
