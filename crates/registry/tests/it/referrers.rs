//! Referrers of a manifest: found and added through the Referrers API or the referrers tag.

use bytes::Bytes;
use soci_oci::{Descriptor, Digest, ImageIndex, Manifest, json, media_type, reference::ImageRef};
use soci_registry::{
    Listing, Options, Registry, RegistryError,
    testing::{Access, Fault, On, Referrers, Setup, TestRegistry, Wrong},
};

use crate::{client, client_as, everything_said, login, quick};

const KIND: &str = "application/vnd.test.kind+json";

/// A manifest of this type that refers to `subject`; `number` makes it unique.
fn referrer(subject: &Descriptor, kind: &str, number: u64) -> Bytes {
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: String::new(),
        config: Descriptor::of(kind, b"{}"),
        layers: Some(Vec::new()),
        subject: Some(subject.clone()),
        annotations: [("number".to_owned(), number.to_string())].into(),
    };
    json::to_vec(&manifest).into()
}

struct Scene {
    registry: TestRegistry,
    image: ImageRef,
    subject: Descriptor,
}

/// A repository with an image and the blobs of a referrer.
fn scene(setup: Setup) -> Scene {
    let registry = TestRegistry::with(setup);
    registry.add_blob("app", &b"{}"[..]);
    let subject = registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, &b"{ }"[..]);
    let image = registry.reference("app", "v1");
    Scene {
        registry,
        image,
        subject,
    }
}

fn old(keeps_all: bool) -> Setup {
    Setup {
        referrers: Referrers::Missing,
        keeps_all,
        ..Setup::default()
    }
}

impl Scene {
    async fn push(&self, client: &Registry, kind: &str, number: u64) -> (Listing, Digest) {
        let bytes = referrer(&self.subject, kind, number);
        let digest = Digest::sha256(&bytes);
        let pushed = client.push_referrer(&self.image, media_type::OCI_MANIFEST, bytes);
        (pushed.await.expect("pushed"), digest)
    }

    async fn found(&self, client: &Registry) -> Vec<Digest> {
        let found = client.referrers(&self.image, &self.subject.digest, KIND);
        let found = found.await.expect("a list");
        assert!(found.iter().all(|referrer| referrer.artifact_type == KIND));
        found.iter().map(|referrer| referrer.digest).collect()
    }

    /// The index that the subject's referrers tag points to.
    fn tagged(&self) -> Option<ImageIndex> {
        let tag = self.subject.digest.to_string().replace(':', "-");
        let (kind, bytes) = self.registry.manifest("app", &tag)?;
        assert_eq!(kind, media_type::OCI_INDEX);
        Some(json::from_slice(&bytes).expect("an index"))
    }

    fn count(&self, method: &str, part: &str) -> usize {
        let seen = self.registry.seen();
        let matching = seen.iter().filter(|seen| seen.method == method);
        matching.filter(|seen| seen.path.contains(part)).count()
    }
}

#[tokio::test]
async fn a_registry_that_lists_referrers_needs_no_tag() {
    let scene = scene(Setup::default());
    let client = client(quick());
    assert!(scene.found(&client).await.is_empty());
    let (listing, digest) = scene.push(&client, KIND, 1).await;
    scene.push(&client, "other", 2).await;
    assert_eq!(listing, Listing::Api);
    assert_eq!(scene.found(&client).await, [digest]);
    assert_eq!(scene.registry.tags("app"), ["v1"]);
    assert_eq!(scene.count("DELETE", ""), 0);
}

#[tokio::test]
async fn an_answer_that_names_the_subject_ends_a_push() {
    let scene = scene(Setup::default());
    let (listing, _) = scene.push(&client(quick()), KIND, 1).await;
    assert_eq!(listing, Listing::Api);
    assert_eq!(scene.registry.requests(), 1, "the PUT and nothing else");
}

#[tokio::test]
async fn pages_are_followed_to_the_last_with_and_without_the_registrys_filter() {
    for (page, filters) in [(1, true), (2, false), (3, true), (100, false)] {
        let setup = Setup {
            referrers: Referrers::Api { page, filters },
            ..Setup::default()
        };
        let scene = scene(setup);
        let client = client(quick());
        let mut pushed = Vec::new();
        for number in 0..5 {
            pushed.push(scene.push(&client, KIND, number).await.1);
            scene.push(&client, "other", number).await;
        }
        pushed.sort_unstable();
        assert_eq!(scene.found(&client).await, pushed, "{page} {filters}");
        let shown = if filters { 5_usize } else { 10 };
        assert_eq!(scene.count("GET", "/referrers/"), shown.div_ceil(page));
    }
}

#[tokio::test]
async fn a_registry_of_before_has_the_list_under_a_tag() {
    for referrers in [Referrers::Missing, Referrers::Html] {
        let setup = Setup {
            referrers,
            ..Setup::default()
        };
        let scene = scene(setup);
        let client = client(quick());
        assert!(scene.found(&client).await.is_empty());
        let (listing, first) = scene.push(&client, KIND, 1).await;
        assert_eq!(listing, Listing::Tag);
        let superseded = scene
            .registry
            .manifest("app", &tag(&scene))
            .expect("a list")
            .1;
        let (_, second) = scene.push(&client, KIND, 2).await;
        let (_, other) = scene.push(&client, "other", 3).await;
        assert_eq!(scene.found(&client).await, [first, second]);
        let listed = scene.tagged().expect("a list");
        assert_eq!(listed.manifests().len(), 3);
        let entry = &listed.manifests()[1];
        let bytes = referrer(&scene.subject, KIND, 2);
        assert_eq!(entry.media_type, media_type::OCI_MANIFEST);
        assert_eq!((entry.digest, entry.size), (second, bytes.len() as u64));
        assert_eq!(entry.annotation("number"), Some("2"));
        assert_eq!(listed.manifests()[2].digest, other);
        let gone = Digest::sha256(&superseded).to_string();
        assert!(scene.registry.manifest("app", &gone).is_none(), "swept");
        assert_eq!(scene.count("GET", "/referrers/"), 1, "asked once");
    }
}

