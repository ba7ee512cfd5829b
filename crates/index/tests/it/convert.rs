//! Conversion of indexes, manifests, and platforms.

use soci_index::{
    ARTIFACT_TYPE_V2, BuildError, ConvertError, ConvertOptions, INDEX_DIGEST, ImageError,
    MANIFEST_DIGEST, Platforms, SociIndex, convert,
};
use soci_oci::{Descriptor, Digest, ImageIndex, Manifest, json, media_type};
use soci_store::StoreError;

use crate::image::{Images, build_options, member};

pub(crate) fn all() -> ConvertOptions {
    ConvertOptions {
        platforms: Platforms::All,
        build: build_options(),
        allow_empty: false,
    }
}

pub(crate) fn listed(platforms: &[&str]) -> ConvertOptions {
    let platforms = platforms.iter().map(|text| text.parse().unwrap()).collect();
    ConvertOptions {
        platforms: Platforms::Listed(platforms),
        build: build_options(),
        allow_empty: false,
    }
}

pub(crate) async fn converted(
    images: &Images,
    target: &Descriptor,
    options: &ConvertOptions,
) -> ImageIndex {
    let result = convert(&images.context(), target, options)
        .await
        .unwrap()
        .image;
    assert_eq!(result.media_type, media_type::OCI_INDEX);
    images.read(&result.digest).await
}

pub(crate) async fn refused(
    images: &Images,
    target: &Descriptor,
    options: &ConvertOptions,
) -> ConvertError {
    convert(&images.context(), target, options)
        .await
        .unwrap_err()
}

