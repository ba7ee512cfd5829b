//! Prefetch artifacts: the spans of a layer that are downloaded first.

use std::fs;
use std::time::{Duration, Instant};

use soci_registry::testing::{Fault, On, TestRegistry, Wrong, noise};
use soci_snapshotter::config::Config;
use tempfile::TempDir;
use tonic::Code;

use crate::image::{Image, Shape, file, tar};
use crate::server::Server;

const SPAN: usize = 64 << 10;
/// Spans of the file that no artifact of these tests lists.
const SPANS: usize = 20;

fn publish(registry: &TestRegistry, artifact: &'static str) -> Image {
    let tars = [tar(&[
        file("a", b"one"),
        file("big", &noise(1, SPANS * SPAN)),
    ])];
    let shape = Shape {
        prefetch: Some(artifact),
        ..Shape::default()
    };
    Image::publish(registry, &tars, shape)
}

async fn daemon(enable: bool) -> Server {
    let mut config = Config::default();
    config.background_fetch.disable = true;
    config.prefetch.enable = enable;
    Server::daemon_on(TempDir::new().unwrap(), &config).await
}

async fn mounts(server: &Server, image: &Image) {
    let asked = server.prepare_in("default", "extract", "", image.labels(0));
    let status = asked.await.expect_err("the layer is provided");
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
}

/// Whether bytes of this span were requested.
fn is_requested(registry: &TestRegistry, image: &Image, span: usize) -> bool {
    let (layer, first) = (image.layers[0].to_string(), (span * SPAN) as u64);
    let seen = registry.seen().into_iter();
    let mut ranges = seen
        .filter(|seen| seen.path.ends_with(&layer))
        .filter_map(|seen| seen.range);
    ranges.any(|range| range.contains(&first))
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_spans_are_downloaded_without_a_reader_if_that_is_enabled() {
    const LISTED: &str = r#"{"version":"1.0","prefetch_spans":[{"start_span":7,"end_span":8},{"start_span":3,"end_span":3}]}"#;
    for enable in [true, false] {
        let registry = TestRegistry::start();
        let image = publish(&registry, LISTED);
        let server = daemon(enable).await;
        mounts(&server, &image).await;
        let requested = |span| is_requested(&registry, &image, span);
        if enable {
            let all = || [7, 8, 3].into_iter().all(requested);
            until("the listed spans are requested", all).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(requested(7), enable);
        assert!(!requested(5) && !requested(12), "nobody asked for these");
        server.interrupt().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_or_missing_artifact_costs_nothing() {
    for artifact in [
        r#"{"version":"1.0","prefetch_spans":[{"start_span":2147483000,"end_span":18446744073709551615},{"start_span":0,"end_span":2147483647}]}"#,
        r#"{"version":"2.0","prefetch_spans":[]}"#,
        "rubbish",
        "missing",
    ] {
        let registry = TestRegistry::start();
        let image = publish(&registry, artifact);
        if artifact == "missing" {
            let digest = soci_oci::Digest::sha256(artifact.as_bytes());
            registry.fault(Fault::always(On::Blob(digest), Wrong::status(404)));
        }
        let server = daemon(true).await;
        mounts(&server, &image).await;
        let view = server.viewed(&image.target(0)).await;
        let path = view.path().join("big");
        let read = tokio::task::spawn_blocking(move || fs::read(path));
        assert!(
            read.await.unwrap().unwrap() == noise(1, SPANS * SPAN),
            "{artifact}"
        );
        drop(view);
        server.interrupt().await;
    }
}
