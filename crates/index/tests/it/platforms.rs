//! Images without the requested platform, or with several manifests for one.

use soci_index::{CreateOptions, INDEX_DIGEST, MANIFEST_DIGEST, Platforms, convert, create};
use soci_oci::{Descriptor, Digest, ImageIndex, json, media_type};

use crate::convert::{all, converted, listed, refused, two_platforms};
use crate::image::{Images, build_options, member};

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_is_not_there_is_answered_with_those_that_are() {
    let images = Images::new();
    let (target, _) = two_platforms(&images).await;
    let wanted =
        "not found; the image has linux/amd64, linux/arm64/v8 (select with --platform or -p)";
    for target in [
        target.clone(),
        convert(&images.context(), &target, &all())
            .await
            .unwrap()
            .image,
    ] {
        let error = refused(&images, &target, &listed(&["linux/s390x"])).await;
        let message = error.to_string();
        assert_eq!(message, format!("image manifest for linux/s390x: {wanted}"));
    }
}

/// An image with two manifests for amd64: one that cannot be indexed, then one that can.
async fn two_compressions(images: &Images) -> Descriptor {
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    let zstd = images.put(zstd, "z").await;
    let zstd = images.manifest("linux/amd64", vec![zstd]).await;
    let gzip = images.layer("a").await;
    let gzip = images.manifest("linux/amd64", vec![gzip]).await;
    let members = [&zstd, &gzip].map(|it| member(it, "linux/amd64"));
    let index = json::to_vec(&ImageIndex::new(members.to_vec()));
    images.put(media_type::OCI_INDEX, index).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_manifests_of_a_platform_the_one_that_can_be_indexed_is() {
    for options in [all(), listed(&["linux/amd64"])] {
        let images = Images::new();
        let target = two_compressions(&images).await;
        let first = convert(&images.context(), &target, &options).await.unwrap();
        assert_eq!(first.platforms.len(), 2);
        assert!(first.platforms[0].index.is_none());
        let index: ImageIndex = images.read(&first.image.digest).await;
        let [zstd, gzip, soci] = index.manifests() else {
            panic!("{index:?}");
        };
        assert_eq!(zstd.annotation(INDEX_DIGEST), None);
        let named = |digest: &Digest| digest.to_string();
        assert_eq!(gzip.annotation(INDEX_DIGEST), Some(&*named(&soci.digest)));
        assert_eq!(
            soci.annotation(MANIFEST_DIGEST),
            Some(&*named(&gzip.digest))
        );
        let again = convert(&images.context(), &first.image, &options).await;
        assert_eq!(again.unwrap().image, first.image);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_manifests_of_a_platform_each_have_their_index() {
    let images = Images::new();
    let layers = [images.layer("a").await, images.layer("b").await];
    let mut members = Vec::new();
    for layer in layers {
        let manifest = images.manifest("linux/amd64", vec![layer]).await;
        members.push(member(&manifest, "linux/amd64"));
    }
    let index = json::to_vec(&ImageIndex::new(members));
    let target = images.put(media_type::OCI_INDEX, index).await;
    let first = convert(&images.context(), &target, &all())
        .await
        .unwrap()
        .image;
    let index: ImageIndex = images.read(&first.digest).await;
    let [one, two, soci_one, soci_two] = index.manifests() else {
        panic!("{index:?}");
    };
    for (manifest, soci) in [(one, soci_one), (two, soci_two)] {
        let named = manifest.digest.to_string();
        assert_eq!(soci.annotation(MANIFEST_DIGEST), Some(named.as_str()));
    }
    let again = convert(&images.context(), &first, &all()).await.unwrap();
    assert_eq!(again.image, first);
    let mut other = all();
    other.build.span_size = 1000;
    let changed = converted(&images, &first, &other).await;
    assert_eq!(changed.manifests().len(), 4, "old indexes are replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_1_index_is_made_for_the_manifest_that_can_have_one() {
    let images = Images::new();
    let target = two_compressions(&images).await;
    let options = CreateOptions {
        platforms: Platforms::All,
        build: build_options(),
    };
    let creation = create(&images.context(), &target, &options).await;
    assert!(creation.failure.is_none(), "{creation:?}");
    let index: ImageIndex = images.read(&target.digest).await;
    let subjects: Vec<Digest> = creation
        .indexes
        .iter()
        .map(|it| it.subject.digest)
        .collect();
    assert_eq!(subjects, [index.manifests()[1].digest]);
}
