//! The spans of a recorded start.

use super::*;

/// A layer that never receives a byte, and the record of a start that read everything.
async fn stalled(life: &Life, made: &Made) -> (Arc<Layer>, [Replayed; 1]) {
    let faults = vec![FetchFault::Stall(0); 1000];
    let fetcher = FaultyFetcher::new(made.layer.clone(), faults);
    let layer = life.open(made, Arc::new(fetcher)).await;
    let spans = 0..u64::from(u32::MAX);
    (layer, [Replayed { spans, order: 0 }])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_requests_no_more_than_there_is_space_for() {
    let made = Made::new(Form::Members, 40, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let (layer, all) = stalled(&life, &made).await;
    let spans = &layer.spans;
    spans.set_replay(&all);
    assert_eq!(spans.under_way(), 0);
    for (space, wanted) in [(0, 0), (1, 1), (1, 1), (u64::MAX, made.spans())] {
        spans.want_replay(space);
        assert_eq!(spans.under_way(), wanted, "{space}");
    }
    assert!(!spans.has_replay_waiting());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_rests_replays_when_it_is_used_again() {
    let made = Made::new(Form::Members, 20, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let (layer, all) = stalled(&life, &made).await;
    layer.completion.rest();
    life.layers.replay(&layer, &all);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(layer.spans.under_way(), 0);
    life.layers.note_use(&layer.key());
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while layer.spans.has_replay_waiting() {
        assert!(tokio::time::Instant::now() < end, "{:?}", layer.progress());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
