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
async fn a_200_is_the_whole_blob_and_the_range_is_cut_from_it() {
    let case = plain();
    case.always(Wrong::IgnoreRange);
    case.assert_right(0..100).await;
    case.assert_right(150_000..150_100).await;
    case.assert_right(0..SIZE).await;
}

#[tokio::test]
async fn ranges_come_from_a_registry_that_knows_none_and_in_order_nearly_once() {
    const SIZE: u64 = 96 << 20;
    let registry = TestRegistry::start();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(SIZE).expect("a sparse file");
    let far = noise(9, 1000);
    std::os::unix::fs::FileExt::write_all_at(file.as_file(), &far, SIZE - 1000).expect("written");
    let digest = Digest::sha256(b"any name will do");
    registry.add_file("app", &digest, file.path());
    registry.fault(Fault::always(On::Blob(digest), Wrong::IgnoreRange));
    let layer = soci_oci::Descriptor::new("layer", digest, SIZE);
    let blob = client(quick())
        .blob(&registry.reference("app", "v1"), &layer)
        .expect("a blob");
    let mut body = blob.fetch(SIZE - 1000..SIZE).await.expect("begins");
    let chunk = body.next().await.expect("comes").expect("a chunk");
    assert!(body.carried() > 90 << 20, "who waits sees what goes on");
    assert!(chunk[..] == far[..chunk.len()]);
    drop(body);
    let before = registry.bytes_sent(&digest);
    for start in (0..SIZE).step_by(8 << 20) {
        let range = start..start + (8 << 20);
        let bytes = blob.fetch(range).await.expect("begins").collect().await;
        assert_eq!(bytes.expect("comes").len(), 8 << 20);
    }
    let carried = registry.bytes_sent(&digest) - before;
    assert!(
        carried <= SIZE + (8 << 20),
        "the blob once, not {carried} bytes"
    );
}

