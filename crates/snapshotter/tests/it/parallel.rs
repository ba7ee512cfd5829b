//! Images that are pulled whole, all layers at once.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use soci_oci::Digest;
use soci_registry::testing::{Fault, On, TestRegistry, Wrong, noise};
use soci_snapshotter::config::Config;
use tempfile::TempDir;
use tonic::Code;

use crate::image::{Image, Shape, file, tar};
use crate::layers::{pull_all, pull_all_from, ready, stored, until};
use crate::server::Server;

const SIZE: usize = 200_000;
const UNNAMED: Shape = Shape {
    unnamed: true,
    refers: false,
    without: None,
    rubbish: None,
    prefetch: None,
    recorded: &[],
    span: None,
};

fn tars(count: u64) -> Vec<Vec<u8>> {
    let layer = |n| tar(&[file(&format!("f{n}"), &noise(n, SIZE))]);
    (0..count).map(layer).collect()
}

async fn daemon() -> Server {
    let mut config = Config::default();
    config.background_fetch.disable = true;
    Server::daemon_on(TempDir::new().unwrap(), &config).await
}

async fn labels_of(server: &Server, image: &Image, layer: usize) -> BTreeMap<String, String> {
    let info = server.stat(&image.target(layer)).await.unwrap();
    info.labels.into_iter().collect()
}

async fn is_lazy(server: &Server, image: &Image, layer: usize) -> bool {
    let labels = labels_of(server, image, layer).await;
    labels.contains_key("containerd.io/snapshot/remote")
}

async fn check(server: &Server, image: &Image, layers: usize) {
    let view = server.viewed(&image.target(layers - 1)).await;
    for n in (0..).take(layers) {
        let read = fs::read(view.path().join(format!("f{n}"))).unwrap();
        assert!(read == noise(n, SIZE), "{n}");
    }
}

async fn request(server: &Server, image: &Image, key: &str) {
    let asked = server.prepare_in("default", key, "", image.labels(0));
    assert_eq!(asked.await.unwrap_err().code(), Code::AlreadyExists);
}

