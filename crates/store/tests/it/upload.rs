//! Uploads of blobs that are in a store, and stores that upload.

use std::{io::Write as _, num::NonZeroUsize, sync::Arc, time::Duration};

use soci_registry::{
    RegistryError, Uploaded,
    testing::{Fault, On, TestRegistry, Wrong, noise},
};
use soci_store::{
    Content, ContentStore, FromStore,
    layout::Layout,
    registry::{RegistryTarget, UPLOADS_AT_ONCE},
};

use crate::{client, layer};

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_a_store_is_sent_as_it_is_read_and_checked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layout = Layout::create(folder.path()).expect("a layout");
    let bytes = noise(5, 1_000_000);
    let blob = layer(&bytes);
    let content = Content::Bytes(bytes.clone().into());
    layout.put(&blob, content).await.expect("stored");
    let source = FromStore {
        store: Arc::new(layout),
        blob: blob.clone(),
    };
    let registry = TestRegistry::start();
    let client = client();
    let image = registry.reference("app", "v1");
    let sent = Arc::new(|_| {});
    let done = client
        .upload_blob(&image, &blob, &[], &source, sent.clone())
        .await;
    assert_eq!(done.expect("sent"), Uploaded::Sent);
    assert!(registry.blob(&blob.digest).expect("there") == bytes);
    let file = folder.path().join("blobs/sha256").join(blob.digest.hex());
    std::fs::remove_file(&file).expect("remove the blob");
    std::fs::write(&file, noise(6, bytes.len())).expect("write another");
    let other = registry.reference("other", "v1");
    let error = client.upload_blob(&other, &blob, &[], &source, sent).await;
    let error = error.expect_err("another blob");
    assert!(matches!(&error, RegistryError::Source { .. }), "{error:?}");
    // The registry notes a request that broke off when it finds out.
    let noted = async {
        loop {
            let last = registry.seen().pop().expect("a request");
            if last.method == "PUT" {
                break last;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let put = tokio::time::timeout(Duration::from_secs(10), noted);
    let put = put.await.expect("the PUT is noted");
    assert!(put.received < blob.size, "not all was sent: {put:?}");
    let gone = FromStore {
        blob: layer(b"gone"),
        ..source
    };
    let error = client
        .upload_blob(&other, &gone.blob, &[], &gone, Arc::new(|_| {}))
        .await;
    let error = error.expect_err("not there");
    assert!(format!("{error:?}").contains("NotFound"), "{error:?}");
}

/// How a target ends.
#[derive(Clone, Copy)]
enum End {
    Dropped,
    Cancelled,
    Aborted,
}

#[tokio::test]
async fn uploads_end_with_their_target() {
    let registry = TestRegistry::start();
    let slow = Wrong::Delay(Duration::from_millis(100));
    registry.fault(Fault::always(On::Path("uploads/".into()), slow));
    let client = client();
    for end in [End::Dropped, End::Cancelled, End::Aborted] {
        let target = RegistryTarget::new(
            client.clone(),
            registry.reference("app", "1"),
            &[],
            UPLOADS_AT_ONCE,
        );
        let bytes = noise(end as u64, 50_000);
        let blob = layer(&bytes);
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("write the blob");
        registry.forget_seen();
        let put = target.put(&blob, Content::File(file)).await;
        put.expect("an upload is begun");
        while !registry.seen().iter().any(|seen| seen.method == "POST") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match end {
            End::Dropped => drop(target),
            End::Cancelled => {
                target.cancel().await;
                let file = Content::File(tempfile::tempfile().expect("a file"));
                target.put(&layer(b""), file).await.expect_err("no more");
            }
            End::Aborted => {
                target.abort();
                let bytes = Content::Bytes("more".into());
                target
                    .put(&layer(b"more"), bytes)
                    .await
                    .expect_err("no more");
            }
        }
        client.cancel_uploads().await;
        let requests = registry.requests();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(registry.requests(), requests, "nothing goes on");
        assert!(!registry.has_blob("app", &blob.digest));
    }
}

#[tokio::test]
async fn an_upload_that_a_thread_waits_for_ends_with_its_target() {
    let registry = TestRegistry::start();
    let slow = Wrong::Delay(Duration::from_secs(20));
    registry.fault(Fault::always(On::Path("uploads/".into()), slow));
    let image = registry.reference("app", "1");
    let target = RegistryTarget::new(client(), image, &[], UPLOADS_AT_ONCE);
    let bytes = noise(1, 5000);
    let (blob, content) = (layer(&bytes), Content::Bytes(bytes.into()));
    let aborted = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        target.abort();
    };
    let put = async { tokio::join!(target.put(&blob, content), aborted) };
    let (put, ()) = tokio::time::timeout(Duration::from_secs(10), put)
        .await
        .expect("the upload does not go on");
    put.expect_err("given up");
}

#[tokio::test]
async fn any_number_of_uploads_at_once_is_accepted() {
    let registry = TestRegistry::start();
    let image = registry.reference("app", "1");
    let target = RegistryTarget::new(client(), image, &[], NonZeroUsize::MAX);
    let blob = layer(b"abc");
    let content = Content::Bytes(b"abc".as_slice().into());
    target.put(&blob, content).await.expect("an upload");
    target.settle().await.expect("the upload");
    assert!(registry.has_blob("app", &blob.digest));
}
