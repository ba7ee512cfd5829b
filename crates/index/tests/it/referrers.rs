//! Indexes for images in a registry.

use std::sync::Arc;

use soci_index::standalone::{CreateRequest, Destination, Request, convert, create};
use soci_index::{ARTIFACT_TYPE_V1, CreateError, CreateOptions, Outcome, Platforms};
use soci_oci::{Descriptor, media_type};
use soci_registry::testing::{TestRegistry, noise};

use crate::image::{Images, build_options, tar};
use crate::standalone::{client, listed, remote};

fn options() -> CreateOptions {
    CreateOptions {
        platforms: Platforms::Default,
        build: build_options(),
    }
}

/// A registry with the image `in:1`, and the layers of the image.
async fn published() -> (TestRegistry, Vec<Descriptor>) {
    let images = Images::new();
    let mut layers = Vec::new();
    for (name, bytes) in [("a", 2 << 20), ("b", 100_000)] {
        let layer = tar(name, &noise(1, bytes));
        layers.push(images.put(media_type::OCI_LAYER, layer).await);
    }
    let source = listed(&images, layers.clone()).await;
    let registry = TestRegistry::start();
    let copy = Destination::Registry(remote(&registry, "in", "1"));
    let mut request = Request::new(source, copy);
    request.options.allow_empty = true;
    request.options.build.min_layer_size = u64::MAX;
    convert(request, Arc::new(())).await.unwrap();
    (registry, layers)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_pushed_as_a_referrer_and_each_layer_is_read_once() {
    let (registry, layers) = published().await;
    let image = remote(&registry, "in", "1");
    let (_, before) = registry.manifest("in", "1").unwrap();
    registry.forget_seen();
    let request = CreateRequest::new(image.clone(), options());
    let creation = create(request, Arc::new(())).await.unwrap();
    assert!(creation.failure.is_none(), "{:?}", creation.failure);
    let [made] = creation.indexes.as_slice() else {
        panic!("{:?}", creation.indexes);
    };
    for layer in &layers {
        let path = format!("/v2/in/blobs/{}", layer.digest);
        let seen = registry.seen();
        let reads = seen
            .iter()
            .filter(|seen| seen.method == "GET" && seen.path == path);
        assert_eq!(reads.count(), 1, "{path}");
    }
    let outcomes = made.parts.layers.iter().map(|layer| &layer.outcome);
    assert_eq!(
        outcomes
            .filter(|it| matches!(it, Outcome::Built(_)))
            .count(),
        2
    );
    let client = client();
    let found = client.referrers(&image.image, &made.subject.digest, ARTIFACT_TYPE_V1);
    let found: Vec<_> = found.await.unwrap().iter().map(|it| it.digest).collect();
    assert_eq!(found, [made.index.digest]);
    assert_eq!(registry.tags("in"), ["1"]);
    assert_eq!(registry.manifest("in", "1").unwrap().1, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_without_an_index_is_reported_and_nothing_is_pushed() {
    let (registry, _) = published().await;
    registry.forget_seen();
    let mut options = options();
    options.build.min_layer_size = u64::MAX;
    let request = CreateRequest::new(remote(&registry, "in", "1"), options);
    let creation = create(request, Arc::new(())).await.unwrap();
    let failure = creation.failure.unwrap();
    assert!(matches!(failure, CreateError::Build(_)), "{failure:?}");
    assert!(creation.indexes.is_empty());
    let seen = registry.seen();
    assert!(seen.iter().all(|seen| seen.method == "GET"), "{seen:?}");
}
