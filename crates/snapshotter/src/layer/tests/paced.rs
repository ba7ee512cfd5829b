//! Background downloads at a fixed pace.

use super::{scrub::Asked, *};
use crate::layer::paced::{Fetches as _, Next};

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

/// Waits until the queue has this many layers.
async fn queues(life: &Life, count: usize) {
    let queue = life.layers.paced.as_ref().expect("a queue");
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while queue.len() != count {
        assert!(tokio::time::Instant::now() < end, "{}", queue.len());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_that_a_failed_sync_lost_are_fetched_again() {
    let made = Made::new(Form::Members, 20, 16 << 10);
    let node = Node::new();
    let options = Options {
        sync_every: Duration::from_secs(3600),
        ..at_a_pace(Duration::from_secs(3600))
    };
    let life = node.start_with(options, fetch::Options::default());
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, blob).await;
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while !layer.data.has_all() {
        assert!(tokio::time::Instant::now() < end, "{:?}", layer.progress());
        assert_ne!(layer.completion.fetch_next(), Next::Over);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(layer.completion.fetch_next(), Next::Later, "not durable");
    let lost = layer.data.files.present.forget_volatile();
    assert!(!lost.is_empty());
    layer.spans.lose(&lost);
    assert_eq!(layer.completion.fetch_next(), Next::Requested);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_layer_leaves_the_queue_until_it_is_used() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let pace = at_a_pace(Duration::from_millis(1));
    let life = node.start_with(pace, fetch::Options::default());
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, blob).await;
    life.layers.complete(&layer);
    completes(&layer).await;
    life.layers.prove(&layer).await.expect("proven");
    let asked = Asked::new(&life, &made);
    let (key, now) = (layer.key(), life.layers.use_order());
    let freed = life.layers.evict(&key, u64::MAX, now, &asked).await;
    assert!(freed.expect("no error") > 0 && !layer.is_complete());
    queues(&life, 0).await;
    life.layers.complete_later(&layer);
    queues(&life, 0).await;
    assert_eq!(layer.completion.fetch_next(), Next::Over);
    life.layers.note_use(&key);
    completes(&layer).await;
    queues(&life, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_queues_no_layer_that_is_not_completed_in_the_background() {
    let made = Made::new(Form::Gzip, 20, 16 << 10);
    let node = Node::new();
    let pace = at_a_pace(Duration::from_secs(3600));
    let life = node.start_with(pace, fetch::Options::default());
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, blob).await;
    layer.completion.rest();
    life.layers.complete_when_read(&layer);
    life.layers.note_use(&layer.key());
    assert!(!layer.completion.rests());
    assert_eq!(life.layers.paced.as_ref().expect("a queue").len(), 0);
}
