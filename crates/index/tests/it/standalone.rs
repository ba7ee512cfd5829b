//! Conversion through the public interface: digests, destinations, reports, and cancellation.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use soci_index::standalone::{
    ConversionObserver, Destination, Error, LocalImage, Phase, RemoteImage, Report, Request,
    Source, SourceError, convert,
};
use soci_index::{ConvertError, Note, Observer, Platforms};
use soci_oci::{Descriptor, Digest, ImageIndex, json, media_type};
use soci_registry::credentials::Anonymous;
use soci_registry::testing::{Fault, On, TestRegistry, Wrong, noise};
use soci_registry::{Options, Registry};
use soci_store::layout::Layout;
use soci_store::registry::RegistryStore;
use soci_store::{Content, ContentStore};

use crate::image::{Images, build_options, tar};

/// A layout with one image, which its index lists.
pub(crate) async fn listed(images: &Images, layers: Vec<Descriptor>) -> Source {
    let root = images.manifest("linux/amd64", layers).await;
    let index = ImageIndex::new(vec![root]);
    images.layout.write_index(&json::to_vec(&index)).unwrap();
    local(images.layout.root())
}

fn local(path: &Path) -> Source {
    Source::Local(LocalImage::open(path).unwrap())
}

pub(crate) fn request(source: Source, destination: Destination) -> Request {
    let mut request = Request::new(source, destination);
    request.options.build = build_options();
    request
}

pub(crate) fn layout(path: PathBuf) -> Destination {
    Destination::Layout { path, name: None }
}

pub(crate) fn client() -> Registry {
    Registry::new(Options::default(), Arc::new(Anonymous)).unwrap()
}

pub(crate) fn remote(registry: &TestRegistry, repository: &str, tag: &str) -> RemoteImage {
    RemoteImage {
        registry: client(),
        image: registry.reference(repository, tag),
    }
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/layers")
}

/// Creates an image of one layer, exactly as the vectors were created.
async fn vector(folder: &Path, layer: Vec<u8>, is_gzip: bool) {
    let layout = Layout::create(folder).unwrap().unsynced();
    let put = async |media_type: &str, bytes: Vec<u8>| {
        let blob = Descriptor::of(media_type, &bytes);
        let content = Content::Bytes(bytes.into());
        layout.put(&blob, content).await.unwrap();
        format!(
            r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#,
            blob.digest, blob.size
        )
    };
    let diff_id = Digest::sha256(&layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let layer_type = if is_gzip {
        media_type::OCI_LAYER_GZIP
    } else {
        media_type::OCI_LAYER
    };
    let config = put(media_type::OCI_CONFIG, config.into_bytes()).await;
    let layer = put(layer_type, layer).await;
    let manifest_type = media_type::OCI_MANIFEST;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{manifest_type}","config":{config},"layers":[{layer}]}}"#
    );
    let manifest = put(manifest_type, manifest.into_bytes()).await;
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#);
    layout.write_index(index.as_bytes()).unwrap();
}

