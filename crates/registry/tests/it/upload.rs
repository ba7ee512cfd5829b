//! Blob uploads to a registry: which bytes are sent, and how failures are handled.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use soci_oci::{Descriptor, media_type};
use soci_registry::{
    BlobSource, BlobStream, Registry, RegistryError, Uploaded,
    testing::{Access, Fault, On, Setup, TestRegistry, Wrong, noise},
};

use crate::{client, client_as, everything_said, layer, login, quick};

/// A source that counts how often it is opened.
struct Counted {
    bytes: Bytes,
    opened: AtomicUsize,
}

#[async_trait]
impl BlobSource for Counted {
    async fn open(&self) -> io::Result<BlobStream> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let chunks = self.bytes.chunks(10_000).map(Bytes::copy_from_slice);
        let chunks: Vec<_> = chunks.map(Ok).collect();
        Ok(Box::pin(stream::iter(chunks)))
    }
}

struct Upload {
    blob: Descriptor,
    source: Counted,
    sent: Arc<AtomicU64>,
}

impl Upload {
    fn of(bytes: &[u8]) -> Upload {
        Upload {
            blob: layer(bytes),
            source: Counted {
                bytes: Bytes::copy_from_slice(bytes),
                opened: AtomicUsize::new(0),
            },
            sent: Arc::default(),
        }
    }

    async fn run(
        &self,
        client: &Registry,
        registry: &TestRegistry,
        from: &[&str],
    ) -> Result<Uploaded, RegistryError> {
        let image = registry.reference("app", "v1");
        let from: Vec<String> = from.iter().map(|name| (*name).to_owned()).collect();
        let sent = Arc::clone(&self.sent);
        let count = Arc::new(move |bytes| {
            sent.fetch_add(bytes, Ordering::Relaxed);
        });
        client
            .upload_blob(&image, &self.blob, &from, &self.source, count)
            .await
    }

