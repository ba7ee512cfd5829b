//! What the daemon says about its images: on its status socket, in the log, and in the metrics.

use std::os::unix::fs::PermissionsExt as _;

use soci_status::{Image as Said, Status};

use super::results::{LEFT, left};
use super::*;

/// What the daemon says now.
fn status(place: &Place) -> Status {
    let stream = UnixStream::connect(place.path("s/status.sock")).expect("the socket");
    let answer = Scrape::from(stream, soci_status::PATH).expect("an answer");
    assert!(answer.head.starts_with("HTTP/1.1 200 "), "{answer:?}");
    serde_json::from_str(&answer.body).expect("a status")
}

#[track_caller]
fn find<'a>(status: &'a Status, image: &Image) -> &'a Said {
    let manifest = image.manifest.to_string();
    let found = status.images.iter().find(|said| said.manifest == manifest);
    found.unwrap_or_else(|| panic!("no {manifest}: {status:#?}"))
}

fn verdicts(running: &Running) -> Vec<(&str, &str, &str)> {
    let lines = running.said.iter();
    let lines = lines.filter(|line| line["msg"] == "verdict on an image");
    lines
        .map(|line| (&*line["level"], &*line["verdict"], &*line["reason"]))
        .collect()
}

fn counted(scrape: &Scrape, verdict: &str, reason: &str) -> f64 {
    scrape.get(&format!(
        r#"soci_image_verdict_total{{reason="{reason}",verdict="{verdict}"}}"#
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_image_has_a_verdict_and_the_same_one_everywhere() {
    let registry = TestRegistry::start();
    let image = published(&registry);
    let shape = Shape {
        unnamed: true,
        ..Shape::default()
    };
    let plain = Image::publish(&registry, &[tar(&[file("a", b"plain")])], shape);
    let (place, address) = place_with_metrics(&format!("{NOTHING_BEHIND}{LEFT}"));
    let mut running = Running::start(place.command());
    let socket = fs::metadata(place.path("s/status.sock")).expect("the socket");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    assert!(status(&place).images.is_empty());

    pull(&place, &image).await;
    let before = status(&place);
    assert!(before.mounts_layers);
    let lazy = find(&before, &image);
    assert_eq!((&*lazy.verdict, &*lazy.reason), ("lazy", "index"));
    assert_eq!(lazy.namespace, "default");
    assert!(!lazy.progress.complete && lazy.progress.spans > 1);
    assert_eq!(lazy.reads.reads_waited, 0);
    assert!(read(&place).join().unwrap().unwrap() == noise(1, SIZE));
    left(&place, &plain, "default/1/extract").await;
    let after = status(&place);
    let unindexed = find(&after, &plain);
    let said = (&*unindexed.verdict, &*unindexed.reason);
    assert_eq!(said, ("containerd", "no_index"));
    assert!(!unindexed.progress.complete, "containerd has not committed");
    let lazy = find(&after, &image);
    let [layer] = &lazy.layers[..] else {
        panic!("{lazy:?}");
    };
    assert_eq!(layer.digest, image.layers[0].to_string());
    assert!(layer.progress.spans_on_demand >= 1, "{layer:?}");
    assert!(layer.progress.bytes_on_demand >= SIZE as u64, "{layer:?}");
    assert_eq!(layer.progress.spans_background, 0);
    let reads = layer.reads;
    assert!(reads.reads_waited >= 1 && reads.longest_wait_seconds <= reads.waited_seconds);
    let waits = Scrape::of(&address).get("soci_read_wait_seconds_count");
    assert_eq!(reads.reads_waited as f64, waits);
    assert_eq!((lazy.progress, lazy.reads), (layer.progress, layer.reads));

    let scrape = Scrape::of(&address);
    assert_eq!(counted(&scrape, "lazy", "index"), 1.0);
    assert_eq!(counted(&scrape, "containerd", "no_index"), 1.0);
    assert_eq!(counted(&scrape, "containerd", "unreachable"), 0.0);
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    let lines = verdicts(&running);
    let wanted = [
        ("info", "lazy", "index"),
        ("info", "containerd", "no_index"),
    ];
    assert_eq!(lines, wanted);

    // The next process knows the verdicts, and progress from the disk.
    let mut running = Running::start(place.command());
    let again = status(&place);
    let lazy = find(&again, &image);
    assert_eq!((&*lazy.verdict, &*lazy.reason), ("lazy", "index"));
    assert!(lazy.progress.spans_present > 1, "{lazy:?}");
    assert_eq!(lazy.reads.reads_waited, 0);
    let unindexed = find(&again, &plain);
    let said = (&*unindexed.verdict, &*unindexed.reason);
    assert_eq!(said, ("containerd", "earlier"));
    assert_eq!(running.end(Signal::INT).code(), Some(0));
    assert!(!place.path("s/status.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_a_sparse_index_is_lazy_and_its_other_layers_are_local() {
    let registry = TestRegistry::start();
    let tars = [
        tar(&[file("small", b"small")]),
        tar(&[file("big", &noise(1, SIZE))]),
    ];
    let shape = Shape {
        without: Some(0),
        ..Shape::default()
    };
    let image = Image::publish(&registry, &tars, shape);
    let (place, address) = place_with_metrics(NOTHING_BEHIND);
    let mut running = Running::start(place.command());
    pull(&place, &image).await;
    let mut client = connect(place.path("s/s.sock")).await;
    let below = image.target(0);
    let request = prepare_request("default", "second", &below, image.labels(1));
    let said = client.prepare(request).await.unwrap_err();
    assert_eq!(said.code(), Code::AlreadyExists, "{said}");
    let status = status(&place);
    let said = find(&status, &image);
    assert_eq!((&*said.verdict, &*said.reason), ("lazy", "index"));
    let layers: Vec<_> = said
        .layers
        .iter()
        .map(|layer| (&*layer.verdict, &*layer.reason, layer.progress.complete))
        .collect();
    let wanted = [("local", "no_ztoc", true), ("lazy", "index", false)];
    assert_eq!(layers, wanted);
    let scrape = Scrape::of(&address);
    assert_eq!(counted(&scrape, "local", "no_ztoc"), 1.0);
    assert_eq!(counted(&scrape, "lazy", "index"), 1.0);
    assert_eq!(running.end(Signal::INT).code(), Some(0));
    let wanted = [("info", "local", "no_ztoc"), ("info", "lazy", "index")];
    assert_eq!(verdicts(&running), wanted, "a line when it changes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_an_index_is_parallel_also_for_the_next_process() {
    let registry = TestRegistry::start();
    let shape = Shape {
        unnamed: true,
        ..Shape::default()
    };
    let plain = Image::publish(&registry, &[tar(&[file("a", b"plain")])], shape);
    let (place, address) = place_with_metrics("");
    let mut running = Running::start(place.command());
    pull(&place, &plain).await;
    let said = status(&place);
    let said = find(&said, &plain);
    assert_eq!((&*said.verdict, &*said.reason), ("parallel", "no_index"));
    assert!(said.why.contains("names none"), "{said:?}");
    assert_eq!(counted(&Scrape::of(&address), "parallel", "no_index"), 1.0);
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    assert_eq!(verdicts(&running), [("info", "parallel", "no_index")]);
    let mut running = Running::start(place.command());
    let said = status(&place);
    let said = find(&said, &plain);
    assert_eq!((&*said.verdict, &*said.reason), ("parallel", "earlier"));
    assert!(said.progress.complete);
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_has_its_own_reason_and_is_asked_again() {
    let registry = TestRegistry::start();
    let image = published(&registry);
    let (place, address) = place_with_metrics("");
    let mut running = Running::start(place.command());
    let manifests = On::Path("/manifests/".to_owned());
    registry.fault(Fault::always(manifests, Wrong::status(500)));
    left(&place, &image, "default/1/extract").await;
    registry.clear_faults();
    pull(&place, &image).await;
    let scrape = Scrape::of(&address);
    assert_eq!(counted(&scrape, "containerd", "unreachable"), 1.0);
    assert_eq!(counted(&scrape, "lazy", "index"), 1.0, "not remembered");
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_daemon_fails_the_pull_of_an_indexed_image_that_is_not_lazy() {
    let registry = TestRegistry::start();
    let tars = [tar(&[file("a", b"one")])];
    let shape = Shape {
        rubbish: Some(0),
        ..Shape::default()
    };
    let broken = Image::publish(&registry, &tars, shape);
    let shape = Shape {
        unnamed: true,
        ..Shape::default()
    };
    let plain = Image::publish(&registry, &[tar(&[file("a", b"two")])], shape);
    let whole = published(&registry);
    let (place, address) = place_with_metrics("[snapshotter]\nstrict = true\n");
    let mut running = Running::start(place.command());
    let mut client = connect(place.path("s/s.sock")).await;
    let request = prepare_request("default", "broken", "", broken.labels(0));
    let said = client.prepare(request).await.expect_err("refused");
    assert_eq!(said.code(), Code::FailedPrecondition, "{said}");
    let text = said.message();
    assert!(
        text.contains("strict") && text.contains(&broken.layers[0].to_string()),
        "{text}"
    );
    pull_as(&place, &plain, "plain", 0, None).await;
    pull(&place, &whole).await;

    let status = status(&place);
    let said = find(&status, &broken);
    assert_eq!((&*said.verdict, &*said.reason), ("refused", "bad_ztoc"));
    let said = find(&status, &plain);
    assert_eq!((&*said.verdict, &*said.reason), ("parallel", "no_index"));
    assert!(said.progress.complete && said.progress.bytes_background > 0);
    assert_eq!(find(&status, &whole).verdict, "lazy");
    assert_eq!(counted(&Scrape::of(&address), "refused", "bad_ztoc"), 1.0);
    // Nothing is left behind: only the two others have a snapshot.
    let snapshots = fs::read_dir(place.path("root/snapshotter/snapshots")).unwrap();
    assert_eq!(snapshots.count(), 2);
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}
