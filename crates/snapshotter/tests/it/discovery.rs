//! Indexes of version 1: found among the referrers of an image.

use soci_oci::manifest::ImageIndex;
use soci_oci::{Descriptor, json, media_type};
use soci_registry::testing::{Fault, On, Referrers, Setup, TestRegistry, Wrong};
use soci_snapshotter::config::Config;
use tempfile::TempDir;
use tonic::Code;

use crate::image::{Image, REPOSITORY, Shape, file, tar};
use crate::server::Server;

fn registry(referrers: Referrers) -> TestRegistry {
    TestRegistry::with(Setup {
        referrers,
        ..Setup::default()
    })
}

fn publish(registry: &TestRegistry) -> Image {
    let shape = Shape {
        refers: true,
        ..Shape::default()
    };
    Image::publish(registry, &[tar(&[file("a", b"one")])], shape)
}

async fn daemon(v1: bool) -> Server {
    let mut config = Config::default();
    config.pull_modes.soci_v1.enable = v1;
    config.pull_modes.parallel_pull_unpack.enable = Some(false);
    Server::daemon_on(TempDir::new().unwrap(), &config).await
}

/// Whether the daemon mounts the layer lazily.
async fn is_lazy(server: &Server, image: &Image) -> bool {
    let asked = server.prepare_in("default", "extract", "", image.labels(0));
    match asked.await {
        Ok(_) => {
            server.remove("extract").await.unwrap();
            false
        }
        Err(status) => status.code() == Code::AlreadyExists,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_among_the_referrers_is_used_if_that_is_enabled() {
    for v1 in [false, true] {
        let registry = registry(Referrers::default());
        let image = publish(&registry);
        let server = daemon(v1).await;
        assert_eq!(is_lazy(&server, &image).await, v1);
        if v1 {
            let view = server.viewed(&image.target(0)).await;
            assert_eq!(std::fs::read(view.path().join("a")).unwrap(), b"one");
        }
        server.interrupt().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_under_the_tag_is_used_where_the_registry_keeps_none() {
    let registry = registry(Referrers::Missing);
    let image = publish(&registry);
    let server = daemon(true).await;
    assert!(!is_lazy(&server, &image).await, "nothing is listed");
    server.interrupt().await;
    let entry = Descriptor {
        artifact_type: soci_index::ARTIFACT_TYPE_V1.to_owned(),
        ..Descriptor::new(media_type::OCI_MANIFEST, image.index, 1)
    };
    let other = Descriptor {
        artifact_type: "application/other".to_owned(),
        ..Descriptor::new(media_type::OCI_MANIFEST, image.manifest, 1)
    };
    let list = json::to_vec(&ImageIndex::new(vec![other, entry]));
    let tag = image.manifest.to_string().replace(':', "-");
    registry.add_manifest(REPOSITORY, Some(&tag), media_type::OCI_INDEX, list);
    let server = daemon(true).await;
    assert!(is_lazy(&server, &image).await);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_read_is_asked_for_again() {
    let registry = registry(Referrers::default());
    let image = publish(&registry);
    let server = daemon(true).await;
    registry.fault(Fault::always(
        On::Path("/referrers/".to_owned()),
        Wrong::status(500),
    ));
    assert!(!is_lazy(&server, &image).await);
    registry.clear_faults();
    assert!(
        is_lazy(&server, &image).await,
        "the failure is not remembered"
    );
    server.interrupt().await;
}
