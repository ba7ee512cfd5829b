//! Bytes that are wrong.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupt_bytes_never_reach_a_reader() {
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
            .data
            .files
            .data
            .read_exact_at(&mut stored, first.data)
            .expect("readable");
        assert!(
            stored.iter().all(|byte| *byte == 0),
            "nothing unverified is in the store"
        );
    }
    // The registry sends correct bytes again. The failure was not remembered.
    let bytes = read(&layer, wanted).await.expect("bytes");
    assert_eq!(
        &bytes[..],
        &made.data()[first.data as usize..][..first.size as usize]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_damaged_in_transit_are_fetched_again() {
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
async fn a_file_whose_header_disagrees_fails_permanently() {
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
        .expect("exists");
    check(&layer, "after a restart").await;
    drop((layer, life));
    // With verification disabled, reads return what is stored.
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
        .expect("exists");
    assert_eq!(
        read(&layer, 0..layer.data_size())
            .await
            .expect("bytes")
            .len(),
        made.data().len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_that_is_wrong_at_its_origin_is_requested_ever_more_rarely() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let mut wrong = made.layer.clone();
    let at = wrong.len() / 2;
    wrong[at] ^= 1;
    let blob = Arc::new(MemoryBlob::new(wrong));
    let layer = life.open(&made, Arc::clone(&blob) as _).await;
    life.layers.complete(&layer);
    let begin = std::time::Instant::now();
    while layer.progress().spans_present + 1 < made.spans() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the other spans arrive"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let asked = || {
        let requests = blob.requests();
        let of_it = |range: &&Range<u64>| range.contains(&(at as u64));
        requests.iter().filter(of_it).count()
    };
    // The pause is 20 ms here. If it did not grow, there would be a hundred attempts.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tries = asked();
    assert!(tries < 30, "{tries} requests");
    let error = layer.progress().last_error.expect("an error");
    assert!(error.contains("corrupt"), "{error}");
    // A reader causes a request at any time.
    let file = (0..layer.places().files())
        .filter_map(|index| layer.places().file(index))
        .find(|file| {
            let spans = layer.data.ztoc().expect("a zTOC").spans();
            let ids = spans.covering(file.tar..file.tar + file.size);
            ids.clone().any(|id| {
                spans
                    .compressed(soci_ztoc::SpanId(id))
                    .contains(&(at as u64))
            })
        });
    let file = file.expect("a file in it");
    let before = asked();
    let error = read(&layer, file.data..file.data + file.size).await;
    assert!(matches!(error, Err(ReadError::Corrupt { .. })));
    assert!(asked() > before);
}
