//! Many uploads to one host, and slow ones: they do not block each other, and they continue as long
//! as they make progress.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all, stream};
use soci_oci::{Digest, media_type, reference::ImageRef};
use soci_registry::{
    BlobSource, BlobStream, Options, Registry, Uploaded,
    testing::{Fault, On, Setup, TestRegistry, Wrong, noise},
};
use tokio::{sync::Barrier, task::JoinSet};

use crate::{client, layer, quick};

/// Bytes of which the first arrive at once, and the rest when all uploads have started.
struct Gated {
    bytes: Bytes,
    gate: Arc<Barrier>,
}

#[async_trait]
impl BlobSource for Gated {
    async fn open(&self) -> io::Result<BlobStream> {
        let (mut rest, gate) = (self.bytes.clone(), Arc::clone(&self.gate));
        let first = rest.split_to(1000);
        let rest = stream::once(async move {
            gate.wait().await;
            Ok(rest)
        });
        Ok(Box::pin(stream::iter([Ok(first)]).chain(rest)))
    }
}

async fn uploads_begun(registry: &TestRegistry, count: usize) {
    let begun = || {
        let seen = registry.seen().into_iter();
        seen.filter(|seen| seen.method == "PUT").count()
    };
    while begun() < count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn nobody_waits_for_the_body_of_an_upload() {
    const UPLOADS: usize = 40;
    let registry = TestRegistry::start();
    let options = Options {
        idle_timeout: Duration::from_secs(20),
        ..quick()
    };
    let client = client(options);
    let image = registry.reference("app", "v1");
    let gate = Arc::new(Barrier::new(UPLOADS + 1));
    let uploads = (0..UPLOADS as u64).map(|number| {
        let (client, image, gate) = (client.clone(), image.clone(), Arc::clone(&gate));
        async move {
            let bytes = Bytes::from(noise(number, 20_000));
            let (blob, source) = (layer(&bytes), Gated { bytes, gate });
            let sent = client.upload_blob(&image, &blob, &[], &source, Arc::new(|_| {}));
            assert_eq!(sent.await.expect("sent"), Uploaded::Sent);
        }
    });
    let reader = async {
        uploads_begun(&registry, UPLOADS).await;
        let absent = Digest::sha256(b"absent");
        assert!(!client.has_blob(&image, &absent).await.expect("an answer"));
        gate.wait().await;
    };
    let all = futures_util::future::join(join_all(uploads), reader);
    let all = tokio::time::timeout(Duration::from_secs(10), all).await;
    all.expect("all bodies go at the same time, and a request beside them");
}

/// A source that uses its host before its bytes are ready.
struct BehindAnother {
    bytes: Bytes,
    client: Registry,
    image: ImageRef,
    opened: AtomicUsize,
    others: Mutex<JoinSet<()>>,
}

#[async_trait]
impl BlobSource for BehindAnother {
    async fn open(&self) -> io::Result<BlobStream> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let (client, image) = (self.client.clone(), self.image.clone());
        let other = async move { drop(client.resolve(&image).await) };
        self.others.lock().expect("no panic").spawn(other);
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(Box::pin(stream::iter([Ok(self.bytes.clone())])))
    }
}

#[tokio::test]
async fn an_upload_that_waits_for_its_turn_is_not_silent() {
    let registry = TestRegistry::start();
    registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, &b"{}"[..]);
    let busy = Wrong::Delay(Duration::from_millis(900));
    registry.fault(Fault::once(On::Manifest, busy));
    let client = client(Options {
        most_requests: 1,
        idle_timeout: Duration::from_millis(100),
        ..quick()
    });
    let (image, bytes) = (registry.reference("app", "v1"), Bytes::from(noise(1, 1000)));
    let source = BehindAnother {
        bytes: bytes.clone(),
        client: client.clone(),
        image: image.clone(),
        opened: 0.into(),
        others: Mutex::default(),
    };
    let blob = layer(&bytes);
    let sent = client.upload_blob(&image, &blob, &[], &source, Arc::new(|_| {}));
    assert_eq!(sent.await.expect("sent"), Uploaded::Sent);
    assert_eq!(source.opened.into_inner(), 1, "not given up in between");
}

#[tokio::test]
async fn an_upload_over_a_slow_line_is_not_silent() {
    let registry = TestRegistry::with(Setup {
        upload_pace: Some(6 << 20),
        ..Setup::default()
    });
    let client = client(Options {
        idle_timeout: Duration::from_millis(150),
        ..quick()
    });
    let image = registry.reference("app", "v1");
    let bytes = noise(1, 24 << 20);
    let chunks: Vec<_> = bytes
        .chunks(256 << 10)
        .map(Bytes::copy_from_slice)
        .collect();
    let chunks = stream::iter(chunks.into_iter().map(Ok));
    let sent = client.push_blob(&image, &layer(&bytes), chunks).await;
    sent.expect("the kernel's buffers take nothing for a while, and it goes on");
    assert!(registry.has_blob("app", &Digest::sha256(&bytes)));
}
