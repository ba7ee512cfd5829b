//! Reads: their cost, what they wait for, and how they fail.

use super::*;

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
            // Also read around the contents. The bytes before and after them are always available.
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
            "nothing was downloaded twice"
        );
        assert!(read(&layer, 0..layer.data_size() + 1).await.is_err());
        assert!(read(&layer, 5..5).await.expect("an empty read").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_readers_share_one_download() {
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
async fn a_read_that_waited_is_recorded() {
    let made = Made::new(Form::Gzip, 20, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let delay = FetchFault::Delay(Duration::from_millis(100));
    let blob = Arc::new(FaultyFetcher::new(made.layer.clone(), [delay]));
    let layer = life.open(&made, blob).await;
    store(&layer, FIRST).await;
    // The wait is recorded after the answer. The second read may wait for the write and may be
    // recorded first.
    let begin = std::time::Instant::now();
    let wait = loop {
        let long = |wait: &ReadWait| wait.took_us >= 99_000;
        if let Some(wait) = life.layers.waits().into_iter().find(long) {
            break wait;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "nothing recorded"
        );
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
    // A read of present bytes does not wait.
    read(&layer, FIRST).await.expect("bytes");
    assert!(life.layers.waits().len() <= 2);
    settles(&layer).await;
}

/// Waits until no span is in progress.
async fn settles(layer: &Layer) {
    let begin = std::time::Instant::now();
    while layer.spans.under_way() > 0 {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "a span is still in progress"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_is_downloaded_whole_when_a_part_is_read() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, Arc::clone(&blob) as _).await;
    let largest = layer.places().iter().max_by_key(|file| file.size);
    let file = largest.expect("a file");
    assert!(file.size > 3 * (16 << 10), "in several spans");
    read(&layer, file.data..file.data + 1).await.expect("bytes");
    settles(&layer).await;
    let asked = blob.requests().len();
    let whole = file.data..file.data + file.size;
    read(&layer, whole.clone()).await.expect("bytes");
    assert_eq!(blob.requests().len(), asked, "everything was there");
    let rest = layer.spans.next_absent(u64::MAX, u64::MAX);
    assert!(rest.len() > 2, "only this file: {rest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_goes_on_behind_the_last_read() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, blob).await;
    let in_order = layer.spans.next_absent(u64::MAX, u64::MAX);
    assert!(in_order.is_sorted() && in_order.len() > 8, "{in_order:?}");
    let contents = layer.places().contents();
    let middle = contents.start.midpoint(contents.end);
    read(&layer, middle..middle + 1).await.expect("bytes");
    settles(&layer).await;
    let mut next = layer.spans.next_absent(u64::MAX, u64::MAX);
    let behind = next.iter().position(|span| *span == in_order[0]);
    next.rotate_left(behind.expect("the first span is absent"));
    assert!(behind > Some(1) && next.is_sorted(), "{next:?}");
    let compressed = made.layer.len() as u64 / made.spans() as u64;
    let few = layer.spans.next_absent(compressed * 3, u64::MAX);
    assert!(
        (2..6).contains(&few.len()) && few[0] > in_order[0],
        "{few:?}"
    );
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
    waiting
        .await
        .expect("no panic")
        .expect("bytes after the outage");
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
    read(&layer, FIRST).await.expect_err("fails immediately");
    assert!(
        begin.elapsed() < Duration::from_millis(500),
        "{:?}",
        begin.elapsed()
    );
    blob.set_online(true);
    completes(&layer).await;
    read(&layer, FIRST).await.expect("bytes");
}
