use std::sync::Arc;

use bytes::Bytes;
use soci_oci::{Descriptor, ImageIndex, media_type};
use soci_store::local::LocalStore;
use soci_store::{Content, ContentStore};

use super::super::rebuild::{Images, Scan};
use super::*;
use crate::model::{
    ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2, LAYER_DIGEST, MANIFEST_DIGEST, SPAN_SIZE, SociIndex,
    Version, ZTOC_MEDIA_TYPE,
};

/// A store with an image and artifacts, and its records.
struct Fixture {
    _folder: tempfile::TempDir,
    artifacts: Artifacts,
    store: Arc<dyn ContentStore>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            artifacts: Artifacts::at(folder.path()),
            store: Arc::new(LocalStore::at(folder.path())),
            _folder: folder,
        }
    }

    async fn put(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type, bytes);
        let content = Content::Bytes(Bytes::copy_from_slice(bytes));
        self.store.put(&descriptor, content).await.unwrap();
        descriptor
    }

    /// Stores the manifest of an image without layers.
    async fn manifest(&self) -> Descriptor {
        let config = br#"{"architecture":"arm64","os":"linux","variant":"v8"}"#;
        let config_type = "application/vnd.oci.image.config.v1+json";
        let config = self.put(config_type, config).await;
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{}","size":{}}},"layers":[]}}"#,
            config.digest, config.size
        );
        self.put(media_type::OCI_MANIFEST, manifest.as_bytes())
            .await
    }

    /// Stores a zTOC and returns its descriptor in an index.
    async fn ztoc(&self) -> Descriptor {
        let layer = Digest::sha256(b"layer").to_string();
        Descriptor {
            annotations: [
                (LAYER_DIGEST.to_owned(), layer),
                (SPAN_SIZE.to_owned(), "4096".to_owned()),
            ]
            .into(),
            ..self.put(ZTOC_MEDIA_TYPE, b"a zTOC of some length").await
        }
    }

    async fn index(
        &self,
        version: Version,
        ztoc: &Descriptor,
        subject: Option<&Descriptor>,
    ) -> Descriptor {
        let index = SociIndex::new(version, vec![ztoc.clone()], subject.cloned());
        self.put(media_type::OCI_MANIFEST, &index.to_bytes()).await
    }

    async fn rebuild(&self, targets: &[Descriptor]) -> Vec<Digest> {
        let mut scan = Scan::of(&self.artifacts, self.store.as_ref())
            .await
            .unwrap();
        scan.remove_lost().unwrap();
        let images = Images {
            store: self.store.clone(),
            targets: targets.to_vec(),
        };
        let left_out = scan.add_new(Some(&images)).await.unwrap();
        left_out.into_iter().map(|left| left.index).collect()
    }
}

#[tokio::test]
async fn an_index_is_recorded_with_its_manifest_and_the_image_that_has_it() {
    let fixture = Fixture::new();
    let (manifest, ztoc) = (fixture.manifest().await, fixture.ztoc().await);
    let index = fixture.index(Version::V1, &ztoc, Some(&manifest)).await;
    let list = ImageIndex::new(vec![manifest.clone()]);
    let list = soci_oci::json::to_vec(&list);
    let image = fixture.put(media_type::OCI_INDEX, &list).await;

    for (targets, of) in [(&[][..], &manifest), (std::slice::from_ref(&image), &image)] {
        assert_eq!(fixture.rebuild(targets).await, []);
        let entry = fixture.artifacts.get(&index.digest).unwrap();
        let built_for = manifest.digest.to_string();
        assert_eq!(
            (&entry.oci_digest, &entry.location),
            (&built_for, &built_for)
        );
        assert_eq!(entry.image_digest, of.digest.to_string());
        assert_eq!(entry.platform, "linux/arm64");
        assert_eq!(entry.artifact_type, ARTIFACT_TYPE_V1);
        let entry = fixture.artifacts.get(&ztoc.digest).unwrap();
        assert_eq!((entry.kind, entry.span_size), (Kind::Layer, 4096));
        assert_eq!(entry.oci_digest, Digest::sha256(b"layer").to_string());
        assert!(entry.is_found, "whoever made it");
        fixture
            .artifacts
            .remove(&[index.digest, ztoc.digest])
            .unwrap();
    }
}

