//! Manifests and small blobs: their digests and size limits.

use std::time::{Duration, Instant};

use soci_oci::{Digest, media_type, reference::ImageRef};
use soci_registry::{
    Hosts, Mirror, Options, Registry, RegistryError,
    testing::{Fault, On, TestRegistry, Wrong},
};

use crate::{client, everything_said, layer, quick};

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

#[tokio::test]
async fn tags_and_digests_are_resolved() {
    let registry = TestRegistry::start();
    let put = registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    let client = client(quick());
    let image = registry.reference("app", "v1");
    assert_eq!(client.resolve(&image).await.expect("by tag"), put);
    let by_digest = image.with_digest(put.digest);
    assert_eq!(client.resolve(&by_digest).await.expect("by digest"), put);
    let manifest = client
        .manifest(&image, &put.digest)
        .await
        .expect("the document");
    assert_eq!(manifest.media_type, media_type::OCI_MANIFEST);
    assert_eq!(
        (manifest.digest, &manifest.bytes[..]),
        (put.digest, MANIFEST)
    );
}

#[tokio::test]
async fn a_registry_without_head_is_asked_by_get() {
    let registry = TestRegistry::start();
    let put = registry.add_manifest("app", Some("v1"), media_type::OCI_INDEX, MANIFEST);
    registry.fault(Fault::once(On::Manifest, Wrong::status(405)));
    let found = client(quick())
        .resolve(&registry.reference("app", "v1"))
        .await;
    assert_eq!(found.expect("by GET"), put);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let registry = TestRegistry::start();
    let client = client(quick());
    let image = registry.reference("app", "v1");
    let error = client.resolve(&image).await.expect_err("nothing there");
    assert_eq!(
        error.to_string(),
        format!("{image}: manifests/v1 not found")
    );
    let missing = client.blob_bytes(&image, &layer(b"abc"), 100).await;
    assert!(matches!(missing, Err(RegistryError::NotFound { .. })));
    assert_eq!(registry.requests(), 2, "not repeated");
}

#[tokio::test]
async fn a_400_to_the_first_request_keeps_its_message() {
    let registry = TestRegistry::start();
    let bad = Wrong::Status {
        code: 400,
        headers: vec![],
        body: r#"{"errors":[{"code":"NAME_INVALID","message":"not so"}]}"#.to_owned(),
    };
    registry.fault(Fault::always(On::Any, bad));
    let (client, image) = (client(quick()), registry.reference("app", "v1"));
    for _ in 0..2 {
        let error = client.root(&image).await.expect_err("refused");
        let said = everything_said(&error);
        assert!(said.contains("answered 400: NAME_INVALID not so"), "{said}");
    }
    assert_eq!(registry.requests(), 2, "it is no TLS that is wanted");
}

#[tokio::test]
async fn a_document_is_checked_against_its_digest() {
    let registry = TestRegistry::start();
    let put = registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    registry.fault(Fault::once(On::Manifest, Wrong::Flip(3)));
    let client = client(quick());
    let image = registry.reference("app", "v1");
    let error = client
        .manifest(&image, &put.digest)
        .await
        .expect_err("flipped");
    assert!(
        matches!(error, RegistryError::WrongBytes { .. }),
        "{error:?}"
    );
    client
        .manifest(&image, &put.digest)
        .await
        .expect("right again");
}

#[tokio::test]
async fn a_document_that_breaks_off_is_asked_for_again() {
    let registry = TestRegistry::start();
    let put = registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    registry.fault(Fault::once(On::Manifest, Wrong::Cut(5)));
    registry.fault(Fault::once(On::Manifest, Wrong::status(502)));
    let client = client(quick());
    let manifest = client
        .manifest(&registry.reference("app", "v1"), &put.digest)
        .await;
    assert_eq!(&manifest.expect("in the end").bytes[..], MANIFEST);
    assert_eq!(registry.requests(), 3);
}

#[tokio::test]
async fn a_registry_is_left_alone_as_long_as_it_asks() {
    let registry = TestRegistry::start();
    let put = registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    registry.fault(Fault::once(On::Manifest, Wrong::too_many("2")));
    let mut options = quick();
    options.retry.max_asked = Duration::from_secs(60);
    let begun = Instant::now();
    let (client, image) = (client(options), registry.reference("app", "v1"));
    assert_eq!(client.resolve(&image).await.expect("afterwards"), put);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
}

