//! Verification that reads every layer.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use soci_index::verify::{Finding, Part, Summary, Verification};
use soci_index::{ConvertOptions, Platforms, convert};
use soci_oci::{Descriptor, Digest, media_type};
use soci_store::{Blob, Content, ContentStore, Labels, Put, StoreError};

use crate::image::{Images, build_options, tar};

/// A store whose layers can be read only when all of them are open.
#[derive(Debug)]
struct Meeting {
    inner: Arc<dyn ContentStore>,
    layers: HashSet<Digest>,
    open: Arc<(Mutex<usize>, Condvar)>,
}

struct Met {
    inner: Box<dyn Read + Send>,
    open: Arc<(Mutex<usize>, Condvar)>,
    all: usize,
}

impl Read for Met {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (open, came) = &*self.open;
        let patience = Duration::from_secs(20);
        let (open, _) = came
            .wait_timeout_while(open.lock().unwrap(), patience, |open| *open < self.all)
            .unwrap();
        if *open < self.all {
            return Err(io::Error::other("nobody else came"));
        }
        drop(open);
        self.inner.read(buffer)
    }
}

#[async_trait]
impl ContentStore for Meeting {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.inner.size(digest).await
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let Blob { size, mut reader } = self.inner.open(digest).await?;
        if self.layers.contains(digest) {
            *self.open.0.lock().unwrap() += 1;
            self.open.1.notify_all();
            let (open, all) = (Arc::clone(&self.open), self.layers.len());
            let inner = reader;
            reader = Box::new(Met { inner, open, all });
        }
        Ok(Blob { size, reader })
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        self.inner.put(descriptor, content).await
    }

    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError> {
        self.inner.label(digest, labels).await
    }
}

/// A converted image of these layers.
async fn converted(images: &Images, layers: Vec<Descriptor>) -> Descriptor {
    let target = images.manifest("linux/amd64", layers).await;
    let options = ConvertOptions {
        platforms: Platforms::All,
        build: build_options(),
        allow_empty: false,
    };
    convert(&images.context(), &target, &options)
        .await
        .unwrap()
        .image
}

async fn verify(store: Arc<dyn ContentStore>, image: &Descriptor) -> (Summary, Vec<Finding>) {
    let verification = Verification {
        store,
        deep: true,
        platforms: Vec::new(),
        may_lack_layers: false,
        referrers: Vec::new(),
        progress: Arc::new(|_| {}),
    };
    let mut found = Vec::new();
    let summary = verification
        .run(image, &mut |finding| found.push(finding))
        .await
        .unwrap();
    (summary, found)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_read_at_once() {
    let images = Images::new();
    let layers = vec![images.layer("a").await, images.layer("b").await];
    let store = Meeting {
        inner: Arc::clone(&images.store),
        layers: layers.iter().map(|layer| layer.digest).collect(),
        open: Arc::default(),
    };
    let bytes = layers.iter().map(|layer| layer.size).sum();
    let image = converted(&images, layers).await;
    let (summary, found) = verify(Arc::new(store), &image).await;
    assert!(found.is_empty(), "{found:?}");
    assert_eq!((summary.bytes, summary.layers), (bytes, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_cannot_be_unpacked_are_counted_and_not_reported() {
    let images = Images::new();
    let zstd = images.put(media_type::DOCKER_LAYER_ZSTD, "zstd").await;
    let zstd_digest = zstd.digest;
    let encrypted = format!("{}+encrypted", media_type::OCI_LAYER_GZIP);
    let encrypted = images.put(&encrypted, "encrypted").await;
    let image = converted(&images, vec![images.layer("a").await, zstd, encrypted]).await;
    let (summary, found) = verify(images.store.clone(), &image).await;
    assert!(found.is_empty(), "{found:?}");
    assert_eq!((summary.layers, summary.not_unpacked), (3, 2));
    std::fs::remove_file(images.layout.blob_path(&zstd_digest)).unwrap();
    let (summary, _) = verify(images.store.clone(), &image).await;
    assert_eq!(summary.not_unpacked, 1, "a missing layer is not read");
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_are_told_in_the_order_of_the_layers() {
    let images = Images::new();
    let mut layers = Vec::new();
    // The largest layer is read first. It is the last one in the image.
    for (number, size) in [10_usize, 3000, 200, 90_000].into_iter().enumerate() {
        let tar = tar(&format!("file {number}"), &vec![b'x'; size]);
        layers.push(images.put(soci_oci::media_type::OCI_LAYER, tar).await);
    }
    let image = converted(&images, layers.clone()).await;
    for layer in &layers {
        let path = images.layout.blob_path(&layer.digest);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[600] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let (summary, found) = verify(images.store.clone(), &image).await;
    let of_layers = found.iter().filter(|it| it.part == Part::Layer);
    let told: Vec<Digest> = of_layers.map(|it| it.digest).collect();
    let wanted: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    assert_eq!(told, wanted);
    let of_ztocs = found.iter().filter(|it| it.part == Part::Ztoc);
    let told: Vec<Digest> = of_ztocs.filter_map(|it| it.layer).collect();
    assert_eq!(told, wanted, "each has one span, which is wrong");
    assert_eq!(summary.problems, 8);
}