#[tokio::test]
async fn an_index_of_version_2_is_found_through_its_image_only() {
    let fixture = Fixture::new();
    let (manifest, ztoc) = (fixture.manifest().await, fixture.ztoc().await);
    let index = fixture.index(Version::V2, &ztoc, None).await;
    assert_eq!(fixture.rebuild(&[]).await, []);
    assert_eq!(fixture.artifacts.all().unwrap(), []);

    let mut listed = index.clone();
    listed.artifact_type = ARTIFACT_TYPE_V2.to_owned();
    let bound = (MANIFEST_DIGEST.to_owned(), manifest.digest.to_string());
    listed.annotations = [bound].into();
    listed.platform = Some("linux/arm64/v8".parse().unwrap());
    let list = soci_oci::json::to_vec(&ImageIndex::new(vec![manifest.clone(), listed]));
    let image = fixture.put(media_type::OCI_INDEX, &list).await;
    assert_eq!(fixture.rebuild(std::slice::from_ref(&image)).await, []);
    let entry = fixture.artifacts.get(&index.digest).unwrap();
    assert_eq!(entry.oci_digest, manifest.digest.to_string());
    assert_eq!(entry.image_digest, image.digest.to_string());
    assert_eq!(entry.artifact_type, ARTIFACT_TYPE_V2);
    assert!(fixture.artifacts.get(&ztoc.digest).is_ok());
}

#[tokio::test]
async fn an_index_whose_image_is_gone_is_left_out_and_others_are_recorded() {
    let fixture = Fixture::new();
    let (manifest, ztoc) = (fixture.manifest().await, fixture.ztoc().await);
    let good = fixture.index(Version::V1, &ztoc, Some(&manifest)).await;
    let gone = Descriptor::of(media_type::OCI_MANIFEST, b"gone");
    let bad = fixture.index(Version::V1, &ztoc, Some(&gone)).await;
    let none = fixture.index(Version::V1, &ztoc, None).await;
    assert_eq!(fixture.rebuild(&[]).await, [bad.digest]);
    assert!(fixture.artifacts.get(&good.digest).is_ok());
    assert!(fixture.artifacts.get(&none.digest).is_err());
}

#[tokio::test]
async fn a_span_size_that_is_no_number_costs_only_the_record_of_its_ztoc() {
    let fixture = Fixture::new();
    let (manifest, good) = (fixture.manifest().await, fixture.ztoc().await);
    let mut odd = fixture.put(ZTOC_MEDIA_TYPE, b"another zTOC").await;
    odd.annotations = [(SPAN_SIZE.to_owned(), "4MiB".to_owned())].into();
    let of_odd = fixture.index(Version::V1, &odd, Some(&manifest)).await;
    let of_good = fixture.index(Version::V1, &good, Some(&manifest)).await;
    assert_eq!(fixture.rebuild(&[]).await, []);
    for recorded in [&of_odd, &of_good, &good] {
        assert!(fixture.artifacts.get(&recorded.digest).is_ok());
    }
    assert!(fixture.artifacts.get(&odd.digest).is_err());
}

#[tokio::test]
async fn blobs_that_are_no_index_are_passed_over() {
    let fixture = Fixture::new();
    fixture.put("x", b"{}").await;
    fixture.put("x", &[b'{'; 100_000]).await;
    fixture.put("x", &[0x1f; 100_000]).await;
    fixture.put("x", br#"{"schemaVersion":2,"config":{"mediaType":"y","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}"#).await;
    // A blob that was modified on disk.
    let damaged = fixture.manifest().await;
    let path = fixture.artifacts.root.join("content/blobs/sha256");
    std::fs::remove_file(path.join(damaged.digest.hex())).unwrap();
    std::fs::write(path.join(damaged.digest.hex()), [b'{'; 300]).unwrap();
    assert_eq!(fixture.rebuild(&[]).await, []);
    assert_eq!(fixture.artifacts.all().unwrap(), []);
}
