//! Pushes version 1 indexes to a registry.

use std::sync::{Arc, Mutex};

use soci_index::push::{
    Existing, GraphError, Note, Outcome, PushError, PushObserver, PushOptions, Pushed, Selected,
    push,
};
use soci_index::{CONFIG, LAYER_DIGEST, SociIndex, Version, ZTOC_MEDIA_TYPE};
use soci_oci::{Annotations, Descriptor, Digest, ImageIndex, Manifest, json, media_type};
use soci_registry::credentials::Anonymous;
use soci_registry::testing::{Referrers, Setup, TestRegistry};
use soci_registry::{Listing, Options, Registry};
use soci_store::{Content, MAX_DEPTH, StoreError};

use crate::image::Images;

/// All reported notes, in order.
#[derive(Default)]
pub(crate) struct Told(Mutex<Vec<Note>>);

impl PushObserver for Told {
    fn note(&self, note: &Note) {
        self.0.lock().unwrap().push(note.clone());
    }
}

impl Told {
    pub(crate) fn take(&self) -> Vec<Note> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// An image and its index in a store, and a registry that has neither.
struct Scene {
    images: Images,
    registry: TestRegistry,
    client: Registry,
    subject: Descriptor,
    layers: Vec<Descriptor>,
    told: Arc<Told>,
}

impl Scene {
    async fn new(setup: Setup) -> Self {
        let images = Images::new();
        let layers = vec![images.layer("a").await, images.layer("b").await];
        let subject = images.manifest("linux/amd64", layers.clone()).await;
        Self {
            images,
            registry: TestRegistry::with(setup),
            client: Registry::new(Options::default(), Arc::new(Anonymous)).unwrap(),
            subject,
            layers,
            told: Arc::default(),
        }
    }

    /// An index whose zTOCs are these bytes.
    async fn index(&self, ztocs: &[&str]) -> Selected {
        let mut blobs = Vec::new();
        for (ztoc, layer) in ztocs.iter().zip(self.layers.iter().cycle()) {
            let ztoc = self.images.put(ZTOC_MEDIA_TYPE, ztoc.to_string()).await;
            let layer = (LAYER_DIGEST.to_owned(), layer.digest.to_string());
            blobs.push(Descriptor {
                annotations: Annotations::from([layer]),
                ..ztoc
            });
        }
        self.images.put("config", CONFIG).await;
        let index = SociIndex::new(Version::V1, blobs, Some(self.subject.clone()));
        Selected {
            platform: "linux/amd64".parse().unwrap(),
            subject: self.subject.digest,
            index: self
                .images
                .put(media_type::OCI_MANIFEST, index.to_bytes())
                .await,
        }
    }

    /// Uploads the image to the registry, like `nerdctl push`.
    async fn publish_image(&self) {
        let manifest: Manifest = self.images.read(&self.subject.digest).await;
        for blob in manifest.layers().iter().chain([&manifest.config]) {
            let bytes = self.images.store.read(&blob.digest, 1 << 20).await.unwrap();
            self.registry.add_blob("app", bytes);
        }
        let bytes = self
            .images
            .store
            .read(&self.subject.digest, 1 << 20)
            .await
            .unwrap();
        self.registry
            .add_manifest("app", Some("1"), &self.subject.media_type, bytes);
    }

    async fn push_as(&self, index: &Selected, existing: Existing) -> Result<Pushed, PushError> {
        let image = self.registry.reference("app", "1");
        let options = PushOptions {
            existing,
            uploads: 3,
        };
        let told: Arc<dyn PushObserver> = self.told.clone();
        push(
            &self.client,
            &image,
            &self.images.store,
            index,
            options,
            &told,
        )
        .await
    }

    async fn push(&self, index: &Selected) -> Pushed {
        self.push_as(index, Existing::Warn).await.unwrap()
    }

    fn writes(&self) -> usize {
        let seen = self.registry.seen();
        let reading = |method: &str| matches!(method, "GET" | "HEAD");
        seen.iter().filter(|seen| !reading(&seen.method)).count()
    }

