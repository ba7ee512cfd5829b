//! Verifying complete layers.

use super::*;
use crate::store::proofs::Proof;

fn tar_of(made: &Made) -> Proof {
    Proof::Tar(Digest::sha256(&made.tar))
}

/// Completes and verifies a layer. Returns the proof and the number of downloaded bytes.
async fn proof_of(life: &Life, made: &Made) -> (Proof, u64) {
    let fetcher = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life
        .open(made, Arc::clone(&fetcher) as Arc<dyn Fetcher>)
        .await;
    let unproven = life.layers.prove(&layer).await;
    unproven.expect_err("bytes are missing");
    life.layers.complete(&layer);
    completes(&layer).await;
    let proof = life.layers.prove(&layer).await.expect("proven");
    (proof, fetcher.bytes_sent())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_layer_is_proven_to_be_its_tar() {
    for form in [Form::Gzip, Form::Members, Form::Plain] {
        let made = Made::new(form, 80, 16 << 10);
        let node = Node::new();
        let life = node.start();
        let (proof, bytes) = proof_of(&life, &made).await;
        assert_eq!(proof, tar_of(&made), "{form:?}");
        // Neighboring spans may share a byte. Nothing else is downloaded twice.
        let most = made.layer.len() + made.spans();
        assert!(bytes <= most as u64, "{form:?}: {bytes} of {most}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_after_the_archive_count() {
    // Small enough to keep, too large to keep, and larger than a span.
    for behind in [9216, 100 << 10, 900 << 10] {
        for form in [Form::Gzip, Form::Members, Form::Plain] {
            let made = Made::new(form, 30, 16 << 10);
            let noise = soci_registry::testing::noise(7, behind);
            let made = made.with_behind(&noise, 16 << 10);
            let node = Node::new();
            let life = node.start();
            let (proof, _) = proof_of(&life, &made).await;
            assert_eq!(proof, tar_of(&made), "{form:?}, {behind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_order_and_restarts_do_not_change_the_proof() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, blob()).await;
    let files: Vec<_> = layer.places().iter().collect();
    for file in files.iter().rev().step_by(3) {
        read(&layer, file.data..file.data + file.size)
            .await
            .expect("bytes");
    }
    drop((layer, life));
    let life = node.start();
    let layer = life.open(&made, blob()).await;
    life.layers.complete(&layer);
    completes(&layer).await;
    assert_eq!(
        life.layers.prove(&layer).await.expect("proven"),
        tar_of(&made)
    );
    let key = layer.key();
    life.layers.remove(&key).await.expect("removed");
    drop((layer, life));
    // The proof is known even though the layer was removed.
    let life = node.start();
    assert_eq!(life.layers.store().proofs().get(&key), Some(tar_of(&made)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ztoc_that_omits_an_entry_is_false() {
    for form in [Form::Gzip, Form::Plain] {
        let mut made = Made::new(form, 37, 16 << 10);
        made.leave_out_the_last();
        let node = Node::new();
        let life = node.start();
        let (proof, _) = proof_of(&life, &made).await;
        let Proof::False(why) = proof else {
            panic!("{form:?}: {proof:?}");
        };
        assert!(why.contains("omits the entry \"file-36-name\""), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_disagrees_makes_the_layer_false() {
    let mut made = Made::new(Form::Gzip, 40, 16 << 10);
    made.lie_about("file-7-name");
    let node = Node::new();
    let life = node.start();
    let layer = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    let mut added = life.layers.store().proofs().added();
    life.layers.complete(&layer);
    added.changed().await.expect("a verdict");
    let proof = life.layers.store().proofs().get(&layer.key());
    assert!(matches!(proof, Some(Proof::False(_))), "{proof:?}");
    assert!(!layer.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_damaged_on_disk_prove_nothing() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, blob()).await;
    life.layers.complete(&layer);
    completes(&layer).await;
    let (key, data) = (layer.key(), layer.data_path());
    drop((layer, life));
    let file = std::fs::File::options()
        .write(true)
        .open(data)
        .expect("opens");
    file.write_all_at(b"other", FIRST.start).expect("written");
    let life = node.start();
    let layer = life.open(&made, blob()).await;
    let error = life.layers.prove(&layer).await.expect_err("damaged");
    assert!(matches!(error, ProveError::Store { .. }), "{error:?}");
    assert_eq!(life.layers.store().proofs().get(&key), None);
}