fn ztocs(report: &Report) -> Vec<Value> {
    let platforms = report.converted.platforms.iter();
    let layers = platforms.flat_map(|platform| &platform.parts.layers);
    let ztocs = layers.filter_map(|layer| layer.ztoc());
    ztocs
        .map(|ztoc| Value::from(ztoc.digest.to_string()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_gets_the_digests_that_the_command_gives_it() {
    let expected = fs::read(vectors().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let expected = expected.as_object().unwrap();
    assert!(expected.len() >= 72, "{}", expected.len());
    for (key, row) in expected {
        let (file, span_size) = key.split_once('@').unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("in"), folder.path().join("out"));
        let layer = fs::read(vectors().join(file)).unwrap();
        vector(&from, layer, file.ends_with("gz")).await;
        let mut request = request(local(&from), layout(to.clone()));
        request.options.build.span_size = span_size.parse().unwrap();
        let report = match convert(request, Arc::new(())).await {
            Ok(report) => report,
            Err(error) => {
                assert!(matches!(error, Error::Convert(_)), "{key}: {error:?}");
                assert_ne!(row["rc"], 0, "{key}: {error}");
                assert!(!to.exists(), "{key}");
                continue;
            }
        };
        assert_eq!(row["rc"], 0, "{key}");
        let image = report.converted.image.digest.to_string();
        assert_eq!(row["image"], image, "{key}");
        let bound = report.converted.platforms[0].index.as_ref().unwrap();
        assert_eq!(row["soci"], bound.index.digest.to_string(), "{key}");
        assert_eq!(row["ztocs"], Value::from(ztocs(&report)), "{key}");
        let index = LocalImage::open(&to).unwrap().index().unwrap();
        assert_eq!(index.manifests(), [report.converted.image]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_destination_gets_the_same_image() {
    let images = Images::new();
    let layers = vec![images.layer("a").await, images.layer("b").await];
    let source = listed(&images, layers).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let registry = TestRegistry::start();
    let name = || Some("app:1".to_owned());
    let destinations = [
        layout(path("layout")),
        Destination::Layout {
            path: path("layout"),
            name: name(),
        },
        Destination::Folder(path("folder")),
        Destination::Archive {
            path: path("archive.tar"),
            name: name(),
        },
        Destination::Stream(fs::File::create(path("stream.tar")).unwrap()),
        Destination::Registry(remote(&registry, "app", "1")),
    ];
    let mut made = Vec::new();
    for destination in destinations {
        let request = request(source.clone(), destination);
        let report = convert(request, Arc::new(())).await.unwrap();
        made.push(report.converted.image);
    }
    made.dedup();
    let [image] = made.as_slice() else {
        panic!("{made:?}");
    };
    for name in ["folder", "stream.tar"] {
        let index = LocalImage::open(&path(name)).unwrap().index().unwrap();
        assert_eq!(index.manifests(), std::slice::from_ref(image), "{name}");
    }
    for name in ["layout", "archive.tar"] {
        let named = LocalImage::open(&path(name)).unwrap().named("app:1");
        let index = named.index().unwrap();
        assert_eq!(index.manifests(), std::slice::from_ref(image), "{name}");
    }
    let both = LocalImage::open(&path("layout")).unwrap().index().unwrap();
    assert_eq!(both.manifests().len(), 2, "with and without a name");
    let (_, bytes) = registry.manifest("app", "1").unwrap();
    assert_eq!(Digest::sha256(&bytes), image.digest);
    // From that registry to another, and back to disk.
    let other = TestRegistry::start();
    let again = request(
        Source::Registry(remote(&registry, "app", "1")),
        Destination::Registry(remote(&other, "copy", "1")),
    );
    let again = convert(again, Arc::new(())).await.unwrap();
    assert_eq!(again.converted.image.digest, image.digest);
    let back = request(
        Source::Registry(remote(&other, "copy", "1")),
        layout(path("back")),
    );
    let back = convert(back, Arc::new(())).await.unwrap();
    assert_eq!(back.converted.image.digest, image.digest);
}

/// Notes what it receives.
#[derive(Debug, Default)]
struct Told {
    phases: Mutex<Vec<Phase>>,
    warnings: Mutex<usize>,
}

impl Observer for Told {
    fn note(&self, note: &Note) {
        *self.warnings.lock().unwrap() += usize::from(note.is_warning());
    }
}

impl ConversionObserver for Told {
    fn phase(&self, phase: Phase, _: Option<u64>) {
        self.phases.lock().unwrap().push(phase);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn phases_and_warnings_are_reported() {
    let images = Images::new();
    let source = listed(&images, vec![images.layer("a").await]).await;
    let folder = tempfile::tempdir().unwrap();
    let mut request = request(source, layout(folder.path().join("out")));
    request.options.platforms = Platforms::All;
    request.options.build.prefetch = ["absent".to_owned()].into();
    let told = Arc::new(Told::default());
    let report = convert(request, told.clone()).await.unwrap();
    let [Note::NotFound { path }] = report.warnings.as_slice() else {
        panic!("{:?}", report.warnings);
    };
    assert_eq!(path, "absent");
    assert_eq!(*told.warnings.lock().unwrap(), 1);
    assert_eq!(*told.phases.lock().unwrap(), [Phase::Copying]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_is_wrong_and_leave_nothing_behind() {
    let images = Images::new();
    let source = listed(&images, vec![images.layer("a").await]).await;
    let folder = tempfile::tempdir().unwrap();
    let absent = LocalImage::open(&folder.path().join("absent")).unwrap_err();
    assert!(matches!(absent, SourceError::Access { .. }), "{absent:?}");

    let registry = TestRegistry::start();
    let mut pinned = remote(&registry, "app", "1");
    let name = format!("{}@{}", pinned.image, Digest::sha256(b""));
    pinned.image = name.parse().unwrap();
    let pinned = request(source.clone(), Destination::Registry(pinned));
    let error = convert(pinned, Arc::new(())).await.unwrap_err();
    assert!(matches!(error, Error::Pinned(_)), "{error:?}");
    assert_eq!(registry.requests(), 0);

    let Source::Local(image) = &source else {
        unreachable!()
    };
    let unnamed = Source::Local(image.clone().named("other"));
    let unnamed = request(unnamed, layout(folder.path().join("out")));
    let error = convert(unnamed, Arc::new(())).await.unwrap_err();
    let Error::Source(SourceError::NoName { name, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(name, "other");

    let mut large = request(
        source,
        Destination::Archive {
            path: folder.path().join("out.tar"),
            name: None,
        },
    );
    large.options.build.min_layer_size = 1 << 20;
    let error = convert(large, Arc::new(())).await.unwrap_err();
    let is_empty = matches!(error, Error::Convert(ConvertError::Build(_)));
    assert!(is_empty, "{error:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// An image with one layer in a registry, and the digest of the layer.
async fn published(bytes: usize) -> (TestRegistry, Digest) {
    let images = Images::new();
    let layer = tar("a", &noise(1, bytes));
    let layer = images.put(media_type::OCI_LAYER, layer).await;
    let digest = layer.digest;
    let source = listed(&images, vec![layer]).await;
    let registry = TestRegistry::start();
    let request = request(source, Destination::Registry(remote(&registry, "in", "1")));
    convert(request, Arc::new(())).await.unwrap();
    (registry, digest)
}

pub(crate) async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Less than the client waits for the bytes of a layer.
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .expect("it happens");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_upload_goes_on_when_the_future_is_dropped() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let (from, layer) = published(3 << 20).await;
    let to = TestRegistry::start();
    // The thread that reads the layer waits for bytes and cannot know that nobody needs them.
    from.fault(Fault::once(On::Blob(layer), Wrong::Stall(2 << 20)));
    from.forget_seen();
    let registry = client().with_own_uploads();
    let destination = RemoteImage {
        registry: registry.clone(),
        image: to.reference("out", "1"),
    };
    let request = request(
        Source::Registry(remote(&from, "in", "1")),
        Destination::Registry(destination),
    );
    let mut work = Box::pin(is_send(convert(request, Arc::new(()))));
    let put = || to.seen().into_iter().find(|seen| seen.method == "PUT");
    let begun = until(|| put().is_some_and(|seen| seen.received > 0));
    tokio::select! {
        done = &mut work => panic!("it cannot be done: {done:?}"),
        () = begun => {}
    }
    drop(work);
    // The registry answers when it notices that the upload broke off.
    until(|| put().is_some_and(|seen| seen.status != 0)).await;
    assert!(put().is_some_and(|seen| seen.received < 3 << 20));
    registry.cancel_uploads().await;
    let requests = to.requests();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(to.requests(), requests, "nothing goes on");
    assert!(!to.has_blob("out", &layer));
    assert_eq!(to.tags("out"), Vec::<String>::new());
    let image = RegistryStore::new(client(), to.reference("out", "1"));
    image.root().await.unwrap_err();
}
