//! Range requests: correct bytes or a clear error, whatever the registry does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use soci_oci::Digest;
use soci_registry::{
    Hosts, Mirror, Options, Registry,
    fetch::{FetchError, Fetcher},
    retry::RetryPolicy,
    testing::{Expired, Fault, On, Redirect, Setup, TestRegistry, Wrong, conformance, noise},
};

use crate::{client, everything_said, layer, quick};

mod connections;
mod hosts;
mod redirects;
mod whole;

const SIZE: usize = 300_000;

struct Case {
    registry: TestRegistry,
    client: Registry,
    bytes: Vec<u8>,
    digest: Digest,
    blob: Arc<dyn Fetcher>,
}

fn case(setup: Setup, options: Options) -> Case {
    let registry = TestRegistry::with(setup);
    let bytes = noise(7, SIZE);
    let digest = registry.add_blob("app", bytes.clone());
    let client = client(options);
    let image = registry.reference("app", "v1");
    let blob = client.blob(&image, &layer(&bytes)).expect("a blob");
    Case {
        registry,
        client,
        bytes,
        digest,
        blob,
    }
}

fn plain() -> Case {
    case(Setup::default(), quick())
}

impl Case {
    fn fault(&self, wrong: Wrong) {
        self.registry
            .fault(Fault::once(On::Blob(self.digest), wrong));
    }

    fn always(&self, wrong: Wrong) {
        self.registry
            .fault(Fault::always(On::Blob(self.digest), wrong));
    }

    async fn get(&self, range: std::ops::Range<usize>) -> Result<Bytes, FetchError> {
        self.blob
            .fetch(range.start as u64..range.end as u64)
            .await?
            .collect()
            .await
    }

    async fn assert_right(&self, range: std::ops::Range<usize>) {
        let got = self.get(range.clone()).await.expect("the range comes");
        assert!(got == self.bytes[range], "the right bytes");
    }
}

#[tokio::test]
async fn a_remote_blob_keeps_the_fetchers_contract() {
    let case = plain();
    conformance::fetcher(&*case.blob, &case.bytes).await;
    let redirect = Some(Redirect {
        uses: 1000,
        expired: Expired::Forbidden,
    });
    let redirected = super::blob::case(
        Setup {
            redirect,
            ..Setup::default()
        },
        quick(),
    );
    conformance::fetcher(&*redirected.blob, &redirected.bytes).await;
}

#[tokio::test]
async fn a_broken_body_is_resumed_at_its_last_byte() {
    let case = plain();
    case.fault(Wrong::Cut(100_000));
    case.fault(Wrong::Cut(50_000));
    case.assert_right(10..SIZE).await;
    let asked = case.registry.ranges(&case.digest);
    let size = SIZE as u64;
    assert_eq!(
        asked,
        [10..size, 100_010..size, 150_010..size],
        "no byte is asked for twice"
    );
    assert_eq!(case.registry.bytes_sent(&case.digest), size - 10);
}

#[tokio::test]
async fn a_stalled_body_is_given_up_and_resumed() {
    let case = plain();
    case.fault(Wrong::Stall(70_000));
    case.assert_right(0..SIZE).await;
    assert_eq!(case.registry.ranges(&case.digest)[1].start, 70_000);
}

#[tokio::test]
async fn a_slow_body_may_take_longer_than_any_timeout() {
    let options = Options {
        idle_timeout: Duration::from_millis(700),
        ..quick()
    };
    let case = case(
        Setup {
            pace: Some(150_000),
            ..Setup::default()
        },
        options,
    );
    let begun = Instant::now();
    case.assert_right(0..SIZE).await;
    assert!(begun.elapsed() > Duration::from_millis(1500));
    assert_eq!(case.registry.requests(), 1);
}