    fn opened(&self) -> usize {
        self.source.opened.load(Ordering::Relaxed)
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn requests(registry: &TestRegistry) -> Vec<String> {
    let seen = registry.seen().into_iter();
    seen.map(|seen| format!("{} {}", seen.method, seen.status))
        .collect()
}

#[tokio::test]
async fn what_is_not_there_is_sent_and_what_is_there_is_not() {
    let registry = TestRegistry::start();
    let (client, bytes) = (client(quick()), noise(1, 100_000));
    let first = Upload::of(&bytes);
    let done = first.run(&client, &registry, &[]).await.expect("sent");
    assert_eq!((done, first.sent()), (Uploaded::Sent, 100_000));
    assert!(registry.blob(&first.blob.digest).expect("there") == bytes);
    assert_eq!(requests(&registry), ["HEAD 404", "POST 202", "PUT 201"]);
    registry.forget_seen();
    let again = Upload::of(&bytes);
    let done = again.run(&client, &registry, &[]).await.expect("there");
    assert_eq!((done, again.opened()), (Uploaded::AlreadyThere, 0));
    assert_eq!(requests(&registry), ["HEAD 200"]);
}

#[tokio::test]
async fn a_registry_without_head_is_asked_by_get() {
    for code in [405, 501] {
        let registry = TestRegistry::start();
        let (client, bytes) = (client(quick()), noise(1, 100_000));
        let on = On::Head("/v2/".to_owned());
        registry.fault(Fault::always(on, Wrong::status(code)));
        let upload = Upload::of(&bytes);
        let done = upload.run(&client, &registry, &[]).await.expect("sent");
        assert_eq!(done, Uploaded::Sent, "{code}");
        let again = Upload::of(&bytes);
        let done = again.run(&client, &registry, &[]).await.expect("there");
        assert_eq!((done, again.opened()), (Uploaded::AlreadyThere, 0));
        let image = registry.reference("app", "v1");
        let manifest = registry.add_manifest("app", None, media_type::OCI_MANIFEST, &b"{}"[..]);
        assert!(
            client
                .has_manifest(&image, &manifest.digest)
                .await
                .expect("an answer")
        );
        let absent = layer(b"absent").digest;
        assert!(
            !client
                .has_manifest(&image, &absent)
                .await
                .expect("an answer")
        );
    }
}

#[tokio::test]
async fn another_repository_gives_what_it_has() {
    let registry = TestRegistry::start();
    let (client, bytes) = (client(quick()), noise(2, 50_000));
    registry.add_blob("base", bytes.clone());
    let upload = Upload::of(&bytes);
    let done = upload
        .run(&client, &registry, &["app", "empty", "base"])
        .await;
    assert_eq!(done.expect("mounted"), Uploaded::Mounted);
    assert!(registry.has_blob("app", &upload.blob.digest));
    assert_eq!((upload.opened(), upload.sent()), (0, 0));
}

#[tokio::test]
async fn an_upload_begun_instead_of_a_mount_is_used() {
    let registry = TestRegistry::with(Setup {
        mounts_nothing: true,
        ..Setup::default()
    });
    let (client, bytes) = (client(quick()), noise(3, 50_000));
    registry.add_blob("base", bytes.clone());
    let upload = Upload::of(&bytes);
    let done = upload.run(&client, &registry, &["base"]).await;
    assert_eq!(done.expect("sent"), Uploaded::Sent);
    assert_eq!(requests(&registry), ["HEAD 404", "POST 202", "PUT 201"]);
}

#[tokio::test]
async fn of_uploads_begun_instead_of_mounts_one_is_used_and_none_is_left() {
    let registry = TestRegistry::with(Setup {
        mounts_nothing: true,
        ..Setup::default()
    });
    let upload = Upload::of(&noise(3, 50_000));
    let done = upload.run(&client(quick()), &registry, &["a", "b"]).await;
    assert_eq!(done.expect("sent"), Uploaded::Sent);
    let expected = ["HEAD 404", "POST 202", "POST 202", "DELETE 204", "PUT 201"];
    assert_eq!(requests(&registry), expected);
}

#[tokio::test]
async fn a_mount_that_is_refused_is_no_obstacle() {
    let registry = TestRegistry::start();
    let client = client(quick());
    registry.fault(Fault::always(
        On::Path("mount=".to_owned()),
        Wrong::status(403),
    ));
    let upload = Upload::of(b"abc");
    let done = upload.run(&client, &registry, &["base"]).await;
    assert_eq!(done.expect("sent"), Uploaded::Sent);
}

#[tokio::test]
async fn passing_trouble_is_waited_out_and_bytes_are_told_once() {
    let registry = TestRegistry::start();
    let client = client(quick());
    for wrong in [
        Wrong::status(503),
        Wrong::Hangup,
        Wrong::too_many("0"),
        Wrong::status(401),
    ] {
        let upload = Upload::of(format!("{wrong:?}").as_bytes());
        let on = On::Path("/uploads/upload-".to_owned());
        registry.fault(Fault::once(on, wrong.clone()));
        let done = upload.run(&client, &registry, &[]).await;
        assert_eq!(done.expect("sent"), Uploaded::Sent, "{wrong:?}");
        assert_eq!(upload.opened(), 2);
        assert_eq!(upload.sent(), upload.blob.size);
    }
}

#[tokio::test]
async fn lasting_trouble_ends_with_what_the_registry_says() {
    let registry = TestRegistry::start();
    let client = client(quick());
    for (code, requests) in [(507, 4), (501, 1), (403, 1), (413, 1)] {
        registry.clear_faults();
        registry.forget_seen();
        let on = On::Path("/uploads/upload-".to_owned());
        registry.fault(Fault::always(on, Wrong::status(code)));
        let upload = Upload::of(b"abc");
        let error = upload.run(&client, &registry, &[]).await;
        let said = everything_said(&error.expect_err("refused"));
        assert!(said.contains(&format!("answered {code}")), "{said}");
        assert_eq!(upload.opened(), requests, "{code}");
    }
}

#[tokio::test]
async fn attempts_at_an_upload_are_not_multiplied_by_the_questions_between_them() {
    let registry = TestRegistry::start();
    let client = client(quick());
    registry.fault(Fault::always(
        On::Path("/blobs/sha256".to_owned()),
        Wrong::status(503),
    ));
    registry.fault(Fault::always(
        On::Path("/blobs/uploads".to_owned()),
        Wrong::status(500),
    ));
    let (image, bytes) = (registry.reference("app", "v1"), Bytes::from_static(b"abc"));
    let blob = layer(&bytes);
    let sent = client.send_blob(&image, &blob, &[], &bytes, Arc::new(|_| {}));
    let said = everything_said(&sent.await.expect_err("refused"));
    assert!(said.contains("answered 500"), "{said}");
    let once = ["POST 500", "HEAD 503"];
    assert_eq!(
        requests(&registry),
        [&once[..], &once, &once, &once[..1]].concat()
    );
}

#[tokio::test]
async fn an_upload_to_another_host_goes_without_credentials() {
    let storage = TestRegistry::start();
    let access = Access::Basic {
        user: "me".to_owned(),
        password: "pw".to_owned(),
    };
    let registry = TestRegistry::with(Setup {
        access,
        ..Setup::default()
    });
    let client = client_as(quick(), login(&registry, "me", "pw"));
    for (number, part, code) in [(1, "uploads/?", 202), (2, "uploads/upload-", 307)] {
        // The failed mount starts an upload there.
        let (nothing, absent) = (storage.reference("app", "v1"), layer(b"nothing").digest);
        let begun = client.mount_blob(&nothing, &absent, "other").await;
        assert!(!begun.expect("an answer"));
        let upload = Upload::of(&noise(number, 20_000));
        let mut target = format!(
            "http://{}/v2/app/blobs/uploads/upload-{number}?signed=yes",
            storage.host()
        );
        if code == 307 {
            target += &format!("&digest={}", upload.blob.digest);
        }
        let elsewhere = Wrong::Status {
            code,
            headers: vec![("location", target)],
            body: String::new(),
        };
        registry.fault(Fault::once(On::Path(part.to_owned()), elsewhere));
        let done = upload.run(&client, &registry, &[]).await;
        assert_eq!(done.expect("sent"), Uploaded::Sent, "{part}");
        assert!(storage.blob(&upload.blob.digest).is_some());
    }
    let mut seen = storage.seen().into_iter();
    assert!(seen.all(|seen| seen.authorization.is_none()));
}

#[tokio::test]
async fn an_upload_that_is_sent_on_goes_on_there() {
    let registry = TestRegistry::start();
    let client = client(quick());
    let upload = Upload::of(b"abc");
    let target = "/v2/app/blobs/uploads/upload-1?moved=yes&digest=";
    let moved = Wrong::Status {
        code: 307,
        headers: vec![("location", format!("{target}{}", upload.blob.digest))],
        body: String::new(),
    };
    let on = On::Path("/uploads/upload-1".to_owned());
    registry.fault(Fault::once(on, moved));
    let done = upload.run(&client, &registry, &[]).await;
    assert_eq!((done.expect("sent"), upload.opened()), (Uploaded::Sent, 2));
    let last = registry.seen().pop().expect("a request");
    assert!(last.query.starts_with("moved=yes&digest="), "{last:?}");
}

#[tokio::test]
async fn a_source_that_is_not_the_blob_is_found_out() {
    let registry = TestRegistry::start();
    let client = client(quick());
    let image = registry.reference("app", "v1");
    for (bytes, says) in [
        (&b"ab"[..], "2 of the 3 bytes"),
        (b"abcd", "more than the 3 bytes"),
    ] {
        let source = Bytes::copy_from_slice(bytes);
        let error = client
            .upload_blob(&image, &layer(b"abc"), &[], &source, Arc::new(|_| {}))
            .await;
        let said = everything_said(&error.expect_err("another blob"));
        assert!(said.contains(says), "{said}");
    }
}

#[tokio::test]
async fn a_web_page_is_not_taken_for_a_registry() {
    let registry = TestRegistry::start();
    let client = client(quick());
    let page = Wrong::Status {
        code: 200,
        headers: vec![("content-type", "text/html; charset=utf-8".to_owned())],
        body: "<html>Please log in</html>".to_owned(),
    };
    registry.fault(Fault::always(On::Any, page));
    let image = registry.reference("app", "v1");
    let digest = layer(b"abc").digest;
    let errors = [
        client.has_blob(&image, &digest).await.expect_err("a page"),
        client
            .has_manifest(&image, &digest)
            .await
            .expect_err("a page"),
        client
            .mount_blob(&image, &digest, "base")
            .await
            .expect_err("a page"),
        client.resolve(&image).await.expect_err("a page"),
        client.manifest(&image, &digest).await.expect_err("a page"),
    ];
    for error in errors {
        let said = everything_said(&error);
        assert!(
            said.contains("with a web page, as no registry does"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_registry_that_speaks_of_another_blob_is_not_believed() {
    let registry = TestRegistry::start();
    let client = client(quick());
    let other = Wrong::Status {
        code: 200,
        headers: vec![("docker-content-digest", layer(b"other").digest.to_string())],
        body: String::new(),
    };
    registry.fault(Fault::always(On::Any, other));
    let image = registry.reference("app", "v1");
    let digest = layer(b"abc").digest;
    let blob = client.has_blob(&image, &digest).await;
    assert!(
        matches!(blob, Err(RegistryError::WrongBytes { .. })),
        "{blob:?}"
    );
    let manifest = client.has_manifest(&image, &digest).await;
    assert!(matches!(manifest, Err(RegistryError::WrongBytes { .. })));
}
