//! Which requests a conversion sends, and what it does while it waits for them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use soci_index::standalone::{
    ConversionObserver, Destination, RemoteImage, Report, Request, Source, convert,
};
use soci_index::{Note, Observer, Stage};
use soci_oci::{Descriptor, Digest, media_type};
use soci_registry::testing::{Fault, On, TestRegistry, Wrong, noise};
use soci_store::layout::Layout;

use crate::image::{Images, tar};
use crate::standalone::{layout, listed, remote, request, until};

/// Layers with fewer bytes get no zTOC.
const MIN_LAYER_SIZE: u64 = 50_000;

/// A registry with the image `in:1`.
struct Site {
    registry: TestRegistry,
    /// Two layers to index, and a smaller one.
    layers: Vec<Descriptor>,
}

impl Site {
    async fn new() -> Self {
        let images = Images::new();
        let mut layers = Vec::new();
        for (name, bytes) in [("a", 3 << 20), ("b", 2 << 20), ("c", 100)] {
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
        registry.forget_seen();
        Self { registry, layers }
    }

    fn to(&self, destination: Destination) -> Request {
        let source = Source::Registry(remote(&self.registry, "in", "1"));
        let mut request = request(source, destination);
        request.options.build.min_layer_size = MIN_LAYER_SIZE;
        request
    }

    async fn convert(&self, destination: Destination) -> Report {
        convert(self.to(destination), Arc::new(())).await.unwrap()
    }

    /// The requests since the last call, with their numbers.
    fn requests(&self) -> BTreeMap<String, usize> {
        let mut requests = BTreeMap::new();
        for seen in self.registry.seen() {
            *requests
                .entry(format!("{} {}", seen.method, seen.path))
                .or_default() += 1;
        }
        self.registry.forget_seen();
        requests
    }

    fn reads(&self, layer: &Descriptor) -> usize {
        let path = format!("GET /v2/in/blobs/{}", layer.digest);
        self.requests().remove(&path).unwrap_or_default()
    }
}

/// Notes which layers are indexed.
#[derive(Debug, Default)]
struct Indexed(Mutex<Vec<Digest>>);

impl Observer for Indexed {
    fn note(&self, _: &Note) {}

    fn stage(&self, layer: &Descriptor, stage: Stage) {
        if stage == Stage::Done {
            self.0.lock().unwrap().push(layer.digest);
        }
    }
}

impl ConversionObserver for Indexed {}

fn on_disk(folder: &Path) -> [Destination; 3] {
    [
        layout(folder.join("layout")),
        Destination::Folder(folder.join("folder")),
        Destination::Archive {
            path: folder.join("archive"),
            name: None,
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_downloaded_to_disk_with_one_request_for_each_blob() {
    let site = Site::new().await;
    let folder = tempfile::tempdir().unwrap();
    for destination in on_disk(folder.path()) {
        let shown = format!("{destination:?}");
        site.convert(destination).await;
        let requests = site.requests();
        // The manifest, the configuration, and three layers.
        assert_eq!(requests.len(), 5, "{shown}: {requests:?}");
        assert!(requests.values().all(|&count| count == 1), "{requests:?}");
        assert!(
            requests.keys().all(|it| it.starts_with("GET ")),
            "{requests:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_indexed_while_another_is_downloaded() {
    let site = Site::new().await;
    let [slow, quick, _] = site.layers.as_slice() else {
        unreachable!()
    };
    let folder = tempfile::tempdir().unwrap();
    // Dropping the conversion waits for the thread that reads the slow layer.
    let [destination, ..] = on_disk(folder.path());
    let fault = Fault::once(On::Blob(slow.digest), Wrong::Stall(1 << 20));
    site.registry.fault(fault);
    let indexed = Arc::new(Indexed::default());
    let mut work = Box::pin(convert(site.to(destination), indexed.clone()));
    tokio::select! {
        done = &mut work => panic!("a layer is missing: {done:?}"),
        () = until(|| *indexed.0.lock().unwrap() == [quick.digest]) => {}
    }
    drop(work);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_a_layout_has_are_not_downloaded_unless_they_are_damaged() {
    let site = Site::new().await;
    let folder = tempfile::tempdir().unwrap();
    let destination = || layout(folder.path().join("layout"));
    let first = site.convert(destination()).await.converted.image;
    site.requests();
    let second = site.convert(destination()).await.converted.image;
    assert_eq!(second, first);
    let requests = site.requests();
    assert_eq!(requests.len(), 1, "only the manifest: {requests:?}");
    let stored = Layout::at(folder.path().join("layout"));
    // One layer that is indexed, and one that is not.
    for layer in [&site.layers[0], &site.layers[2]] {
        let path = stored.blob_path(&layer.digest);
        let mut bytes = fs::read(&path).unwrap();
        bytes[600] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        assert!(!stored.has(layer).unwrap());
        let third = site.convert(destination()).await.converted.image;
        assert_eq!(third, first);
        assert_eq!(site.reads(layer), 1);
        assert!(stored.has(layer).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_downloaded_while_the_target_is_asked_for_it() {
    let site = Site::new().await;
    let layer = &site.layers[0];
    let target = TestRegistry::start();
    // Longer than the test may take.
    let slow = Wrong::Delay(Duration::from_secs(15));
    target.fault(Fault::once(On::Head(layer.digest.to_string()), slow));
    let destination = RemoteImage {
        image: target.reference("out", "1"),
        ..remote(&site.registry, "in", "1")
    };
    let request = site.to(Destination::Registry(destination));
    let mut work = Box::pin(convert(request, Arc::new(())));
    let path = format!("/v2/in/blobs/{}", layer.digest);
    let begun = until(|| {
        let seen = site.registry.seen();
        seen.iter()
            .any(|seen| seen.path == path && seen.status == 206)
    });
    tokio::select! {
        done = &mut work => panic!("a question is open: {done:?}"),
        () = begun => {}
    }
    let sent = target.seen();
    let asked = sent
        .iter()
        .filter(|it| it.path.ends_with(&layer.digest.to_string()));
    let asked: Vec<(&str, u16)> = asked.map(|it| (it.method.as_str(), it.status)).collect();
    assert!(asked.is_empty() || asked == [("HEAD", 0)], "{asked:?}");
}
