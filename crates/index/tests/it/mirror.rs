//! Images whose registry has a mirror with corrupt copies.

use std::sync::Arc;
use std::time::Duration;

use soci_index::{BuildContext, CreateOptions, Platforms, create};
use soci_oci::reference::ImageRef;
use soci_oci::{Descriptor, media_type};
use soci_registry::credentials::Anonymous;
use soci_registry::retry::RetryPolicy;
use soci_registry::testing::{Fault, On, TestRegistry, Wrong};
use soci_registry::{Hosts, Mirror, Options, Registry};
use soci_store::registry::{RegistryStore, RegistryTarget, UPLOADS_AT_ONCE};

use crate::image::{Images, build_options};

/// An image in a registry and its mirror, and a client configured with both.
struct Scene {
    images: Images,
    registry: TestRegistry,
    mirror: TestRegistry,
    client: Registry,
    root: Descriptor,
    layer: Descriptor,
}

impl Scene {
    async fn new() -> Self {
        let (registry, mirror) = (TestRegistry::start(), TestRegistry::start());
        let images = Images::new();
        let layer = images.layer("a-file").await;
        let root = images.manifest("linux/amd64", vec![layer.clone()]).await;
        let manifest: soci_oci::Manifest = images.read(&root.digest).await;
        for site in [&registry, &mirror] {
            for blob in [&layer, &manifest.config] {
                let bytes = images.store.read(&blob.digest, 1 << 20).await.unwrap();
                site.add_blob("app", bytes);
            }
            let bytes = images.store.read(&root.digest, 1 << 20).await.unwrap();
            site.add_manifest("app", Some("v1"), media_type::DOCKER_MANIFEST, bytes);
        }
        let mirrors = vec![Mirror {
            host: mirror.host(),
            insecure: true,
            timeout: None,
        }];
        let hosts = Hosts {
            mirrors: [(registry.host(), mirrors)].into(),
            ..Hosts::default()
        };
        let retry = RetryPolicy {
            max_retries: 2,
            min_wait: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
        let options = Options {
            hosts,
            retry,
            ..Options::default()
        };
        let client = Registry::new(options, Arc::new(Anonymous)).unwrap();
        Self {
            images,
            registry,
            mirror,
            client,
            root,
            layer,
        }
    }

    fn image(&self) -> ImageRef {
        self.registry.reference("app", "v1")
    }

    fn break_layer(&self, site: &TestRegistry) {
        let on = On::Blob(self.layer.digest);
        site.fault(Fault::always(on, Wrong::Flip(515)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_a_mirror_has_wrong_is_read_from_the_registry() {
    let scene = Scene::new().await;
    scene.break_layer(&scene.mirror);
    let store = RegistryStore::new(scene.client.clone(), scene.image());
    store.root().await.unwrap();
    let context = BuildContext {
        source: Arc::new(store.clone()),
        ..scene.images.context()
    };
    let options = CreateOptions {
        platforms: Platforms::All,
        build: build_options(),
    };
    let creation = create(&context, &scene.root, &options).await;
    assert!(creation.failure.is_none(), "{:?}", creation.failure);
    assert_eq!(creation.indexes.len(), 1);
    assert_eq!(scene.mirror.ranges(&scene.layer.digest).len(), 1);
    assert_eq!(scene.registry.ranges(&scene.layer.digest).len(), 1);
    // If no copy is correct, the result is an error.
    scene.break_layer(&scene.registry);
    let creation = create(&context, &scene.root, &options).await;
    assert!(creation.indexes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_layer_that_a_mirror_has_wrong_is_read_from_the_registry() {
    let scene = Scene::new().await;
    scene.break_layer(&scene.mirror);
    let store = RegistryStore::new(scene.client.clone(), scene.image());
    let root = store.root().await.unwrap();
    let elsewhere = TestRegistry::start();
    let image = elsewhere.reference("copy", "v1");
    let target = RegistryTarget::new(scene.client.clone(), image, &[], UPLOADS_AT_ONCE);
    target.finish(Arc::new(store), &root).await.unwrap();
    assert!(elsewhere.has_blob("copy", &scene.layer.digest));
}