#[tokio::test]
async fn a_whole_blob_that_is_cut_short_is_gone_on_with() {
    let case = plain();
    case.fault(Wrong::IgnoreRangeAndCut(250_000));
    case.assert_right(200_000..SIZE).await;
    case.fault(Wrong::IgnoreRangeAndCut(100_000));
    case.assert_right(200_000..SIZE).await;
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

fn redirecting(uses: u32, expired: Expired) -> Case {
    let redirect = Some(Redirect { uses, expired });
    case(
        Setup {
            redirect,
            ..Setup::default()
        },
        quick(),
    )
}

#[tokio::test]
async fn a_redirect_is_kept_until_it_runs_out_then_renewed() {
    for expired in [Expired::Forbidden, Expired::ExpiredToken] {
        let case = redirecting(3, expired);
        for i in 0..7 {
            case.assert_right(i * 1000..i * 1000 + 500).await;
        }
        let seen = case.registry.seen();
        let own = seen
            .iter()
            .filter(|seen| seen.path.starts_with("/v2/"))
            .count();
        let signed = seen
            .iter()
            .filter(|seen| seen.path.starts_with("/signed/"))
            .count();
        // Seven reads, of which two first found that the URL was no longer valid.
        assert_eq!((own, signed), (3, 9), "{expired:?}");
    }
}

#[tokio::test]
async fn a_redirect_that_runs_out_inside_a_range_is_renewed_inside_it() {
    let case = redirecting(1, Expired::Forbidden);
    case.registry
        .fault(Fault::once(On::Signed, Wrong::Cut(100_000)));
    case.assert_right(0..SIZE).await;
    let seen = case.registry.seen();
    let starts: Vec<u64> = seen
        .iter()
        .filter_map(|s| s.range.as_ref())
        .map(|r| r.start)
        .collect();
    assert_eq!(starts, [0, 0, 100_000, 100_000, 100_000]);
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let case = plain();
    let location = format!(
        "{}?again=1",
        "/v2/app/blobs/".to_owned() + &case.digest.to_string()
    );
    case.always(Wrong::Status {
        code: 307,
        headers: vec![("location", location)],
        body: String::new(),
    });
    let error = case.get(0..10).await.expect_err("no end");
    assert!(
        matches!(error, FetchError::Redirects { limit: 10, .. }),
        "{error:?}"
    );
    assert_eq!(case.registry.requests(), 11);
}

#[tokio::test]
async fn a_redirect_to_what_is_no_web_address_is_refused() {
    for target in ["file:///etc/passwd", "mailto:x@y", "http://", "//"] {
        let case = plain();
        let headers = vec![("location", target.to_owned())];
        case.fault(Wrong::Status {
            code: 302,
            headers,
            body: String::new(),
        });
        let error = case.get(0..10).await.expect_err("not followed");
        assert!(
            matches!(error, FetchError::BadRedirect { .. }),
            "{target}: {error:?}"
        );
    }
}

#[tokio::test]
async fn signed_addresses_are_never_printed() {
    let case = redirecting(1, Expired::Forbidden);
    case.assert_right(0..10).await;
    case.registry
        .fault(Fault::always(On::Signed, Wrong::status(500)));
    let error = case.get(0..10).await.expect_err("never works");
    let said = everything_said(&error);
    assert!(said.contains("X-Signature=redacted"), "{said}");
    assert!(!said.contains("do-not-print"), "{said}");
    assert!(!format!("{:?} {:?}", case.blob, case.client).contains("do-not-print"));
    case.registry.clear_faults();
    case.registry
        .fault(Fault::always(On::Signed, Wrong::Hangup));
    let said = everything_said(&case.get(0..10).await.expect_err("never works"));
    assert!(
        said.contains("no answer from") && !said.contains("do-not-print"),
        "{said}"
    );
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

#[tokio::test]
async fn the_next_host_is_asked_when_one_fails_at_any_time() {
    let case = plain();
    let mirror = TestRegistry::start();
    mirror.add_blob("app", case.bytes.clone());
    let mirrors = vec![
        Mirror {
            host: "127.0.0.1:1".to_owned(),
            insecure: true,
            timeout: None,
        },
        Mirror {
            host: format!("http://{}", mirror.host()),
            insecure: false,
            timeout: None,
        },
    ];
    let hosts = Hosts {
        mirrors: [(case.registry.host(), mirrors)].into(),
        ..Hosts::default()
    };
    let client = client(Options { hosts, ..quick() });
    let image = case.registry.reference("app", "v1");
    let blob = client.blob(&image, &layer(&case.bytes)).expect("a blob");
    let all = |range: std::ops::Range<u64>| async {
        blob.fetch(range)
            .await
            .expect("begins")
            .collect()
            .await
            .expect("comes")
    };
    assert!(all(0..1000).await == case.bytes[..1000]);
    assert_eq!((mirror.requests(), case.registry.requests()), (1, 0));
    let seen = &mirror.seen()[0];
    assert!(seen.query.starts_with("ns=127.0.0.1"), "{}", seen.query);
    // The mirror fails in the middle of a body and goes offline. The origin continues at the first
    // missing byte.
    mirror.fault(Fault::once(On::Any, Wrong::Cut(100_000)));
    let mut body = blob.fetch(0..SIZE as u64).await.expect("begins");
    let mut got = body
        .next()
        .await
        .expect("goes on")
        .expect("a chunk")
        .to_vec();
    mirror.set_online(false);
    while let Some(chunk) = body.next().await.expect("goes on") {
        got.extend_from_slice(&chunk);
    }
    assert!(got == case.bytes);
    assert_eq!(case.registry.requests(), 1);
    assert!(case.registry.ranges(&case.digest)[0].start > 0);
    // A mirror without the blob.
    mirror.set_online(true);
    mirror.fault(Fault::always(On::Any, Wrong::status(404)));
    assert!(all(5..10).await == case.bytes[5..10]);
    // A mirror with wrong bytes.
    mirror.clear_faults();
    let asked = mirror.requests();
    blob.distrust();
    assert!(all(5..10).await == case.bytes[5..10]);
    assert_eq!(mirror.requests(), asked);
}

#[tokio::test]
async fn a_mirror_that_breaks_every_body_does_not_use_up_the_patience() {
    let case = plain();
    let mirror = TestRegistry::start();
    mirror.add_blob("app", case.bytes.clone());
    mirror.fault(Fault::always(On::Any, Wrong::Cut(10)));
    let mirrors = vec![Mirror {
        host: mirror.host(),
        insecure: true,
        timeout: None,
    }];
    let hosts = Hosts {
        mirrors: [(case.registry.host(), mirrors)].into(),
        ..Hosts::default()
    };
    let client = client(Options { hosts, ..quick() });
    let image = case.registry.reference("app", "v1");
    let blob = client.blob(&image, &layer(&case.bytes)).expect("a blob");
    let body = blob.fetch(0..SIZE as u64).await.expect("begins");
    assert!(body.collect().await.expect("the origin brings it") == case.bytes);
    assert_eq!(case.registry.ranges(&case.digest)[0].start, 10);
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