    fn has(&self, digest: &Digest) -> bool {
        self.registry.manifest("app", &digest.to_string()).is_some()
            || self.registry.has_blob("app", digest)
    }
}

fn digests(pushed: &Pushed, outcome: Outcome) -> Vec<Digest> {
    let mut of = pushed
        .blobs
        .iter()
        .filter(|copied| copied.outcome == outcome);
    let mut digests: Vec<_> = of.by_ref().map(|copied| copied.blob.digest).collect();
    digests.sort_unstable();
    digests
}

fn sorted(mut digests: Vec<Digest>) -> Vec<Digest> {
    digests.sort_unstable();
    digests
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_copied_with_its_blobs_and_the_second_push_sends_nothing() {
    let scene = Scene::new(Setup::default()).await;
    scene.publish_image().await;
    let index = scene.index(&["one", "two", "one"]).await;
    let pushed = scene.push(&index).await;
    let (config, one, two) = (
        Digest::sha256(CONFIG),
        Digest::sha256(b"one"),
        Digest::sha256(b"two"),
    );
    let root = index.index.digest;
    assert_eq!(
        digests(&pushed, Outcome::Pushed),
        sorted(vec![config, one, two, root])
    );
    assert_eq!(digests(&pushed, Outcome::Skipped), [scene.subject.digest]);
    assert_eq!(pushed.listing, Some(Listing::Api));
    let notes = scene.told.take();
    assert_eq!(
        notes[..3],
        [Note::Checking, Note::Index(root), Note::Pushing(root)]
    );
    assert_eq!(notes.last(), Some(&Note::Pushed(root)));
    assert_eq!(notes.len(), 3 + 1 + 2 * 3 + 1);
    assert!(
        [config, one, two, root]
            .iter()
            .all(|digest| scene.has(digest))
    );

    scene.registry.forget_seen();
    let again = scene.push(&index).await;
    assert_eq!(again.existing, [root]);
    assert_eq!(digests(&again, Outcome::Skipped), [root]);
    assert_eq!(again.blobs.len(), 1);
    assert_eq!(scene.writes(), 0);
    let found = soci_index::push::Found(vec![root]);
    let expected = [
        Note::Checking,
        Note::PushingAnyway(found),
        Note::Index(root),
        Note::Skipped(root),
    ];
    assert_eq!(scene.told.take(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_there_is_warned_of_or_kept_or_not_looked_for() {
    let scene = Scene::new(Setup::default()).await;
    scene.publish_image().await;
    let first = scene.index(&["one"]).await;
    scene.push_as(&first, Existing::Allow).await.unwrap();
    assert_eq!(scene.told.take()[0], Note::Index(first.index.digest));
    let second = scene.index(&["two"]).await;
    let kept = scene.push_as(&second, Existing::Skip).await.unwrap();
    assert!(kept.blobs.is_empty() && !scene.has(&second.index.digest));
    let notes: Vec<String> = scene.told.take().iter().map(Note::to_string).collect();
    let skipping = format!(
        "soci index found in remote repository with digest: {}: \
         skipping pushing artifacts for image manifest: {}",
        first.index.digest, scene.subject.digest
    );
    let checking = "checking if a soci index already exists in remote repository...";
    assert_eq!(notes, [checking, &skipping]);
    scene.push(&second).await;
    scene.told.take();
    let third = scene.index(&["three"]).await;
    assert_eq!(scene.push(&third).await.existing.len(), 2);
    assert_eq!(
        scene.told.take()[1].to_string(),
        "[WARN] multiple soci indices found in remote repository: pushing index anyway"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_registry_lacks_is_copied_too() {
    let scene = Scene::new(Setup::default()).await;
    let index = scene.index(&["one"]).await;
    scene.push(&index).await;
    let manifest: Manifest = scene.images.read(&scene.subject.digest).await;
    assert!(scene.has(&scene.subject.digest) && scene.has(&manifest.config.digest));
    assert!(scene.layers.iter().all(|layer| scene.has(&layer.digest)));
    assert_eq!(scene.registry.tags("app"), [""; 0], "no tag for anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_two_indexes_refer_to_is_copied_once_and_first() {
    let mut scene = Scene::new(Setup::default()).await;
    let manifest = scene.subject.clone();
    let mut indexes = Vec::new();
    for members in [vec![], vec![manifest.clone()]] {
        let members = indexes.iter().cloned().chain(members).collect();
        let nested = json::to_vec(&ImageIndex::new(members));
        indexes.push(scene.images.put(media_type::OCI_INDEX, nested).await);
    }
    indexes.insert(0, manifest);
    let root = json::to_vec(&ImageIndex::new(indexes.clone()));
    scene.subject = scene.images.put(media_type::OCI_INDEX, root).await;
    indexes.push(scene.subject.clone());
    let index = scene.index(&["one"]).await;
    indexes.push(index.index.clone());
    let pushed = scene.push(&index).await;
    let position = |digest| {
        let mut places = pushed.blobs.iter().enumerate();
        let of_it = places.by_ref().filter(|(_, it)| it.blob.digest == digest);
        let of_it: Vec<usize> = of_it.map(|(place, _)| place).collect();
        let [only] = of_it[..] else {
            panic!("{of_it:?}");
        };
        only
    };
    let [leaf, empty, between, root, index] = &indexes[..] else {
        panic!("{indexes:?}");
    };
    for (before, after) in [
        (leaf, between),
        (empty, between),
        (between, root),
        (root, index),
    ] {
        assert!(position(before.digest) < position(after.digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_is_named_with_a_remedy() {
    type Gone = fn(&Scene, &Selected) -> Digest;
    let cases: [(Gone, &str, &str); 4] = [
        (
            |scene, _| scene.layers[1].digest,
            "blob",
            "push the image first",
        ),
        (|_, _| Digest::sha256(b"one"), "zTOC", "soci create"),
        (
            |scene, _| scene.subject.digest,
            "image manifest",
            "push the image first",
        ),
        (|_, index| index.index.digest, "index", "soci create"),
    ];
    for (gone, what, remedy) in cases {
        let scene = Scene::new(Setup::default()).await;
        let index = scene.index(&["one"]).await;
        let gone = gone(&scene, &index);
        std::fs::remove_file(scene.images.layout.blob_path(&gone)).unwrap();
        let error = scene.push_as(&index, Existing::Warn).await.unwrap_err();
        assert_eq!(error.to_string(), "error pushing graph to remote");
        let PushError::Graph(error @ GraphError::Missing { .. }) = error else {
            panic!("{error:?}");
        };
        let said = error.to_string();
        assert!(
            said.starts_with(&format!("{what} {gone}: not found (")),
            "{said}"
        );
        assert!(said.contains(remedy), "{said}");
        assert!(!scene.has(&index.index.digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_of_before_gets_a_tag_and_an_index_lost_from_it_comes_back() {
    let scene = Scene::new(Setup {
        referrers: Referrers::Missing,
        keeps_all: true,
        ..Setup::default()
    })
    .await;
    scene.publish_image().await;
    let index = scene.index(&["one"]).await;
    // An earlier push ended before it listed the index.
    let bytes = scene
        .images
        .store
        .read(&index.index.digest, 1 << 20)
        .await
        .unwrap();
    scene
        .registry
        .add_manifest("app", None, media_type::OCI_MANIFEST, bytes);
    assert_eq!(scene.push(&index).await.listing, Some(Listing::Tag));
    let tag = scene.subject.digest.to_string().replace(':', "-");
    assert_eq!(scene.registry.tags("app"), ["1".to_owned(), tag]);
    let other = scene.index(&["two"]).await;
    assert_eq!(scene.push(&other).await.existing, [index.index.digest]);
    let pushed = scene.push(&other).await;
    assert_eq!(pushed.existing.len(), 2);
    assert_eq!(pushed.blobs.len(), 1, "skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_not_known_yet_has_no_index() {
    let scene = Scene::new(Setup {
        referrers: Referrers::UnknownName,
        ..Setup::default()
    })
    .await;
    let index = scene.index(&["one"]).await;
    assert!(scene.push(&index).await.existing.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_under_way_at_once_than_was_asked_for() {
    let scene = Scene::new(Setup {
        latency: std::time::Duration::from_millis(5),
        ..Setup::default()
    })
    .await;
    let ztocs: Vec<String> = (0..20).map(|number| format!("ztoc {number}")).collect();
    let ztocs: Vec<&str> = ztocs.iter().map(String::as_str).collect();
    let index = scene.index(&ztocs).await;
    scene.push(&index).await;
    assert!(scene.registry.most_in_flight() <= 3);
    assert!(scene.registry.most_in_flight() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_the_question_fails_the_push() {
    let scene = Scene::new(Setup {
        referrers: Referrers::Endless,
        ..Setup::default()
    })
    .await;
    let index = scene.index(&["one"]).await;
    let error = scene.push_as(&index, Existing::Warn).await.unwrap_err();
    assert_eq!(error.to_string(), "failed to fetch list of referrers");
    assert_eq!(scene.writes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_no_manifest_is_refused() {
    let scene = Scene::new(Setup::default()).await;
    let bytes = "no json";
    let descriptor = Descriptor::of(media_type::OCI_MANIFEST, bytes.as_bytes());
    let content = Content::Bytes(bytes.into());
    scene.images.store.put(&descriptor, content).await.unwrap();
    let broken = Selected {
        index: descriptor,
        ..scene.index(&["one"]).await
    };
    let error = scene.push_as(&broken, Existing::Warn).await.unwrap_err();
    assert!(matches!(
        error,
        PushError::Graph(GraphError::Document { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_too_many_or_too_deep_documents_is_refused() {
    let mut scene = Scene::new(Setup::default()).await;
    scene.subject = scene.images.large(18, 15 << 18).await;
    let index = scene.index(&["one"]).await;
    let error = scene.push_as(&index, Existing::Allow).await.unwrap_err();
    assert!(
        matches!(
            error,
            PushError::Graph(GraphError::Store(StoreError::TooManyDocuments { .. }))
        ),
        "{error:?}"
    );

    let mut scene = Scene::new(Setup::default()).await;
    for _ in 0..=MAX_DEPTH {
        let nested = ImageIndex::new(vec![scene.subject.clone()]);
        let bytes = json::to_vec(&nested);
        scene.subject = scene.images.put(media_type::OCI_INDEX, bytes).await;
    }
    let index = scene.index(&["one"]).await;
    let error = scene.push_as(&index, Existing::Allow).await.unwrap_err();
    assert!(
        matches!(
            error,
            PushError::Graph(GraphError::Store(StoreError::TooDeep(_)))
        ),
        "{error:?}"
    );
    assert!(!scene.has(&index.index.digest));
}
