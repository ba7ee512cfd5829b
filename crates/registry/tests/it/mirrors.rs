//! Mirrors that are dead, mute, wrong or incomplete, and settings that change.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use soci_oci::{Descriptor, Digest, ImageIndex, Manifest, json, media_type, reference::ImageRef};
use soci_registry::{
    HostFolders, Hosts, Mirror, Options, Registry, RegistryError,
    testing::{Fault, On, Referrers, Setup, TestRegistry, Wrong, noise},
};

use crate::{client, layer, quick};

const MANIFEST: &[u8] = b"{}";
const KIND: &str = "application/vnd.test.kind+json";

/// A registry with one mirror.
struct Pair {
    origin: TestRegistry,
    mirror: TestRegistry,
    image: ImageRef,
}

impl Pair {
    fn new() -> Pair {
        Pair::with(Setup::default(), Setup::default())
    }

    fn with(origin: Setup, mirror: Setup) -> Pair {
        let (origin, mirror) = (TestRegistry::with(origin), TestRegistry::with(mirror));
        let image = origin.reference("app", "v1");
        let pair = Pair {
            origin,
            mirror,
            image,
        };
        for site in pair.both() {
            site.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
        }
        pair
    }

    fn both(&self) -> [&TestRegistry; 2] {
        [&self.mirror, &self.origin]
    }

    fn client(&self, options: Options) -> Registry {
        self.patient_client(options, None)
    }

    fn patient_client(&self, options: Options, timeout: Option<Duration>) -> Registry {
        let mirrors = vec![Mirror {
            host: self.mirror.host(),
            insecure: true,
            timeout,
        }];
        let hosts = Hosts {
            mirrors: [(self.origin.host(), mirrors)].into(),
            ..Hosts::default()
        };
        client(Options { hosts, ..options })
    }

    /// Numbers of requests to the mirror and to the origin since the last call.
    fn asked(&self) -> (usize, usize) {
        let [mirror, origin] = self.both().map(|site| {
            let asked = site.requests();
            site.forget_seen();
            asked
        });
        (mirror, origin)
    }
}