#[tokio::test]
async fn a_registry_that_rejects_the_path_has_the_list_under_a_tag() {
    for code in [400, 405, 406, 410, 422, 501] {
        let scene = scene(old(false));
        let path = On::Path("/referrers/".to_owned());
        scene
            .registry
            .fault(Fault::always(path, Wrong::status(code)));
        let client = client(quick());
        client.resolve(&scene.image).await.expect("an image");
        assert!(scene.found(&client).await.is_empty(), "{code}");
        let (listing, pushed) = scene.push(&client, KIND, 1).await;
        assert_eq!(listing, Listing::Tag, "{code}");
        assert_eq!(scene.found(&client).await, [pushed], "{code}");
    }
}

fn tag(scene: &Scene) -> String {
    scene.subject.digest.to_string().replace(':', "-")
}

#[tokio::test]
async fn a_registry_that_deletes_nothing_is_pushed_to_all_the_same() {
    let scene = scene(old(true));
    let client = client(quick());
    scene.push(&client, KIND, 1).await;
    scene.push(&client, KIND, 2).await;
    assert_eq!(scene.tagged().expect("a list").manifests().len(), 2);
    assert_eq!(scene.count("DELETE", "/manifests/"), 1, "tried once");
}

#[tokio::test]
async fn what_is_listed_is_not_listed_twice() {
    let scene = scene(old(false));
    let client = client(quick());
    scene.push(&client, KIND, 1).await;
    let puts = scene.count("PUT", &tag(&scene));
    scene.push(&client, KIND, 1).await;
    assert_eq!(scene.tagged().expect("a list").manifests().len(), 1);
    assert_eq!(scene.count("PUT", &tag(&scene)), puts);
}

#[tokio::test]
async fn tokens_are_enough_for_lists_and_for_deletions() {
    let access = Access::Token {
        login: Some(("me".to_owned(), "pw".to_owned())),
        lifetime: std::time::Duration::from_secs(300),
        oauth: false,
    };
    let scene = scene(Setup {
        access,
        ..old(false)
    });
    let client = client_as(quick(), login(&scene.registry, "me", "pw"));
    scene.push(&client, KIND, 1).await;
    scene.push(&client, KIND, 2).await;
    assert_eq!(scene.found(&client).await.len(), 2);
    let deleted = scene.registry.seen().into_iter();
    let deleted: Vec<_> = deleted.filter(|seen| seen.method == "DELETE").collect();
    assert_eq!(deleted.last().map(|seen| seen.status), Some(202));
}

#[tokio::test]
async fn a_repository_that_is_not_known_is_an_answer_of_its_own() {
    let scene = scene(Setup {
        referrers: Referrers::UnknownName,
        ..Setup::default()
    });
    let asked = client(quick());
    let asked = asked
        .referrers(&scene.image, &scene.subject.digest, KIND)
        .await;
    assert!(
        matches!(asked, Err(RegistryError::NotFound { .. })),
        "{asked:?}"
    );
    let (listing, _) = scene.push(&client(quick()), KIND, 1).await;
    assert_eq!(listing, Listing::Tag);
}

#[tokio::test]
async fn lists_without_an_end_are_refused() {
    for referrers in [Referrers::Endless, Referrers::Circle] {
        let scene = scene(Setup {
            referrers: referrers.clone(),
            ..Setup::default()
        });
        let asked = client(quick());
        let asked = asked
            .referrers(&scene.image, &scene.subject.digest, KIND)
            .await;
        let said = everything_said(&asked.expect_err("no list"));
        assert!(
            said.contains("more than 4194304 bytes") || said.contains("is larger than"),
            "{said}"
        );
        assert!(scene.registry.requests() <= 256, "{referrers:?}");
    }
}

#[tokio::test]
async fn a_tag_that_is_no_list_is_neither_believed_nor_replaced() {
    let scene = scene(old(false));
    let tag = tag(&scene);
    let other = referrer(&scene.subject, KIND, 9);
    scene
        .registry
        .add_manifest("app", Some(&tag), media_type::OCI_MANIFEST, other.clone());
    let client = client(quick());
    let asked = client
        .referrers(&scene.image, &scene.subject.digest, KIND)
        .await;
    let said = everything_said(&asked.expect_err("no list"));
    assert!(said.contains(&tag), "{said}");
    let bytes = referrer(&scene.subject, KIND, 1);
    let pushed = client.push_referrer(&scene.image, media_type::OCI_MANIFEST, bytes);
    assert!(pushed.await.is_err());
    assert_eq!(scene.registry.manifest("app", &tag).expect("kept").1, other);
}

#[tokio::test]
async fn passing_trouble_is_waited_out() {
    use soci_registry::testing::{Fault, On, Wrong};
    let scene = scene(old(false));
    let client = client(Options {
        user_agent: "soci-test".to_owned(),
        ..quick()
    });
    for part in ["/referrers/", "/manifests/sha256-", "/manifests/sha256:"] {
        let on = On::Path(part.to_owned());
        scene.registry.fault(Fault::once(on, Wrong::status(503)));
    }
    scene.push(&client, KIND, 1).await;
    assert_eq!(scene.found(&client).await.len(), 1);
}
