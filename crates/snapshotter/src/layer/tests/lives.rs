//! What lasts from one life of the process to the next.

use super::*;

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
    assert!(layer.is_complete() && layer.named.sources().is_empty());
    assert_eq!(
        &read(&layer, 0..layer.data_size()).await.expect("bytes")[..],
        &made.data()[..]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_readers_have_read_whole_is_complete() {
    // A last span of empty files and the end of the archive, which no read of a file needs.
    let mut made = Made::new(Form::Plain, 60, 4096);
    made.tar.truncate(made.tar.len() - 1024);
    for number in 0..40 {
        let header = made::header(&format!("empty-{number}"), b'0', 0);
        made.tar.extend_from_slice(&header);
    }
    let made = made.with_behind(&[0; 1024], 4096);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, Arc::clone(&blob) as _).await;
    life.layers.complete_when_read(&layer);
    read(&layer, FIRST).await.expect("bytes");
    assert!(
        blob.bytes_sent() < made.layer.len() as u64,
        "nothing is fetched behind"
    );
    assert!(!layer.is_complete());
    read(&layer, 0..layer.data_size()).await.expect("bytes");
    completes(&layer).await;
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
    store(&layer, first.clone()).await;
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
    store(&layer, last.clone()).await;
    life.layers.sync_all().await;
    let durable = layer.progress().spans_present;
    let third = layer
        .places()
        .file(layer.places().files() / 2)
        .expect("a file");
    store(&layer, third.data..third.data + 1).await;
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
async fn a_layer_of_another_form_is_kept_aside_and_fetched_again() {
    let made = Made::new(Form::Gzip, 30, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let layer = life.open(&made, blob()).await;
    let (key, number) = (layer.key(), layer.number());
    let folder =
        crate::store::sealed::Folder::new(node.file(&layer, "").components().as_path(), &node.boot);
    drop((layer, life));
    // Whole, and not what this version writes: a downgrade, say.
    let other = folder.write("ztoc", |to| to.write_all(b"of another version"));
    other.expect("written");
    let life = node.start();
    let opened = life.layers.open_present(&key).await;
    assert!(opened.expect("no error").is_none());
    assert!(
        life.layers.open.lock().is_empty(),
        "nothing is kept of an opening that failed"
    );
    let aside = format!("{}.aside", crate::store::FOLDER);
    let aside = node.root.path().join(aside).join(number.to_string());
    assert!(aside.join("ztoc").exists() && aside.join("data").exists());
    let layer = life.open(&made, blob()).await;
    assert!(layer.number() > number);
    read(&layer, FIRST).await.expect("bytes");
}