#[tokio::test]
async fn a_mirror_that_fails_is_left_alone_for_a_while() {
    let mute = Wrong::Delay(Duration::from_secs(600));
    for wrong in [
        mute,
        Wrong::Hangup,
        Wrong::status(502),
        Wrong::too_many("1"),
    ] {
        let pair = Pair::new();
        let mut options = quick();
        (options.connect_timeout, options.head_timeout) =
            (Duration::from_millis(100), Duration::from_millis(100));
        let client = pair.client(options);
        client.resolve(&pair.image).await.expect("from the mirror");
        assert_eq!(pair.asked(), (1, 0));
        pair.mirror.fault(Fault::always(On::Any, wrong.clone()));
        client.resolve(&pair.image).await.expect("from the origin");
        let (mirror, origin) = pair.asked();
        assert!(mirror > 0 && origin > 0, "{wrong:?}");
        for _ in 0..3 {
            client.resolve(&pair.image).await.expect("from the origin");
        }
        assert_eq!(pair.asked(), (0, 3), "{wrong:?}");
        // If the origin fails, a mirror is better than nothing, and its answer counts.
        pair.mirror.clear_faults();
        pair.origin.set_online(false);
        client.resolve(&pair.image).await.expect("from the mirror");
        pair.origin.set_online(true);
        pair.asked();
        client.resolve(&pair.image).await.expect("from the mirror");
        assert_eq!(pair.asked(), (1, 0), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_mirror_that_a_reader_gives_up_waiting_for_is_left_alone() {
    let pair = Pair::new();
    let bytes = noise(1, 1000);
    for site in pair.both() {
        site.add_blob("app", bytes.clone());
    }
    let mute = Wrong::Delay(Duration::from_secs(600));
    pair.mirror.fault(Fault::always(On::Any, mute));
    let mut options = quick();
    (options.connect_timeout, options.head_timeout) =
        (Duration::from_millis(50), Duration::from_millis(50));
    let client = pair.patient_client(options, Some(Duration::from_secs(600)));
    let blob = client.blob(&pair.image, &layer(&bytes)).expect("a blob");
    let patience = Duration::from_millis(500);
    let read = tokio::time::timeout(patience, blob.fetch(0..10)).await;
    assert!(read.is_err(), "the mirror is waited for");
    blob.fetch(0..10).await.expect("the registry answers");
}

#[tokio::test]
async fn a_mirror_that_only_lacks_something_is_asked_for_other_things() {
    let pair = Pair::new();
    let client = pair.client(quick());
    let add = |site: &TestRegistry, byte: u8| {
        let bytes = vec![byte; 100];
        site.add_blob("app", bytes.clone());
        layer(&bytes)
    };
    let absent = add(&pair.origin, 1);
    let present = add(&pair.origin, 2);
    add(&pair.mirror, 2);
    for (blob, asked) in [(&absent, (1, 1)), (&present, (1, 0))] {
        let bytes = client.blob_bytes(&pair.image, blob, 100).await;
        assert_eq!(bytes.expect("all there").len(), 100);
        assert_eq!(pair.asked(), asked);
    }
}

#[tokio::test]
async fn a_mirror_that_lies_about_one_blob_is_not_believed_for_others() {
    let pair = Pair::new();
    let client = pair.client(quick());
    let blobs = [1, 2].map(|seed| {
        let bytes = noise(seed, 10_000);
        for site in pair.both() {
            site.add_blob("app", bytes.clone());
        }
        bytes
    });
    let [lie, other] = &blobs;
    let blob = client.blob(&pair.image, &layer(lie)).expect("a blob");
    let read = async || blob.fetch(0..100).await.expect("begins").collect().await;
    read().await.expect("a range");
    assert_eq!(pair.asked(), (1, 0));
    assert!(blob.distrust(), "there is another host");
    assert!(read().await.expect("a range") == lie[..100]);
    let bytes = client.blob_bytes(&pair.image, &layer(other), 10_000).await;
    assert!(bytes.expect("a blob") == other[..]);
    assert_eq!(pair.asked(), (0, 2));
    // An answer proves nothing about bytes.
    pair.origin.set_online(false);
    read().await.expect("better than nothing");
    pair.origin.set_online(true);
    pair.asked();
    read().await.expect("a range");
    assert_eq!(pair.asked(), (0, 1));
}

#[tokio::test]
async fn wrong_bytes_of_the_registry_are_not_blamed_on_its_mirror() {
    let pair = Pair::new();
    let client = pair.client(quick());
    let bytes = noise(1, 1000);
    pair.origin.add_blob("app", bytes.clone());
    let blob = client.blob(&pair.image, &layer(&bytes)).expect("a blob");
    let read = async || blob.fetch(0..100).await.expect("begins").collect().await;
    read().await.expect("from the registry");
    assert_eq!(pair.asked(), (1, 1));
    assert!(blob.distrust());
    pair.mirror.add_blob("app", bytes.clone());
    read().await.expect("from the mirror");
    assert_eq!(pair.asked(), (1, 0));
}

#[tokio::test]
async fn a_mirror_with_unusable_certificates_is_left_out() {
    let (origin, folder) = (
        TestRegistry::start(),
        tempfile::tempdir().expect("a folder"),
    );
    origin.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    let text = format!(
        "server = 'http://{}'\n[host.'https://127.0.0.1:1']\nca = 'missing.pem'\n",
        origin.host()
    );
    let client = client(configured(folder.path(), &text));
    let image = ImageRef::parse("r.example/app:v1").expect("a name");
    client.resolve(&image).await.expect("the origin is fine");
}

#[tokio::test]
async fn changed_settings_and_certificates_take_effect_without_a_new_client() {
    let secure = || {
        let setup = Setup {
            tls: true,
            ..Setup::default()
        };
        let registry = TestRegistry::with(setup);
        registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
        registry
    };
    let (first, second) = (secure(), secure());
    let folder = tempfile::tempdir().expect("a folder");
    let text = |site: &TestRegistry| format!("server = 'https://{}'\nca = 'ca.pem'\n", site.host());
    let client = client(configured(folder.path(), &text(&first)));
    let image = ImageRef::parse("r.example/app:v1").expect("a name");
    let ca = folder.path().join("r.example/ca.pem");
    let (client_certificate, _) = TestRegistry::client_pem();
    fs::write(&ca, client_certificate).expect("a file");
    let refused = client.resolve(&image).await;
    assert!(refused.is_err(), "not the registry's authority");
    fs::write(&ca, TestRegistry::ca_pem()).expect("a file");
    client.resolve(&image).await.expect("trusted now");
    assert_eq!(first.requests(), 1);
    configured(folder.path(), &text(&second));
    client.resolve(&image).await.expect("elsewhere now");
    assert_eq!((first.requests(), second.requests()), (1, 1));
}

fn configured(folder: &Path, text: &str) -> Options {
    let own = folder.join("r.example");
    fs::create_dir_all(&own).expect("a folder");
    fs::write(own.join("hosts.toml"), text).expect("a file");
    let hosts = Hosts {
        folders: HostFolders::new(vec![folder.to_owned()]),
        ..Hosts::default()
    };
    Options { hosts, ..quick() }
}

fn referrer(subject: &Digest) -> Bytes {
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: String::new(),
        config: Descriptor::of(KIND, MANIFEST),
        layers: Some(Vec::new()),
        subject: Some(Descriptor::new(
            media_type::OCI_MANIFEST,
            *subject,
            MANIFEST.len() as u64,
        )),
        annotations: std::collections::BTreeMap::default(),
    };
    json::to_vec(&manifest).into()
}

fn refer(site: &TestRegistry) -> Descriptor {
    let bytes = referrer(&Digest::sha256(MANIFEST));
    site.add_manifest("app", None, media_type::OCI_MANIFEST, bytes)
}

/// Lists a referrer under the tag, for registries without the API.
fn refer_by_tag(site: &TestRegistry) {
    let subject = Digest::sha256(MANIFEST);
    let entry = Descriptor {
        artifact_type: KIND.to_owned(),
        ..Descriptor::of(media_type::OCI_MANIFEST, &referrer(&subject))
    };
    let list = json::to_vec(&ImageIndex::new(vec![entry]));
    let tag = subject.to_string().replace(':', "-");
    site.add_manifest("app", Some(&tag), media_type::OCI_INDEX, list);
}

fn without_api() -> Setup {
    Setup {
        referrers: Referrers::Missing,
        ..Setup::default()
    }
}

async fn listed(pair: &Pair, client: &Registry) -> Result<usize, RegistryError> {
    let subject = Digest::sha256(MANIFEST);
    let listed = client.referrers(&pair.image, &subject, KIND).await?;
    Ok(listed.len())
}

#[tokio::test]
async fn referrers_come_from_a_mirror_that_lists_them() {
    let paged = || Setup {
        referrers: Referrers::Api {
            page: 1,
            filters: false,
        },
        ..Setup::default()
    };
    let pair = Pair::with(Setup::default(), paged());
    refer(&pair.mirror);
    let other = json::to_vec(&Manifest {
        config: Descriptor::of("other", MANIFEST),
        ..serde_json_manifest()
    });
    pair.mirror
        .add_manifest("app", None, media_type::OCI_MANIFEST, other);
    pair.origin.set_online(false);
    let client = pair.client(quick());
    assert_eq!(listed(&pair, &client).await.expect("a list"), 1);
    let seen = pair.mirror.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    for seen in seen {
        assert!(seen.query.contains("ns=127.0.0.1"), "{}", seen.query);
    }
    // A tag that clients maintain is as good.
    let pair = Pair::with(Setup::default(), without_api());
    refer_by_tag(&pair.mirror);
    pair.origin.set_online(false);
    let client = pair.client(quick());
    assert_eq!(listed(&pair, &client).await.expect("a list"), 1);
}

fn serde_json_manifest() -> Manifest {
    json::from_slice(&referrer(&Digest::sha256(MANIFEST))).expect("a manifest")
}

#[tokio::test]
async fn what_a_mirror_does_not_list_is_asked_for_at_the_registry() {
    for (setup, fault) in [
        (Setup::default(), None),
        (without_api(), None),
        (Setup::default(), Some(Wrong::status(404))),
        (Setup::default(), Some(Wrong::status(500))),
        (Setup::default(), Some(Wrong::Hangup)),
    ] {
        for by_tag in [false, true] {
            let origin = if by_tag {
                without_api()
            } else {
                Setup::default()
            };
            let pair = Pair::with(origin, setup.clone());
            match by_tag {
                false => drop(refer(&pair.origin)),
                true => refer_by_tag(&pair.origin),
            }
            if let Some(wrong) = &fault {
                pair.mirror.fault(Fault::always(On::Any, wrong.clone()));
            }
            let client = pair.client(quick());
            let what = format!("{:?} {fault:?} {by_tag}", setup.referrers);
            assert_eq!(listed(&pair, &client).await.expect(&what), 1, "{what}");
            assert!(pair.asked().0 > 0, "the mirror was asked first: {what}");
        }
    }
}

#[tokio::test]
async fn an_empty_list_of_a_mirror_is_no_answer() {
    let pair = Pair::new();
    let client = pair.client(quick());
    assert_eq!(listed(&pair, &client).await.expect("nothing there"), 0);
    pair.origin.set_online(false);
    let error = listed(&pair, &client).await.expect_err("nobody knows");
    assert!(error.is_transient(), "{error:?}");
}
