//! Background downloads at a fixed pace.

use super::*;

fn at_a_pace(period: Duration) -> Options {
    Options {
        pace: Some(Paced {
            period,
            silence: Duration::from_millis(1),
            queue: None,
            drops: Drops::Newest,
        }),
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_becomes_complete_span_by_span_and_survives_failures() {
    let made = Made::new(Form::Members, 20, 16 << 10);
    let node = Node::new();
    let pace = at_a_pace(Duration::from_millis(1));
    let life = node.start_with(pace, fetch::Options::default());
    let faults = [FetchFault::Refuse, FetchFault::Cut(3000)];
    let fetcher = FaultyFetcher::new(made.layer.clone(), faults);
    let layer = life.open(&made, Arc::new(fetcher)).await;
    life.layers.image_mounted();
    life.layers.complete(&layer);
    completes(&layer).await;
    let data = std::fs::read(layer.data_path()).expect("readable");
    assert_eq!(data, made.data());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_spans_of_the_periods_that_passed_are_downloaded() {
    let made = Made::new(Form::Members, 20, 16 << 10);
    let node = Node::new();
    let pace = at_a_pace(Duration::from_secs(3600));
    let life = node.start_with(pace, fetch::Options::default());
    let fetcher = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, fetcher).await;
    life.layers.complete(&layer);
    let before = layer.progress().spans_present;
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while layer.progress().spans_present < before + 2 {
        assert!(tokio::time::Instant::now() < end, "{:?}", layer.progress());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The first period has one span more, like the reference's limiter.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(layer.progress().spans_present, before + 2);
    // A reader does not wait for the pace.
    store(&layer, FIRST).await;
}
