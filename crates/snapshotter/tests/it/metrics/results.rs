//! The results of requests for layers.

use super::*;

const MOUNT_FAILURES: &str =
    r#"soci_fs_operation_count{layer="",operation_type="fuse_mount_failure_count"}"#;
const LOCAL_FAILURES: &str =
    r#"soci_fs_operation_count{layer="",operation_type="local_mount_failure_count"}"#;
const NO_INDEX: &str = r#"soci_prepared_layers_total{result="no_index"}"#;
const FAILED: &str = r#"soci_prepared_layers_total{result="failed"}"#;

/// Images without an index are left to containerd.
pub(super) const LEFT: &str = "[pull_modes.parallel_pull_unpack]\nenable = false\n";

/// Prepares a layer that is left to containerd.
pub(super) async fn left(place: &Place, image: &Image, key: &str) {
    let mut client = connect(place.path("s/s.sock")).await;
    let request = prepare_request("default", key, "", image.labels(0));
    client.prepare(request).await.expect("mounts to unpack to");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_an_index_is_no_failure() {
    let registry = TestRegistry::start();
    let shape = Shape {
        unnamed: true,
        ..Shape::default()
    };
    let tars = [tar(&[file("big", &noise(1, SIZE))])];
    let plain = Image::publish(&registry, &tars, shape);
    let (place, address) = place_with_metrics(LEFT);
    let mut running = Running::start(place.command());
    left(&place, &plain, "plain").await;
    let counted = |scrape: &Scrape| {
        [NO_INDEX, FAILED, MOUNT_FAILURES, LOCAL_FAILURES].map(|series| scrape.get(series))
    };
    let scrape = Scrape::of(&address);
    assert_eq!(counted(&scrape), [1.0, 0.0, 0.0, 0.0]);

    let tars = [tar(&[file("big", &noise(2, SIZE))])];
    let refused = Image::publish(&registry, &tars, Shape::default());
    let on = On::Blob(refused.layers[0]);
    registry.fault(Fault::always(on, Wrong::status(404)));
    left(&place, &refused, "refused").await;
    let scrape = Scrape::of(&address);
    assert_eq!(counted(&scrape), [1.0, 1.0, 1.0, 1.0]);
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_its_image_says_is_counted_and_logged() {
    let registry = TestRegistry::start();
    let image = published(&registry);
    let (place, address) = place_with_metrics("");
    let mut running = Running::start(place.command());
    pull_as(
        &place,
        &image,
        "key",
        0,
        Some(Digest::sha256(b"another tar")),
    )
    .await;
    let scrape = until(&address, "soci_quarantined_layers_total", 1.0);
    assert_eq!(scrape.get(r#"soci_mounted_layers{state="complete"}"#), 1.0);
    let background = scrape.get(r#"soci_fetched_bytes_total{purpose="background"}"#);
    assert!(background >= SIZE as f64, "{background}");
    assert_eq!(running.end(Signal::INT).code(), Some(0));
    let line = running
        .said
        .iter()
        .find(|line| line["msg"].starts_with("the layer does not match"));
    let line = line.expect("a line in the log");
    for key in ["image", "layer", "index", "why"] {
        assert!(line.contains_key(key), "{line:?}");
    }
    assert_eq!(line["layer"], image.layers[0].to_string());
}
