//! Layers that are downloaded whole.

use super::*;

pub(super) async fn pull(
    life: &Life,
    made: &Made,
    diff_id: Digest,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Arc<Layer>, OpenError> {
    let whole = Whole {
        layer: made.descriptor(),
        diff_id,
        order: 0,
        origin: origin(),
        sources: vec![source(fetcher)],
        keep: None,
    };
    life.layers.stream_whole(whole).await
}

/// Waits until the stages that were still at work have let go of their files.
fn nothing_is_left(node: &Node, life: &Life) {
    assert!(life.layers.store().list().is_empty());
    let store = node.root.path().join(crate::store::FOLDER);
    let folders = || {
        let entries = std::fs::read_dir(&store).expect("readable");
        entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
    };
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while folders().next().is_some() {
        assert!(std::time::Instant::now() < end, "files are left");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_download_gives_the_same_files_as_a_lazy_layer() {
    for form in [Form::Gzip, Form::Members, Form::Plain] {
        let made = Made::new(form, 90, 16 << 10);
        let mut node = Node::new();
        let life = node.start();
        let blob = Arc::new(FaultyFetcher::new(
            made.layer.clone(),
            [FetchFault::Cut(1000), FetchFault::Refuse],
        ));
        let diff_id = Digest::sha256(&made.tar);
        let layer = pull(&life, &made, diff_id, blob).await.expect("pulled");
        assert!(layer.is_complete());
        assert_eq!(
            std::fs::read(layer.data_path()).expect("readable"),
            made.data(),
            "{form:?}"
        );
        let listed = layer.entries().expect("scanned");
        let stated = soci_ztoc::Ztoc::parse(&made.ztoc).expect("a zTOC");
        assert_eq!(listed.iter().count(), stated.entry_count());
        for (found, stated) in listed.iter().zip(stated.entries()) {
            assert_eq!(
                (found.name, found.content(), found.mode),
                (stated.name, stated.content(), stated.mode)
            );
        }
        let key = layer.key();
        drop((listed, layer, life));
        node.boot = "boot-2".to_owned();
        let life = node.start();
        let layer = life
            .layers
            .open_present(&key)
            .await
            .expect("opens")
            .expect("exists");
        let bytes = read(&layer, 0..layer.data_size()).await.expect("bytes");
        assert_eq!(&bytes[..], &made.data()[..]);
        assert_eq!(
            layer.entries().expect("scanned").iter().count(),
            stated.entry_count()
        );
        // It also serves an image that has a zTOC for it.
        let lazy = life
            .open(&made, Arc::new(MemoryBlob::new(Vec::new())))
            .await;
        assert!(Arc::ptr_eq(&lazy, &layer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_visible_unless_both_digests_match() {
    let made = Made::new(Form::Gzip, 90, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let diff_id = Digest::sha256(&made.tar);
    let stream = |error: OpenError| match error {
        OpenError::Stream(error) => error,
        other => panic!("{other}"),
    };
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let error = stream(
        pull(&life, &made, Digest::sha256(b"other"), blob())
            .await
            .expect_err("diff-ID"),
    );
    assert!(matches!(error, StreamError::DiffId { .. }), "{error}");
    nothing_is_left(&node, &life);
    for at in [30, made.layer.len() as u64 - 3] {
        let flip = Arc::new(FaultyFetcher::new(
            made.layer.clone(),
            [FetchFault::Flip(at)],
        ));
        let error = stream(
            pull(&life, &made, diff_id, flip)
                .await
                .expect_err("corrupt"),
        );
        assert!(
            matches!(
                error,
                StreamError::Layer { .. }
                    | StreamError::Decompress { .. }
                    | StreamError::Tar { .. }
            ),
            "{error}"
        );
        nothing_is_left(&node, &life);
    }
    // The gzip trailer, which only the digest covers.
    let mut padded = made.clone();
    padded.layer.truncate(made.layer.len() - 4);
    let error = pull(
        &life,
        &padded,
        diff_id,
        Arc::new(MemoryBlob::new(padded.layer.clone())),
    )
    .await;
    assert!(matches!(
        stream(error.expect_err("truncated")),
        StreamError::Decompress { .. }
    ));
    nothing_is_left(&node, &life);
    let forbid = Arc::new(FaultyFetcher::new(made.layer.clone(), [FetchFault::Forbid]));
    let error = stream(
        pull(&life, &made, diff_id, forbid)
            .await
            .expect_err("refused"),
    );
    assert!(matches!(error, StreamError::Fetch { .. }), "{error}");
    nothing_is_left(&node, &life);
    pull(&life, &made, diff_id, blob()).await.expect("pulled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tar_that_unpacking_rejects_is_rejected() {
    let node = Node::new();
    let life = node.start();
    let mut tar = made::header("contiguous", b'7', 0).to_vec();
    tar.resize(2048, 0);
    let made = Made {
        form: Form::Plain,
        layer: tar.clone(),
        tar,
        ztoc: Vec::new(),
        files: Vec::new(),
    };
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let error = pull(&life, &made, Digest::sha256(&made.tar), blob)
        .await
        .expect_err("refused");
    assert!(
        matches!(error, OpenError::Stream(StreamError::Tar { .. })),
        "{error}"
    );
    nothing_is_left(&node, &life);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_pull_leaves_no_files() {
    let made = Made::new(Form::Gzip, 90, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let stall = Arc::new(FaultyFetcher::new(
        made.layer.clone(),
        [FetchFault::Stall(100)],
    ));
    let pulled = pull(&life, &made, Digest::sha256(&made.tar), stall);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), pulled)
            .await
            .is_err()
    );
    nothing_is_left(&node, &life);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_a_crash_are_removed() {
    let node = Node::new();
    let life = node.start();
    let draft = life.layers.store().draft().expect("a draft");
    let folder = node.root.path().join(crate::store::FOLDER).join("2");
    assert!(folder.exists());
    // A crash runs no destructors.
    #[allow(clippy::mem_forget, reason = "simulates the crash")]
    std::mem::forget(draft);
    drop(life);
    let life = node.start();
    assert!(!folder.exists());
    let _next = life.layers.store().draft().expect("a draft");
    assert!(!folder.exists(), "numbers are not reused");
}
