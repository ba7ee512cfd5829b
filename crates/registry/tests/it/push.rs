//! Uploads: blobs, mounts, and manifests.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use soci_oci::{Digest, media_type};
use soci_registry::{
    RegistryError,
    testing::{Access, Fault, On, Setup, TestRegistry, Wrong, noise},
};

use crate::{client, client_as, layer, login, quick};

fn chunks(bytes: &[u8]) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let chunks: Vec<_> = bytes
        .chunks(10_000)
        .map(|c| Ok(Bytes::copy_from_slice(c)))
        .collect();
    stream::iter(chunks)
}

#[tokio::test]
async fn an_image_can_be_pushed() {
    let access = Access::Token {
        login: Some(("me".to_owned(), "pw".to_owned())),
        lifetime: Duration::from_secs(300),
        oauth: true,
    };
    let registry = TestRegistry::with(Setup {
        access,
        ..Setup::default()
    });
    let client = client_as(quick(), login(&registry, "me", "pw"));
    let image = registry.reference("app", "v1");
    let bytes = noise(1, 100_000);
    let blob = layer(&bytes);
    assert!(
        !client
            .has_blob(&image, &blob.digest)
            .await
            .expect("an answer")
    );
    client
        .push_blob(&image, &blob, chunks(&bytes))
        .await
        .expect("pushed");
    assert!(
        client
            .has_blob(&image, &blob.digest)
            .await
            .expect("an answer")
    );
    assert!(registry.blob(&blob.digest).expect("there") == bytes);
    let other = registry.reference("other", "v1");
    assert!(
        client
            .mount_blob(&other, &blob.digest, "app")
            .await
            .expect("an answer")
    );
    assert!(
        client
            .has_blob(&other, &blob.digest)
            .await
            .expect("an answer")
    );
    let nowhere = Digest::sha256(b"nowhere");
    assert!(
        !client
            .mount_blob(&other, &nowhere, "app")
            .await
            .expect("an answer")
    );
    let manifest = Bytes::from_static(b"{}");
    let kind = media_type::OCI_MANIFEST;
    let digest = client
        .push_manifest(&image, "v1", kind, manifest.clone())
        .await
        .expect("put");
    let found = client.resolve(&image).await.expect("there");
    assert_eq!((found.digest, found.media_type.as_str()), (digest, kind));
    let by_digest = client
        .push_manifest(&other, &digest.to_string(), kind, manifest)
        .await;
    assert_eq!(by_digest.expect("put"), digest);
    assert!(
        client
            .has_manifest(&other, &digest)
            .await
            .expect("an answer")
    );
}

#[tokio::test]
async fn a_failed_push_says_why() {
    let registry = TestRegistry::start();
    let client = client(quick());
    let image = registry.reference("app", "v1");
    let wrong = client
        .push_blob(&image, &layer(b"abc"), chunks(b"abd"))
        .await;
    let error = wrong.expect_err("another digest");
    assert!(
        crate::everything_said(&error).contains("400: DIGEST_INVALID"),
        "{error:?}"
    );
    let broken = stream::iter([
        Ok(Bytes::from_static(b"a")),
        Err(io::Error::other("disk gone")),
    ]);
    let error = client
        .push_blob(&image, &layer(b"abc"), broken)
        .await
        .expect_err("broken");
    assert!(
        matches!(&error, RegistryError::Source { source } if source.to_string() == "disk gone")
    );
    let digest = Digest::sha256(b"other").to_string();
    let mismatch = client
        .push_manifest(&image, &digest, "t", Bytes::new())
        .await;
    assert!(matches!(mismatch, Err(RegistryError::WrongBytes { .. })));
    let headers = vec![];
    registry.fault(Fault::once(
        On::Path("uploads".to_owned()),
        Wrong::Status {
            code: 202,
            headers,
            body: String::new(),
        },
    ));
    let nowhere = client
        .push_blob(&image, &layer(b"abc"), chunks(b"abc"))
        .await;
    assert!(matches!(
        nowhere,
        Err(RegistryError::NoUploadLocation { .. })
    ));
}

#[tokio::test]
async fn a_stalled_upload_is_given_up() {
    let registry = TestRegistry::start();
    let client = client(quick());
    let image = registry.reference("app", "v1");
    let stalled = stream::pending();
    let error = client
        .push_blob(&image, &layer(b"abc"), stalled)
        .await
        .expect_err("stalled");
    assert!(error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn an_upload_that_begins_too_late_is_taken_back() {
    let registry = TestRegistry::start();
    let client = client(quick());
    let image = registry.reference("app", "v1");
    let slow = Wrong::Delay(Duration::from_millis(300));
    registry.fault(Fault::once(On::Path("uploads".to_owned()), slow));
    let canceled = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.cancel_uploads().await;
    };
    let blob = layer(b"abc");
    let pushed = client.push_blob(&image, &blob, chunks(b"abc"));
    let (pushed, ()) = tokio::join!(pushed, canceled);
    assert!(
        matches!(pushed, Err(RegistryError::Canceled { .. })),
        "{pushed:?}"
    );
    let methods = || -> Vec<String> {
        let seen = registry.seen().into_iter();
        seen.map(|seen| seen.method.to_string()).collect()
    };
    for _ in 0..200 {
        if methods().len() > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(methods(), ["POST", "DELETE"]);
    let pushed = client.push_blob(&image, &blob, chunks(b"abc")).await;
    pushed.expect("later uploads are not affected");
}