/// An image for two platforms with an attestation, as BuildKit creates it.
pub(crate) async fn two_platforms(images: &Images) -> (Descriptor, ImageIndex) {
    let shared = images.layer("shared").await;
    let amd64 = images.manifest("linux/amd64", vec![shared.clone()]).await;
    let arm64 = images
        .manifest("linux/arm64", vec![shared, images.layer("arm").await])
        .await;
    let predicate = images.put("application/vnd.in-toto+json", "{}").await;
    let attestation = images.manifest("unknown/unknown", vec![predicate]).await;
    let mut attestation = member(&attestation, "unknown/unknown");
    attestation
        .annotations
        .insert("vnd.docker.reference.type".into(), "x".into());
    let mut index = ImageIndex::new(vec![
        member(&amd64, "linux/amd64"),
        member(&arm64, "linux/arm64/v8"),
        attestation,
    ]);
    media_type::DOCKER_INDEX.clone_into(&mut index.media_type);
    index.annotations.insert("kept".into(), "yes".into());
    let target = images
        .put(media_type::DOCKER_INDEX, json::to_vec(&index))
        .await;
    (target, index)
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_and_indexes_name_each_other() {
    let images = Images::new();
    let (target, source) = two_platforms(&images).await;
    let index = converted(&images, &target, &all()).await;
    assert_eq!(index.annotations, source.annotations);
    let members = index.manifests();
    assert_eq!(members.len(), 5);
    for (manifest, entry) in [(&members[0], &members[3]), (&members[1], &members[4])] {
        assert_eq!(manifest.media_type, media_type::OCI_MANIFEST);
        assert_eq!(
            manifest.annotation(INDEX_DIGEST),
            Some(entry.digest.to_string().as_str())
        );
        assert_eq!(
            entry.annotation(MANIFEST_DIGEST),
            Some(manifest.digest.to_string().as_str())
        );
        assert_eq!(entry.artifact_type, ARTIFACT_TYPE_V2);
        assert_eq!(entry.platform, manifest.platform);
        let document: Manifest = images.read(&manifest.digest).await;
        assert_eq!(document.media_type, media_type::OCI_MANIFEST);
        assert_eq!(document.config.media_type, media_type::OCI_CONFIG);
        assert_eq!(document.annotations, manifest.annotations);
        let soci = images.store.read(&entry.digest, 1 << 20).await.unwrap();
        let soci = SociIndex::parse(&soci).unwrap();
        for layer in document.layers() {
            let ztoc = soci.ztoc_of(&layer.digest).unwrap();
            assert_eq!(
                images.store.size(&ztoc.digest).await.unwrap(),
                Some(ztoc.size)
            );
        }
    }
    // Re-encoded like the others, as in the reference. Its platform still identifies it.
    assert_eq!(members[2].annotations, soci_oci::Annotations::new());
    assert_ne!(members[2].digest, source.manifests()[2].digest);
    assert_eq!(members[2].platform, source.manifests()[2].platform);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_platforms_share_is_read_once() {
    let images = Images::new();
    let (target, _) = two_platforms(&images).await;
    converted(&images, &target, &all()).await;
    let notes = images.notes();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert_eq!(notes[1], format!("{} (already exists)", notes[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn converting_again_changes_nothing() {
    let images = Images::new();
    let (target, _) = two_platforms(&images).await;
    let once = convert(&images.context(), &target, &all())
        .await
        .unwrap()
        .image;
    let twice = convert(&images.context(), &once, &all())
        .await
        .unwrap()
        .image;
    assert_eq!(once, twice);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_index_that_is_not_replaced_is_left_alone() {
    let images = Images::new();
    let (target, _) = two_platforms(&images).await;
    let once = convert(&images.context(), &target, &all())
        .await
        .unwrap()
        .image;
    let before: ImageIndex = images.read(&once.digest).await;
    let again = converted(&images, &once, &listed(&["linux/amd64"])).await;
    assert_eq!(again.manifests(), before.manifests());
    let mut other = all();
    other.build.span_size = 1000;
    other.platforms = Platforms::Listed(vec!["linux/amd64".parse().unwrap()]);
    let changed = converted(&images, &once, &other).await;
    assert_eq!(changed.manifests().len(), before.manifests().len());
    assert_ne!(changed.manifests()[3].digest, before.manifests()[3].digest);
    assert_eq!(changed.manifests()[4], before.manifests()[4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requested_platform_is_written_as_it_was_asked_for() {
    let images = Images::new();
    let (target, _) = two_platforms(&images).await;
    let platforms = ["linux/arm64", "linux/arm64/v8", "linux/aarch64"];
    let index = converted(&images, &target, &listed(&platforms)).await;
    assert_eq!(index.manifests().len(), 4);
    let entry = &index.manifests()[3];
    assert_eq!(
        json::to_vec(&entry.platform),
        br#"{"architecture":"arm64","os":"linux"}"#
    );
    let amd64: Manifest = images.read(&index.manifests()[0].digest).await;
    assert!(amd64.annotations.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_manifest_gets_the_platform_of_its_configuration() {
    let images = Images::new();
    let layers = vec![images.layer("a").await];
    let target = images.manifest("linux/aarch64", layers).await;
    let default = ConvertOptions {
        platforms: Platforms::Default,
        build: build_options(),
        allow_empty: false,
    };
    let index = converted(&images, &target, &default).await;
    assert_eq!(index.manifests().len(), 2);
    for member in index.manifests() {
        assert_eq!(member.platform.as_ref().unwrap().to_string(), "linux/arm64");
    }
    let error = refused(&images, &target, &listed(&["linux/amd64"])).await;
    assert_eq!(
        error.to_string(),
        "image manifest for linux/amd64: not found; the image has linux/arm64 (select with --platform or -p)"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_without_indexable_layers_are_passed_over() {
    let images = Images::new();
    let amd64 = images
        .manifest("linux/amd64", vec![images.layer("a").await])
        .await;
    let zstd = images
        .put("application/vnd.oci.image.layer.v1.tar+zstd", "z")
        .await;
    let arm64 = images.manifest("linux/arm64", vec![zstd.clone()]).await;
    let index = ImageIndex::new(vec![
        member(&amd64, "linux/amd64"),
        member(&arm64, "linux/arm64"),
    ]);
    let target = images
        .put(media_type::OCI_INDEX, json::to_vec(&index))
        .await;
    let result = converted(&images, &target, &all()).await;
    assert_eq!(result.manifests().len(), 3);
    let skipped = format!(
        "ztoc skipped - layer {} (application/vnd.oci.image.layer.v1.tar+zstd) is compressed in an unsupported format. expect: [tar, gzip, unknown] but got \"zstd\"",
        zstd.digest
    );
    assert_eq!(images.notes()[1], skipped);
    let error = refused(&images, &target, &listed(&["linux/arm64"])).await;
    assert!(matches!(error, ConvertError::Build(BuildError::Empty)));
}

#[tokio::test(flavor = "multi_thread")]
async fn small_layers_are_skipped_and_equal_size_is_not() {
    let images = Images::new();
    let layer = images.layer("a").await;
    let target = images.manifest("linux/amd64", vec![layer.clone()]).await;
    let mut options = all();
    options.build.min_layer_size = layer.size;
    converted(&images, &target, &options).await;
    images.notes();
    options.build.min_layer_size = layer.size + 1;
    let error = refused(&images, &target, &options).await;
    assert_eq!(
        error.to_string(),
        "no ztocs created, all layers either skipped or produced errors"
    );
    let expected = format!(
        "ztoc skipped - layer {} (application/vnd.oci.image.layer.v1.tar) size {} is less than min-layer-size {}",
        layer.digest,
        layer.size,
        layer.size + 1
    );
    assert_eq!(images.notes(), [expected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_are_not_there_stay_as_they_are_unless_wanted() {
    let images = Images::new();
    let amd64 = images
        .manifest("linux/amd64", vec![images.layer("a").await])
        .await;
    let absent = Descriptor::of(media_type::OCI_MANIFEST, b"elsewhere");
    let nested = images
        .put(
            media_type::OCI_INDEX,
            json::to_vec(&ImageIndex::new(vec![])),
        )
        .await;
    let index = ImageIndex::new(vec![
        member(&amd64, "linux/amd64"),
        member(&absent, "linux/arm64"),
        member(&nested, "linux/386"),
    ]);
    let target = images
        .put(media_type::OCI_INDEX, json::to_vec(&index))
        .await;
    let result = converted(&images, &target, &listed(&["linux/amd64"])).await;
    assert_eq!(result.manifests()[1..3], index.manifests()[1..3]);
    let error = refused(&images, &target, &listed(&["linux/arm64"])).await;
    assert!(error.to_string().ends_with("not found"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_sources_are_refused() {
    let images = Images::new();
    let amd64 = images
        .manifest("linux/amd64", vec![images.layer("a").await])
        .await;
    let unnamed = ImageIndex::new(vec![amd64.clone()]);
    let unnamed = images
        .put(media_type::OCI_INDEX, json::to_vec(&unnamed))
        .await;
    let unknown = ImageIndex::new(vec![member(&amd64, "unknown/unknown")]);
    let unknown = images
        .put(media_type::OCI_INDEX, json::to_vec(&unknown))
        .await;
    let disguised = Descriptor {
        media_type: media_type::OCI_INDEX.into(),
        ..amd64.clone()
    };
    let blob = images.put("text/plain", "x").await;
    let no_layer = images.put("application/vnd.in-toto+json", "{}").await;
    let no_layer = images.manifest("linux/amd64", vec![no_layer]).await;
    for (target, message) in [
        (&unnamed, "manifest should have proper platform"),
        (&unknown, "image does not support any platforms"),
        (&disguised, "sha256:"),
        (&blob, "sha256:"),
        (
            &no_layer,
            "errors encountered while building soci layers; not a layer mediaType",
        ),
    ] {
        let error = refused(&images, target, &all()).await.to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_gets_no_ztoc_and_names_itself() {
    let images = Images::new();
    let good = images.layer("good").await;
    let bad = images.layer("bad").await;
    std::fs::remove_file(images.layout.blob_path(&bad.digest)).unwrap();
    std::fs::write(
        images.layout.blob_path(&bad.digest),
        crate::image::tar("Bad", b"content"),
    )
    .unwrap();
    let target = images
        .manifest("linux/amd64", vec![good, bad.clone()])
        .await;
    let error = refused(&images, &target, &all()).await.to_string();
    let expected = format!(
        "errors encountered while building soci layers; layer {}: ",
        bad.digest
    );
    assert!(
        error.starts_with(&expected) && error.contains("digest mismatch"),
        "{error}"
    );
    let short = Descriptor {
        size: 1,
        ..images.layer("good").await
    };
    let target = images.manifest("linux/amd64", vec![short]).await;
    let error = refused(&images, &target, &all()).await.to_string();
    assert!(error.contains("bytes, expected 1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn xattrs_are_only_denied_when_asked_for_and_true() {
    let images = Images::new();
    let plain = images.layer("plain").await;
    let opaque = images.layer("d/.wh..wh..opq").await;
    let target = images
        .manifest("linux/amd64", vec![plain.clone(), opaque.clone()])
        .await;
    for mark_xattrs in [false, true] {
        let mut options = all();
        options.build.mark_xattrs = mark_xattrs;
        let index = converted(&images, &target, &options).await;
        let soci = images
            .store
            .read(&index.manifests()[1].digest, 1 << 20)
            .await
            .unwrap();
        let soci = SociIndex::parse(&soci).unwrap();
        let marked = |layer: &Digest| {
            soci.ztoc_of(layer)
                .unwrap()
                .annotation(soci_index::DISABLE_XATTRS)
                == Some("true")
        };
        assert_eq!(
            (marked(&plain.digest), marked(&opaque.digest)),
            (mark_xattrs, false)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_are_too_large_together_are_refused() {
    let images = Images::new();
    let target = images.large(10, 7 << 20).await;
    let error = refused(&images, &target, &all()).await;
    let ConvertError::Image(ImageError::Store(StoreError::TooManyDocuments { image, .. })) = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(image, target.digest);
    let image = convert(&images.context(), &target, &listed(&["linux/a3"])).await;
    assert!(image.is_ok(), "one of them is not too large");
}
