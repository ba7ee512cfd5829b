//! Several hosts for one blob.

use super::*;

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