#[tokio::test]
async fn passing_trouble_is_waited_out() {
    for wrong in [
        Wrong::status(500),
        Wrong::status(503),
        Wrong::Hangup,
        Wrong::too_many("0"),
        Wrong::Shorten(1000),
        Wrong::UnknownTotal,
        Wrong::Lengthen(1000),
        Wrong::Cut(0),
        Wrong::Delay(Duration::from_millis(50)),
    ] {
        let case = plain();
        case.fault(wrong);
        case.assert_right(1000..200_000).await;
    }
}

#[tokio::test]
async fn lasting_trouble_is_an_error_that_says_how_often_was_tried() {
    let case = plain();
    case.always(Wrong::status(500));
    let error = case.get(0..10).await.expect_err("it never works");
    assert!(
        matches!(error, FetchError::GaveUp { attempts: 4, .. }),
        "{error:?}"
    );
    assert!(error.is_transient());
    assert_eq!(case.registry.requests(), 4);
    let said = everything_said(&error);
    assert!(
        said.contains("giving up after 4 attempts") && said.contains("answered 500"),
        "{said}"
    );
}

#[tokio::test]
async fn a_body_that_breaks_for_ever_without_progress_ends_in_an_error() {
    let case = plain();
    case.always(Wrong::Cut(10));
    let error = case
        .get(0..SIZE)
        .await
        .expect_err("ten bytes at a time is no progress");
    assert!(matches!(error, FetchError::GaveUp { .. }), "{error:?}");
    assert_eq!(case.registry.requests(), 4);
    case.registry.clear_faults();
    case.always(Wrong::Cut(70_000));
    case.assert_right(0..SIZE).await;
}

