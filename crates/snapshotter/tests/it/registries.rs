//! Layers from registries that refuse, ignore ranges or do not answer.

use std::fs;
use std::time::Duration;

use soci_registry::testing::{Fault, On, TestRegistry, Wrong, noise};
use soci_snapshotter::config::Config;
use tempfile::TempDir;
use tonic::Code;

use crate::image::{Image, Shape, file, tar};
use crate::server::{Mounted, Server};

/// More than one span and more than the readahead of one read.
pub(crate) const SIZE: usize = 3_000_000;

pub(crate) fn tars() -> [Vec<u8>; 1] {
    [tar(&[file("a", b"one"), file("big", &noise(1, SIZE))])]
}

/// A configuration without background downloads, so that all requests are those of readers.
pub(crate) fn nothing_behind() -> Config {
    let mut config = Config::default();
    config.background_fetch.disable = true;
    config
}

pub(crate) async fn daemon(config: &Config) -> Server {
    Server::daemon_on(TempDir::new().unwrap(), config).await
}

/// Whether the daemon provides the layer, instead of leaving it to containerd.
pub(crate) async fn provides(server: &Server, image: &Image) -> bool {
    let asked = server.prepare_in("default", "extract", "", image.labels(0));
    match asked.await {
        Ok(mounts) => {
            assert_eq!(mounts[0].r#type, "bind", "{mounts:?}");
            false
        }
        Err(status) => {
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            true
        }
    }
}

pub(crate) async fn read_big(view: &Mounted) -> std::io::Result<Vec<u8>> {
    let path = view.path().join("big");
    tokio::task::spawn_blocking(move || fs::read(path))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_layer_is_refused_is_left_to_containerd() {
    for wrong in [
        Wrong::status(401),
        Wrong::status(403),
        Wrong::status(404),
        Wrong::ShiftRange(1),
    ] {
        let registry = TestRegistry::start();
        let image = Image::publish(&registry, &tars(), Shape::default());
        let server = daemon(&nothing_behind()).await;
        let on = On::Blob(image.layers[0]);
        registry.fault(Fault::always(on, wrong.clone()));
        assert!(!provides(&server, &image).await, "{wrong:?}");
        server.remove("extract").await.unwrap();
        registry.clear_faults();
        assert!(provides(&server, &image).await, "{wrong:?}");
        let view = server.viewed(&image.target(0)).await;
        assert!(read_big(&view).await.unwrap() == noise(1, SIZE));
        drop(view);
        server.interrupt().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_layer_that_is_refused_is_read_again_when_it_is_not() {
    // Some registries return 403 for expired credentials.
    for code in [401, 403] {
        let registry = TestRegistry::start();
        let image = Image::publish(&registry, &tars(), Shape::default());
        let server = daemon(&nothing_behind()).await;
        assert!(provides(&server, &image).await);
        let view = server.viewed(&image.target(0)).await;
        let refuse = |code| {
            let on = On::Blob(image.layers[0]);
            registry.fault(Fault::always(on, Wrong::status(code)));
        };
        // The layer is gone. More attempts would not help.
        refuse(404);
        read_big(&view).await.expect_err("the layer is gone");
        registry.clear_faults();
        // Credentials are missing or have expired. They may be renewed, so the read waits.
        refuse(code);
        let (read, ()) = tokio::join!(read_big(&view), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            registry.clear_faults();
        });
        assert!(read.unwrap() == noise(1, SIZE), "{code}");
        drop(view);
        server.interrupt().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_ignores_ranges_is_read_all_the_same() {
    for cuts in [0, 3] {
        let registry = TestRegistry::start();
        let image = Image::publish(&registry, &tars(), Shape::default());
        let on = || On::Blob(image.layers[0]);
        if cuts > 0 {
            let cut = Fault::always(on(), Wrong::IgnoreRangeAndCut(1_000_000));
            registry.fault(cut.times(cuts));
        }
        registry.fault(Fault::always(on(), Wrong::IgnoreRange));
        let server = daemon(&Config::default()).await;
        assert!(provides(&server, &image).await, "{cuts} cuts");
        let view = server.viewed(&image.target(0)).await;
        let read = read_big(&view).await.unwrap();
        assert!(read == noise(1, SIZE), "{cuts} cuts");
        drop(view);
        server.interrupt().await;
    }
}