/// A client with a mirror, and with waits long enough for a test to notice.
fn mirrored(registry: &TestRegistry, mirror: &TestRegistry) -> Registry {
    let mirrors = vec![Mirror {
        host: mirror.host(),
        insecure: true,
        timeout: None,
    }];
    let hosts = Hosts {
        mirrors: [(registry.host(), mirrors)].into(),
        ..Hosts::default()
    };
    let mut options = Options { hosts, ..quick() };
    options.retry.min_wait = Duration::from_secs(30);
    options.retry.max_wait = Duration::from_secs(30);
    options.blob_retry = options.retry;
    client(options)
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_not_found_though_its_mirror_is_dead() {
    let (registry, mirror) = (TestRegistry::start(), TestRegistry::start());
    mirror.set_online(false);
    let client = mirrored(&registry, &mirror);
    let image = registry.reference("app", "v1");
    let begun = Instant::now();
    let error = client.resolve(&image).await.expect_err("nothing there");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
    let missing = client.blob_bytes(&image, &layer(b"abc"), 100).await;
    assert!(matches!(missing, Err(RegistryError::NotFound { .. })));
    assert!(begun.elapsed() < Duration::from_secs(10), "no attempt more");
    assert_eq!(registry.requests(), 2);
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_not_found_though_its_mirror_is_mute() {
    let (registry, mirror) = (TestRegistry::start(), TestRegistry::start());
    let mute = Wrong::Delay(Duration::from_secs(600));
    mirror.fault(Fault::always(On::Any, mute));
    let client = mirrored(&registry, &mirror);
    let image = registry.reference("app", "v1");
    let begun = Instant::now();
    let error = client.resolve(&image).await.expect_err("nothing there");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
    // One timeout for a connection and one for an answer.
    assert!(begun.elapsed() < Duration::from_secs(15), "no attempt more");
    assert_eq!(registry.requests(), 1);
}

#[tokio::test]
async fn a_mirror_that_refuses_is_not_asked_again() {
    let (registry, mirror) = (TestRegistry::start(), TestRegistry::start());
    let put = registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    mirror.fault(Fault::always(On::Any, Wrong::status(403)));
    registry.fault(Fault::always(On::Manifest, Wrong::too_many("0")).times(2));
    let client = mirrored(&registry, &mirror);
    let found = client.resolve(&registry.reference("app", "v1")).await;
    assert_eq!(found.expect("in the end"), put);
    assert_eq!((mirror.requests(), registry.requests()), (1, 3));
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_asked_for_at_the_registry() {
    let (registry, mirror) = (TestRegistry::start(), TestRegistry::start());
    let mut manifests = Vec::new();
    for site in [&registry, &mirror] {
        site.add_blob("app", &b"a small blob"[..]);
        manifests.push(site.add_manifest("app", None, media_type::OCI_MANIFEST, MANIFEST));
    }
    let client = mirrored(&registry, &mirror);
    let (image, blob) = (registry.reference("app", "v1"), layer(b"a small blob"));
    mirror.fault(Fault::always(On::Any, Wrong::Flip(3)));
    let manifest = client.manifest(&image, &manifests[0].digest).await;
    assert_eq!(&manifest.expect("the registry's").bytes[..], MANIFEST);
    assert_eq!((mirror.requests(), registry.requests()), (1, 1));
    // Another client, because this one leaves the mirror alone now.
    let client = mirrored(&registry, &mirror);
    let bytes = client.blob_bytes(&image, &blob, 100).await;
    assert_eq!(bytes.expect("the registry's"), "a small blob");
    assert_eq!((mirror.requests(), registry.requests()), (2, 2));
    registry.fault(Fault::always(On::Any, Wrong::Flip(3)));
    let manifest = client.manifest(&image, &manifests[0].digest).await;
    let bytes = client.blob_bytes(&image, &blob, 100).await;
    for error in [
        manifest.map(drop).expect_err("wrong"),
        bytes.map(drop).expect_err("wrong"),
    ] {
        assert!(
            matches!(error, RegistryError::WrongBytes { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn nothing_larger_than_honest_is_read() {
    let registry = TestRegistry::start();
    let huge = vec![b' '; (4 << 20) + 1];
    let put = registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, huge);
    let client = client(quick());
    let image = registry.reference("app", "v1");
    let error = client
        .manifest(&image, &put.digest)
        .await
        .expect_err("too large");
    assert!(matches!(error, RegistryError::Fetch { .. }), "{error:?}");
    let too_large = client.blob_bytes(&image, &layer(&[0; 101]), 100).await;
    assert!(matches!(
        too_large,
        Err(RegistryError::TooLarge { limit: 100, .. })
    ));
}

#[tokio::test]
async fn small_blobs_come_whole() {
    let registry = TestRegistry::start();
    registry.add_blob("app", &b"{}"[..]);
    let client = client(quick());
    let image = registry.reference("app", "v1");
    assert_eq!(
        client
            .blob_bytes(&image, &layer(b"{}"), 100)
            .await
            .expect("two bytes"),
        "{}"
    );
    assert_eq!(
        client
            .blob_bytes(&image, &layer(b""), 100)
            .await
            .expect("empty"),
        ""
    );
}

#[tokio::test]
async fn a_name_without_object_or_host_is_refused() {
    let client = client(quick());
    let image = ImageRef::from_containerd("r.example:99999/app:v1").expect("containerd takes it");
    assert!(matches!(
        client.resolve(&image).await,
        Err(RegistryError::Host(_))
    ));
    let digest = Digest::sha256(b"");
    assert!(client.manifest(&image, &digest).await.is_err());
    let hosts = Hosts {
        plain_http: true,
        ..Hosts::default()
    };
    let client = crate::client(Options { hosts, ..quick() });
    assert!(client.resolve(&image).await.is_err());
}