#[tokio::test]
async fn an_answer_with_less_than_was_asked_for_is_completed_by_more_requests() {
    let case = plain();
    case.always(Wrong::GiveAtMost(70_000));
    case.assert_right(5..SIZE).await;
    let starts: Vec<u64> = case
        .registry
        .ranges(&case.digest)
        .iter()
        .map(|r| r.start)
        .collect();
    assert_eq!(starts, [5, 70_005, 140_005, 210_005, 280_005]);
    case.registry.clear_faults();
    case.always(Wrong::GiveAtMost(1));
    let error = case
        .get(0..SIZE)
        .await
        .expect_err("a byte at a time is no service");
    assert!(matches!(error, FetchError::GaveUp { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refusal_is_told_at_once() {
    let case = plain();
    let status = |code, body: &str| Wrong::Status {
        code,
        headers: vec![],
        body: body.to_owned(),
    };
    case.fault(status(
        404,
        r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"no\nsuch blob"}]}"#,
    ));
    let error = case.get(0..10).await.expect_err("refused");
    assert!(!error.is_transient());
    let said = error.to_string();
    assert!(
        said.ends_with("answered 404: BLOB_UNKNOWN no such blob"),
        "{said}"
    );
    case.fault(status(416, "<html>secret</html>"));
    let error = case.get(0..10).await.expect_err("refused");
    assert!(error.to_string().ends_with("answered 416"), "{error}");
    assert_eq!(case.registry.requests(), 2);
}

#[tokio::test]
async fn storage_is_told_where_a_redirect_came_from() {
    let setup = Setup {
        redirect: Some(Redirect {
            uses: 2,
            expired: Expired::Forbidden,
        }),
        wants_referer: true,
        ..Setup::default()
    };
    let case = case(setup, quick());
    // The second read goes straight to the storage address, the third one to a new address.
    for start in [10, 5000, 9000] {
        case.assert_right(start..start + 1000).await;
    }
}

#[tokio::test]
async fn a_server_that_rejects_ranges_to_the_end_is_asked_in_other_forms() {
    for (open, forms) in [(false, 2), (true, 3)] {
        let case = plain();
        case.always(Wrong::RefuseEnd { open });
        case.assert_right(SIZE - 1000..SIZE).await;
        assert_eq!(case.registry.requests(), forms, "{open}");
        case.assert_right(10..20).await;
        assert_eq!(case.registry.requests(), forms + 1, "{open}");
    }
}

#[tokio::test]
async fn a_part_without_its_range_is_taken_only_with_the_length_of_the_range() {
    let case = plain();
    case.always(Wrong::NoContentRange);
    case.assert_right(10..5000).await;
    assert_eq!(case.registry.requests(), 1);
    let case = plain();
    case.always(Wrong::Multipart);
    case.assert_right(10..5000).await;
    assert_eq!(case.registry.requests(), 2, "the whole blob is requested");
}

#[tokio::test]
async fn another_range_is_never_taken_for_the_one_asked_for() {
    for wrong in [
        Wrong::ShiftRange(1),
        Wrong::ShiftRange(100_000),
        Wrong::OtherTotal(1),
    ] {
        let case = plain();
        case.fault(wrong.clone());
        let error = case
            .get(1000..2000)
            .await
            .expect_err("not what was asked for");
        assert!(
            matches!(error, FetchError::WrongRange { .. }),
            "{wrong:?}: {error:?}"
        );
        assert!(!error.is_transient());
        case.assert_right(1000..2000).await;
    }
}

#[tokio::test]
async fn a_wait_that_a_registry_asks_for_is_obeyed_up_to_a_ceiling() {
    let retry = RetryPolicy {
        max_wait: Duration::from_millis(200),
        max_asked: Duration::from_millis(200),
        ..quick().blob_retry
    };
    let case = case(
        Setup::default(),
        Options {
            blob_retry: retry,
            ..quick()
        },
    );
    for (asked, at_least) in [
        ("86400", 200),
        ("0", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ] {
        case.fault(Wrong::too_many(asked));
        let begun = Instant::now();
        case.assert_right(0..10).await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(at_least), "{asked}: {took:?}");
        assert!(took < Duration::from_secs(3), "{asked}: {took:?}");
    }
}

#[tokio::test]
async fn wrong_bytes_pass_here_and_are_found_by_digest() {
    // A range cannot be verified by itself. Callers that know a digest must detect this.
    let case = plain();
    case.fault(Wrong::Flip(5));
    let got = case.get(0..10).await.expect("comes");
    assert_eq!(got[5], !case.bytes[5]);
    case.fault(Wrong::Flip(5));
    let image = case.registry.reference("app", "v1");
    let layer = layer(&case.bytes);
    let error = case
        .client
        .blob_bytes(&image, &layer, 1 << 20)
        .await
        .expect_err("checked");
    assert!(error.to_string().contains("other bytes"), "{error}");
}

#[tokio::test]
async fn an_outage_in_the_middle_of_a_range_is_survived() {
    let setup = Setup {
        pace: Some(1_000_000),
        ..Setup::default()
    };
    let retry = RetryPolicy {
        max_retries: 8,
        min_wait: Duration::from_millis(20),
        max_wait: Duration::from_secs(1),
        max_asked: Duration::from_secs(1),
    };
    let case = case(
        setup,
        Options {
            blob_retry: retry,
            ..quick()
        },
    );
    let mut body = case.blob.fetch(0..SIZE as u64).await.expect("begins");
    let mut got = body
        .next()
        .await
        .expect("goes on")
        .expect("a chunk")
        .to_vec();
    case.registry.set_online(false);
    let switch_on = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        case.registry.set_online(true);
    };
    let read_on = async {
        while let Some(chunk) = body.next().await.expect("survives the outage") {
            got.extend_from_slice(&chunk);
        }
    };
    tokio::join!(switch_on, read_on);
    assert!(got == case.bytes);
}

#[tokio::test]
async fn the_user_agent_is_ours() {
    let case = plain();
    case.assert_right(0..1).await;
    let agent = &case.registry.seen()[0].user_agent;
    assert_eq!(
        agent,
        concat!("soci-snapshotter/", env!("CARGO_PKG_VERSION"))
    );
}
