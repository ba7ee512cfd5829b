//! Selects the index to push.

use std::sync::Arc;

use soci_index::artifacts::{Entry, Kind};
use soci_index::push::{Note, PushError, PushObserver, Selected, select};
use soci_index::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2, Platforms};
use soci_oci::{Descriptor, Digest, ImageIndex, json, media_type};

use crate::image::{Images, member};
use crate::push::Told;

/// An image for two platforms.
struct Scene {
    images: Images,
    target: Descriptor,
    manifests: [Digest; 2],
    told: Arc<Told>,
}

impl Scene {
    async fn new() -> Self {
        let images = Images::new();
        let (amd64, arm64) = (images.layer("a").await, images.layer("b").await);
        let amd64 = images.manifest("linux/amd64", vec![amd64]).await;
        let arm64 = images.manifest("linux/arm64", vec![arm64]).await;
        let members = vec![
            member(&amd64, "linux/amd64"),
            member(&arm64, "linux/arm64/v8"),
        ];
        let index = json::to_vec(&ImageIndex::new(members));
        Self {
            target: images.put(media_type::OCI_INDEX, index).await,
            manifests: [amd64.digest, arm64.digest],
            images,
            told: Arc::default(),
        }
    }

    async fn select(
        &self,
        records: &[Entry],
        platforms: &Platforms,
    ) -> Result<Vec<Selected>, PushError> {
        let told: Arc<dyn PushObserver> = self.told.clone();
        select(&self.images.store, records, &self.target, platforms, &told).await
    }
}

fn entry(name: &str, manifest: &Digest, artifact_type: &str, secs: Option<i64>) -> Entry {
    Entry {
        digest: Digest::sha256(name.as_bytes()),
        size: 7,
        location: manifest.to_string(),
        oci_digest: manifest.to_string(),
        image_digest: String::new(),
        platform: "linux/amd64".to_owned(),
        kind: Kind::Index,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: artifact_type.to_owned(),
        created_at: secs.map(|secs| soci_ztoc::Time { secs, nanos: 0 }),
        span_size: 0,
        is_found: false,
    }
}

fn listed(platforms: &[&str]) -> Platforms {
    Platforms::Listed(platforms.iter().map(|text| text.parse().unwrap()).collect())
}

#[tokio::test]
async fn the_newest_index_of_each_platform_is_taken() {
    let scene = Scene::new().await;
    let [amd64, arm64] = &scene.manifests;
    let other = Digest::sha256(b"other image");
    let mut records = vec![
        entry("old", amd64, ARTIFACT_TYPE_V1, None),
        entry("new", amd64, ARTIFACT_TYPE_V1, Some(9)),
        entry("older", amd64, ARTIFACT_TYPE_V1, Some(-5)),
        entry("elsewhere", &other, ARTIFACT_TYPE_V1, Some(99)),
        entry("arm", arm64, ARTIFACT_TYPE_V1, Some(1)),
    ];
    let ztoc = entry("ztoc", amd64, ARTIFACT_TYPE_V1, Some(99));
    records.push(Entry {
        kind: Kind::Layer,
        ..ztoc
    });
    let selected = scene.select(&records, &Platforms::All).await.unwrap();
    let found: Vec<_> = selected
        .iter()
        .map(|one| (one.platform.to_string(), one.subject, one.index.digest))
        .collect();
    let expected = [
        ("linux/amd64".to_owned(), *amd64, Digest::sha256(b"new")),
        ("linux/arm64/v8".to_owned(), *arm64, Digest::sha256(b"arm")),
    ];
    assert_eq!(found, expected);
    assert_eq!(selected[0].index.media_type, media_type::OCI_MANIFEST);
    assert_eq!(selected[0].index.size, 7);
    let one = scene
        .select(&records, &listed(&["linux/arm64"]))
        .await
        .unwrap();
    assert_eq!(one[0].index.digest, Digest::sha256(b"arm"));
}

#[tokio::test]
async fn of_two_manifests_of_a_platform_those_with_an_index_are_taken() {
    let mut scene = Scene::new().await;
    let zstd = scene.images.layer("zstd").await;
    let zstd = scene.images.manifest("linux/amd64", vec![zstd]).await;
    let index: ImageIndex = scene.images.read(&scene.target.digest).await;
    let members = [&[member(&zstd, "linux/amd64")], index.manifests()].concat();
    let index = json::to_vec(&ImageIndex::new(members));
    scene.target = scene.images.put(media_type::OCI_INDEX, index).await;
    let gzip = scene.manifests[0];
    let records = [entry("gzip", &gzip, ARTIFACT_TYPE_V1, None)];
    let amd64 = listed(&["linux/amd64"]);
    let selected = scene.select(&records, &amd64).await.unwrap();
    let subjects: Vec<Digest> = selected.iter().map(|one| one.subject).collect();
    assert_eq!(subjects, [gzip]);
}

#[tokio::test]
async fn of_two_made_at_once_the_later_listed_is_taken() {
    let scene = Scene::new().await;
    let entry = |name| entry(name, &scene.manifests[0], ARTIFACT_TYPE_V1, Some(1));
    let records = [entry("a"), entry("b")];
    let selected = scene
        .select(&records, &listed(&["linux/amd64"]))
        .await
        .unwrap();
    assert_eq!(selected[0].index.digest, Digest::sha256(b"b"));
}

#[tokio::test]
async fn what_cannot_be_pushed_begins_with_the_texts_of_the_reference() {
    let scene = Scene::new().await;
    let [amd64, arm64] = &scene.manifests;
    let error = scene
        .select(&[], &listed(&["linux/s390x"]))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "not found: image manifest for linux/s390x; the image has linux/amd64, linux/arm64/v8 (select with --platform or -p)"
    );
    let error = scene
        .select(&[], &listed(&["linux/amd64"]))
        .await
        .unwrap_err();
    let none = "could not find any soci index manifest v1 to push for platform linux/amd64";
    assert_eq!(error.to_string(), none);
    assert!(scene.told.take().is_empty());
    let records = [
        entry("two", amd64, ARTIFACT_TYPE_V2, Some(2)),
        entry("one", amd64, ARTIFACT_TYPE_V1, Some(1)),
        entry("arm", arm64, ARTIFACT_TYPE_V1, Some(1)),
    ];
    let selected = scene.select(&records, &Platforms::All).await.unwrap();
    assert_eq!(selected[0].index.digest, Digest::sha256(b"one"));
    assert_eq!(scene.told.take(), [Note::VersionTwo, Note::VersionTwo]);
    let error = scene
        .select(&records[..1], &listed(&["linux/amd64"]))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), none);
    assert_eq!(scene.told.take(), [Note::VersionTwo]);
    assert_eq!(
        Note::VersionTwo.to_string(),
        "[WARN] Skippping SOCI index manifest v2. \
         You should push the whole image with higher level tools like finch or nerdctl."
    );
}
