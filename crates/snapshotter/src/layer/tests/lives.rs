//! What persists across restarts.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completion_downloads_everything_and_persists() {
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
    // A later power failure changes nothing, and no source is needed.
    node.boot = "boot-2".to_owned();
    let life = node.start();
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("exists");
    assert_eq!(layer.number(), number);
    assert!(layer.is_complete() && layer.named.sources().is_empty());
    assert_eq!(
        &read(&layer, 0..layer.data_size()).await.expect("bytes")[..],
        &made.data()[..]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_was_read_whole_becomes_complete() {
    // The last span contains only empty files and the end of the archive. No read of a file needs
    // it.
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
        "nothing is downloaded in the background"
    );
    assert!(!layer.is_complete());
    read(&layer, 0..layer.data_size()).await.expect("bytes");
    completes(&layer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn present_spans_need_no_registry_after_a_restart() {
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
    // Same boot: written spans are present. Without a source, missing bytes fail immediately.
    let life = node.start();
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("exists");
    let bytes = read(&layer, first.clone()).await.expect("bytes");
    assert_eq!(
        &bytes[..],
        &made.data()[first.start as usize..first.end as usize]
    );
    let error = read(&layer, last.clone()).await.expect_err("no source");
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
    // Another boot: only synced spans are present.
    node.boot = "boot-2".to_owned();
    let life = node.start();
    let layer = life
        .layers
        .open_present(&key)
        .await
        .expect("opens")
        .expect("exists");
    assert_eq!(layer.progress().spans_present, durable);
    read(&layer, first).await.expect("bytes");
    read(&layer, third.data..third.data + 1)
        .await
        .expect_err("no source");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_are_rebuilt_after_a_power_failure() {
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
        // Replace the file, because the old one may still be mapped and must not be truncated.
        let whole = std::fs::read(path).expect("exists");
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
        .expect("exists");
    assert!(
        layer.meta("a1").expect("readable").is_none(),
        "the image must be rebuilt"
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
    assert!(layer.number() > number, "numbers are not reused");
    assert_eq!(
        &read(&layer, 0..layer.data_size()).await.expect("bytes")[..],
        &made.data()[..]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_with_an_unknown_format_is_set_aside_and_downloaded_again() {
    let made = Made::new(Form::Gzip, 30, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let layer = life.open(&made, blob()).await;
    let (key, number) = (layer.key(), layer.number());
    let folder =
        crate::store::sealed::Folder::new(node.file(&layer, "").components().as_path(), &node.boot);
    drop((layer, life));
    // Intact, but not written by this version, for example after a downgrade.
    let other = folder.write("ztoc", |to| to.write_all(b"of another version"));
    other.expect("written");
    let life = node.start();
    let opened = life.layers.open_present(&key).await;
    assert!(opened.expect("no error").is_none());
    assert!(
        life.layers.open.lock().is_empty(),
        "a failed opening leaves no entry"
    );
    let aside = format!("{}.aside", crate::store::FOLDER);
    let aside = node.root.path().join(aside).join(number.to_string());
    assert!(aside.join("ztoc").exists() && aside.join("data").exists());
    let layer = life.open(&made, blob()).await;
    assert!(layer.number() > number);
    read(&layer, FIRST).await.expect("bytes");
}