/// Asserts that a layer was downloaded once.
fn assert_once(registry: &TestRegistry, layer: &Digest, size: usize) {
    assert_eq!(registry.bytes_sent(layer), size as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_layers_of_an_image_without_an_index_are_downloaded_at_its_first_request() {
    let registry = TestRegistry::start();
    let tars = tars(4);
    let image = Image::publish(&registry, &tars, UNNAMED);
    let server = daemon().await;
    request(&server, &image, "extract-0").await;
    until("all layers are here", async || ready(&server) == 4).await;
    // What is here needs no registry.
    registry.set_online(false);
    pull_all_from(&server, &image, 1).await;
    for (layer, tar) in image.layers.iter().zip(&tars) {
        assert_once(&registry, layer, tar.len());
    }
    let labels = labels_of(&server, &image, 3).await;
    let of_index = labels.keys().filter(|key| key.contains("/remote"));
    let wanted = ["containerd.io/snapshot/remote/namespace"];
    assert_eq!(of_index.collect::<Vec<_>>(), wanted);
    check(&server, &image, 4).await;
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_ends_the_downloads_of_all_layers_and_leaves_nothing() {
    let registry = TestRegistry::start();
    let tars = tars(3);
    let image = Image::publish(&registry, &tars, UNNAMED);
    for layer in &image.layers {
        registry.fault(Fault::always(On::Blob(*layer), Wrong::Stall(1000)));
    }
    let server = daemon().await;
    let came = |layer: &Digest| registry.bytes_sent(layer) > 100;
    tokio::select! {
        said = server.prepare_in("default", "extract-0", "", image.labels(0)) => {
            panic!("{said:?}")
        }
        () = until("all layers begin", async || image.layers.iter().all(came)) => {}
    }
    // The request is dropped.
    let root = server.root.path();
    until("nothing is left", async || stored(root).is_empty()).await;
    registry.clear_faults();
    pull_all(&server, &image).await;
    check(&server, &image, 3).await;
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_pulled_at_once_share_their_layers() {
    let registry = TestRegistry::start();
    let tars = tars(4);
    let below = &tars[..2];
    let one = Image::publish(&registry, &[below, &tars[2..3]].concat(), UNNAMED);
    let two = Image::publish(&registry, &[below, &tars[3..]].concat(), UNNAMED);
    let slow = Wrong::Delay(Duration::from_millis(200));
    for layer in &one.layers[..2] {
        registry.fault(Fault::always(On::Blob(*layer), slow.clone()));
    }
    let server = daemon().await;
    tokio::join!(
        request(&server, &one, "extract-1"),
        request(&server, &two, "extract-2")
    );
    until("all layers are here", async || ready(&server) == 4).await;
    pull_all_from(&server, &one, 1).await;
    pull_all_from(&server, &two, 2).await;
    for (layer, tar) in one.layers.iter().zip(&tars).take(2) {
        assert_once(&registry, layer, tar.len());
    }
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_without_a_ztoc_are_downloaded_at_the_first_request_for_their_image() {
    let registry = TestRegistry::start();
    let shape = Shape {
        without: Some(3),
        ..Shape::default()
    };
    let tars = tars(4);
    let image = Image::publish(&registry, &tars, shape);
    let server = daemon().await;
    request(&server, &image, "extract-0").await;
    until("all layers are here", async || ready(&server) == 4).await;
    registry.set_online(false);
    pull_all_from(&server, &image, 1).await;
    assert_once(&registry, &image.layers[3], tars[3].len());
    assert!(is_lazy(&server, &image, 2).await && !is_lazy(&server, &image, 3).await);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_whole_layers_survives_failures_of_single_requests() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(3), UNNAMED);
    let faults = [Wrong::status(500), Wrong::Hangup, Wrong::Cut(1000)];
    for (layer, wrong) in image.layers.iter().zip(faults) {
        registry.fault(Fault::once(On::Blob(*layer), wrong).times(2));
    }
    let server = daemon().await;
    pull_all(&server, &image).await;
    check(&server, &image, 3).await;
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_whole_if_only_its_index_does_not_arrive() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(1), Shape::default());
    let mut config = Config::default();
    config.http.max_retries = -1;
    config.blob.max_retries = -1;
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    let index = On::Path(format!("/manifests/{}", image.index));
    registry.fault(Fault::always(index, Wrong::status(500)));
    let layer = Fault::always(On::Blob(image.layers[0]), Wrong::status(500));
    registry.fault(layer);
    let left = server.prepare_in("default", "left", "", image.labels(0));
    assert_eq!(left.await.expect("left to containerd")[0].r#type, "bind");
    registry.clear_faults();
    let index = On::Path(format!("/manifests/{}", image.index));
    registry.fault(Fault::always(index, Wrong::status(500)));
    request(&server, &image, "whole").await;
    assert!(!is_lazy(&server, &image, 0).await);
    check(&server, &image, 1).await;
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_an_index_is_pulled_whole_on_request() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(2), Shape::default());
    let mut config = Config::default();
    let keys = &mut config.pull_modes.parallel_pull_unpack;
    (keys.enable, keys.discard_unpacked_layers) = (Some(true), true);
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    pull_all(&server, &image).await;
    for layer in 0..2 {
        assert!(!is_lazy(&server, &image, layer).await);
    }
    let of_index = |path: &str| {
        let mut digests = image.ztocs.iter().chain([&image.index]);
        digests.any(|digest| path.contains(&digest.to_string()))
    };
    let seen = registry.seen();
    assert!(!seen.iter().any(|seen| of_index(&seen.path)), "{seen:#?}");
    registry.set_online(false);
    check(&server, &image, 2).await;
    server.interrupt().await;
}
