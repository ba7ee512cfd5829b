//! Version 1 indexes, prefetch artifacts, and skipped layers.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use soci_index::{
    Artifacts, BuildContext, BuildError, ConvertError, ConvertOptions, CreateOptions, Creation,
    Note, Observer, Platforms, SociIndex, Stage, Version, convert, create,
};
use soci_oci::{Descriptor, Digest, ImageIndex, json, media_type};

use crate::image::{Images, build_options, member, tar};

fn options(platforms: Platforms) -> CreateOptions {
    CreateOptions {
        platforms,
        build: build_options(),
    }
}

fn listed(platform: &str) -> Platforms {
    Platforms::Listed(vec![platform.parse().unwrap()])
}

fn failure(creation: Creation) -> String {
    creation.failure.unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_has_the_references_bytes() {
    let images = Images::new();
    let layer = images.layer("a").await;
    let target = images.manifest("linux/amd64", vec![layer.clone()]).await;
    let mut options = options(Platforms::All);
    options.build.prefetch = ["a".to_owned()].into();
    let creation = create(&images.context(), &target, &options).await;
    let index = &creation.indexes[0].index;
    let bytes = images.store.read(&index.digest, 1 << 20).await.unwrap();
    let ztoc = creation.indexes[0].parts.layers[0].ztoc().unwrap();
    let artifact = r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":0}]}"#;
    let expected = format!(
        concat!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
            r#""config":{{"mediaType":"application/vnd.amazon.soci.index.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}},"#,
            r#""layers":[{{"mediaType":"application/octet-stream","digest":"{}","size":{},"annotations":{{"com.amazon.soci.image-layer-digest":"{}","com.amazon.soci.image-layer-mediaType":"application/vnd.oci.image.layer.v1.tar","com.amazon.soci.span-size":"4194304"}}}},"#,
            r#"{{"mediaType":"application/vnd.amazon.soci.prefetch.v1+json","digest":"{}","size":{},"annotations":{{"com.amazon.soci.image-layer-digest":"{}"}}}}],"#,
            r#""subject":{{"mediaType":"{}","digest":"{}","size":{}}},"#,
            r#""annotations":{{"com.amazon.soci.build-tool-identifier":"AWS SOCI CLI v0.2"}}}}"#
        ),
        ztoc.digest,
        ztoc.size,
        layer.digest,
        Digest::sha256(artifact.as_bytes()),
        artifact.len(),
        layer.digest,
        target.media_type,
        target.digest,
        target.size,
    );
    assert_eq!(String::from_utf8(bytes.to_vec()).unwrap(), expected);
    assert_eq!(SociIndex::parse(&bytes).unwrap().version(), Version::V1);
    assert_eq!(
        index.artifact_type,
        "application/vnd.amazon.soci.index.v1+json"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_uppermost_indexed_layer_has_the_file() {
    let images = Images::new();
    let lower = images.layer("etc/app").await;
    let upper = images.layer("etc/app").await;
    assert_eq!(lower, upper);
    let other = images
        .put(media_type::OCI_LAYER, tar("etc/app", b"other"))
        .await;
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    let skipped = images.put(zstd, tar("etc/app", b"skipped")).await;
    let layers = vec![lower, other.clone(), skipped];
    let target = images.manifest("linux/amd64", layers).await;
    let mut options = options(Platforms::All);
    options.build.prefetch = ["etc/app".to_owned(), "none".to_owned()].into();
    let creation = create(&images.context(), &target, &options).await;
    let artifacts = &creation.indexes[0].parts.prefetch;
    assert_eq!(artifacts.len(), 1);
    assert_eq!(artifacts[0].layer, other.digest);
    let notes = images.notes();
    let made = format!(
        "Created prefetch artifact for layer {}: {}",
        other.digest, artifacts[0].descriptor.digest
    );
    assert_eq!(
        notes[3..],
        ["prefetch file none not found in any layer".to_owned(), made]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_without_an_index_is_an_error_and_the_others_are_made() {
    let images = Images::new();
    let root = tempfile::tempdir().unwrap();
    let amd64 = images
        .manifest("linux/amd64", vec![images.layer("a").await])
        .await;
    let arm64 = images.manifest("linux/arm64", vec![]).await;
    let index = ImageIndex::new(vec![
        member(&amd64, "linux/amd64"),
        member(&arm64, "linux/arm64/v8"),
    ]);
    let target = images
        .put(media_type::OCI_INDEX, json::to_vec(&index))
        .await;
    let context = BuildContext {
        records: Some(Artifacts::at(root.path())),
        ..images.context()
    };
    let creation = create(&context, &target, &options(Platforms::All)).await;
    assert_eq!(creation.indexes.len(), 1);
    assert_eq!(creation.indexes[0].subject.digest, amd64.digest);
    assert!(creation.without.is_some());
    let expected = "no ztocs created, all layers either skipped or produced errors";
    assert_eq!(failure(creation), expected);
    let entries = Artifacts::at(root.path()).all().unwrap();
    let entry = entries
        .iter()
        .find(|it| it.platform == "linux/amd64")
        .unwrap();
    assert_eq!(entry.image_digest, target.digest.to_string());
    assert_eq!(entry.oci_digest, amd64.digest.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_manifest_is_only_for_the_platform_of_its_configuration() {
    let images = Images::new();
    let target = images
        .manifest("linux/s390x", vec![images.layer("a").await])
        .await;
    let creation = create(&images.context(), &target, &options(listed("linux/arm64"))).await;
    assert_eq!(
        failure(creation),
        "image manifest for linux/arm64: not found; the image has linux/s390x (select with --platform or -p)"
    );
    for platforms in [listed("linux/s390x"), Platforms::Default] {
        let creation = create(&images.context(), &target, &options(platforms)).await;
        assert_eq!(creation.indexes[0].platform.to_string(), "linux/s390x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_a_converted_image_are_no_platforms_of_it() {
    let images = Images::new();
    let amd64 = images
        .manifest("linux/amd64", vec![images.layer("a").await])
        .await;
    let all = ConvertOptions {
        platforms: Platforms::All,
        build: build_options(),
        allow_empty: false,
    };
    let converted = convert(&images.context(), &amd64, &all).await.unwrap();
    images.notes();
    let creation = create(
        &images.context(),
        &converted.image,
        &options(Platforms::All),
    )
    .await;
    assert!(creation.failure.is_none(), "{:?}", creation.failure);
    assert_eq!((creation.indexes.len(), images.notes().len()), (1, 1));
}

/// A layer with a global PAX header, which no zTOC can describe.
async fn global_header(images: &Images) -> Descriptor {
    let mut bytes = tar("pax", b"17 comment=hello\n");
    bytes[156] = b'g';
    bytes[148..156].fill(b' ');
    let sum: u64 = bytes[..512].iter().map(|&byte| u64::from(byte)).sum();
    bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    images.put(media_type::OCI_LAYER, bytes).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_no_ztoc_can_describe_does_not_cost_the_others_theirs() {
    let images = Images::new();
    let odd = global_header(&images).await;
    let layers = vec![odd.clone(), images.layer("a").await];
    let target = images.manifest("linux/amd64", layers).await;
    let creation = create(&images.context(), &target, &options(Platforms::All)).await;
    assert!(creation.failure.is_none(), "{:?}", creation.failure);
    let parts = &creation.indexes[0].parts;
    assert!(parts.layers[0].is_left_out() && parts.layers[1].ztoc().is_some());
    let expected = format!(
        "ztoc skipped - layer {} (application/vnd.oci.image.layer.v1.tar) cannot have a ztoc: unsupported input tar entry 'g'",
        odd.digest
    );
    let notes = images.notes();
    assert!(notes[0].starts_with(&expected), "{notes:?}");

    // If it is the only layer, no index is created. The message is that of the reference.
    let target = images.manifest("linux/amd64", vec![odd]).await;
    let creation = create(&images.context(), &target, &options(Platforms::All)).await;
    let text = failure(creation);
    let start = "errors encountered while building soci layers; layer sha256:";
    assert!(text.starts_with(start), "{text}");
    assert!(text.contains("unsupported input tar entry 'g'"), "{text}");
    let all = ConvertOptions {
        platforms: Platforms::All,
        build: build_options(),
        allow_empty: false,
    };
    let error = convert(&images.context(), &target, &all).await.unwrap_err();
    assert!(matches!(error, ConvertError::Build(BuildError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_anything_to_index_is_its_own_result_where_that_is_allowed() {
    let images = Images::new();
    let target = images
        .manifest("linux/amd64", vec![images.layer("a").await])
        .await;
    let mut all = ConvertOptions {
        platforms: Platforms::All,
        build: build_options(),
        allow_empty: true,
    };
    all.build.min_layer_size = 1 << 20;
    let converted = convert(&images.context(), &target, &all).await.unwrap();
    assert_eq!(converted.image, target);
    assert!(converted.platforms[0].index.is_none());
    assert_eq!(images.notes().len(), 1);
}

/// Counts the layers that are processed at the same time.
#[derive(Default)]
struct Crowd {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Observer for Crowd {
    fn planned(&self, _: u64) {}
    fn read(&self, _: &Descriptor, _: u64) {}
    fn note(&self, _: &Note) {}

    fn stage(&self, _: &Descriptor, stage: Stage) {
        match stage {
            Stage::Begun => {
                let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
                self.most.fetch_max(now, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(50));
            }
            Stage::Done => {
                self.now.fetch_sub(1, Ordering::SeqCst);
            }
            Stage::Storing => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_layers_than_asked_for_are_worked_on_at_once() {
    let images = Images::new();
    let mut layers = Vec::new();
    for number in 0..6 {
        layers.push(images.layer(&format!("file-{number}")).await);
    }
    let target = images.manifest("linux/amd64", layers).await;
    for (threads, at_once, most) in [(4, Some(2), 2), (1, Some(3), 3), (2, None, 2)] {
        let crowd = Arc::new(Crowd::default());
        let mut options = options(Platforms::All);
        options.build.threads = NonZeroUsize::new(threads).unwrap();
        options.build.at_once = at_once.and_then(NonZeroUsize::new);
        let context = BuildContext {
            observer: crowd.clone(),
            ..images.context()
        };
        let creation = create(&context, &target, &options).await;
        assert_eq!(creation.indexes.len(), 1);
        assert_eq!(crowd.most.load(Ordering::SeqCst), most, "{threads} threads");
    }
}
