//! Connections: how many there are, and when they are closed.

use super::*;

#[tokio::test]
async fn a_dropped_body_closes_its_connection() {
    let case = case(
        Setup {
            pace: Some(400_000),
            ..Setup::default()
        },
        quick(),
    );
    let mut body = case.blob.fetch(0..SIZE as u64).await.expect("begins");
    body.next().await.expect("a chunk");
    drop(body);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = case.registry.bytes_sent(&case.digest);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(
        case.registry.bytes_sent(&case.digest),
        sent,
        "nothing goes on behind it"
    );
}

#[tokio::test]
async fn a_cancelled_request_closes_its_connection() {
    let case = plain();
    case.always(Wrong::Delay(Duration::from_secs(60)));
    let asked = tokio::time::timeout(Duration::from_millis(100), case.blob.fetch(0..10)).await;
    assert!(asked.is_err());
    case.registry.clear_faults();
    case.assert_right(0..10).await;
}

#[tokio::test]
async fn connections_are_used_again() {
    let case = plain();
    for i in 0..20 {
        case.assert_right(i * 100..i * 100 + 5000).await;
    }
    assert_eq!(case.registry.connections(), 1);
}

#[tokio::test]
async fn several_ranges_come_over_several_connections() {
    let case = case(
        Setup {
            latency: Duration::from_millis(100),
            ..Setup::default()
        },
        quick(),
    );
    let begun = Instant::now();
    let reads = (0..6).map(|i| case.assert_right(i * 1000..i * 1000 + 900));
    futures_util::future::join_all(reads).await;
    assert!(begun.elapsed() < Duration::from_millis(400), "side by side");
    assert_eq!(case.registry.connections(), 6);
}

#[tokio::test]
async fn a_registry_that_bears_little_gets_little_at_once() {
    let setup = Setup {
        latency: Duration::from_millis(10),
        most_requests: Some(3),
        ..Setup::default()
    };
    let retry = RetryPolicy {
        max_retries: 8,
        ..quick().blob_retry
    };
    let case = case(
        setup,
        Options {
            blob_retry: retry,
            ..quick()
        },
    );
    let reads = (0..60).map(|i| case.assert_right(i * 1000..i * 1000 + 900));
    futures_util::future::join_all(reads).await;
    let refused = case
        .registry
        .seen()
        .iter()
        .filter(|seen| seen.status == 429)
        .count();
    let most = case.registry.most_in_flight();
    assert!(most <= 12, "about the start value, not {most}");
    assert!(refused > 0, "the registry was asked for more than it bears");
    assert!(refused < 40, "and less from then on, not {refused}");
}
