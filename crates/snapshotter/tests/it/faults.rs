//! Registries that never give an answer, and documents and labels that nobody would write in good
//! faith. The image is left to containerd in time, and other images do not notice.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use soci_oci::digest::Digest;
use soci_registry::testing::{Access, Fault, On, Setup, TestRegistry, Wrong, noise};
use soci_snapshotter::config::Config;
use tempfile::TempDir;
use tonic::Code;

use crate::image::{Image, REPOSITORY, Shape, file, tar};
use crate::server::{Labels, Server};

/// The limit of the configuration, and the time that a loaded machine may need beyond it.
const PATIENCE: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(4);

const IMAGE_REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

async fn daemon() -> Server {
    let mut config = Config::default();
    config.background_fetch.disable = true;
    config.service.mount_timeout_sec = i64::try_from(PATIENCE.as_secs()).unwrap();
    Server::daemon_on(TempDir::new().unwrap(), &config).await
}

fn publish(registry: &TestRegistry, seed: u64) -> Image {
    let tars = [tar(&[file("a", &noise(seed, 100_000))])];
    Image::publish(registry, &tars, Shape::default())
}

/// Whether the daemon mounts the layer. If not, containerd gets a directory to unpack it to.
async fn mounts(server: &Server, key: &str, labels: Labels) -> bool {
    let mounted = match server.prepare_in("default", key, "", labels).await {
        Ok(mounts) => {
            assert_eq!(mounts[0].r#type, "bind", "{mounts:?}");
            false
        }
        Err(status) => {
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            return true;
        }
    };
    server.remove(key).await.unwrap();
    mounted
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_left_to_containerd_in_time_whatever_its_registry_does() {
    let circle = Wrong::Status {
        code: 302,
        headers: vec![("location", "/v2/around".to_owned())],
        body: String::new(),
    };
    let hour = Duration::from_secs(3_600);
    let ending = [
        ("redirects for ever", On::Any, circle),
        ("says nothing", On::Any, Wrong::Delay(hour)),
        ("its token server is down", On::Token, Wrong::Hangup),
        ("its token server is silent", On::Token, Wrong::Delay(hour)),
    ];
    // The daemon respects the pause that a registry asks for, and waits 20 s for the next byte.
    let lasting = [
        ("is busy for minutes", On::Any, Wrong::too_many("600")),
        ("stops in the middle", On::Manifest, Wrong::Stall(9)),
    ];
    let server = daemon().await;
    let good = TestRegistry::start();
    let ending = ending.into_iter().map(|fault| (fault, true));
    let lasting = lasting.into_iter().map(|fault| (fault, false));
    let cases = (0..).zip(ending.chain(lasting));
    let cases = cases.map(|(n, (fault, ends))| beside(&server, &good, n, fault, ends));
    join_all(cases).await;
    server.interrupt().await;
}

/// An image of a registry with the fault is left to containerd, and one of the good registry is
/// mounted meanwhile. Fault number `n` of several at once. If the fault `ends`, the same image is
/// mounted afterwards.
async fn beside(
    server: &Server,
    good: &TestRegistry,
    n: u64,
    (what, on, wrong): (&str, On, Wrong),
    ends: bool,
) {
    let registry = TestRegistry::with(Setup {
        access: Access::Token {
            login: None,
            lifetime: Duration::from_secs(300),
            oauth: false,
        },
        ..Setup::default()
    });
    let bad = publish(&registry, 100 + n);
    registry.fault(Fault::always(on, wrong));
    let beside = publish(good, 200 + n);
    let (bad_key, good_key) = (format!("bad-{n}"), format!("good-{n}"));
    let start = Instant::now();
    let (mounted, ()) = tokio::join!(mounts(server, &bad_key, bad.labels(0)), async {
        assert!(mounts(server, &good_key, beside.labels(0)).await, "{what}");
        let took = start.elapsed();
        assert!(took < SLACK, "another image took {took:?}: {what}");
    });
    assert!(!mounted, "{what}");
    let took = start.elapsed();
    assert!(took < PATIENCE + SLACK, "{took:?}: {what}");
    // The failure is not kept: the image is mounted when the request that waits has failed.
    registry.clear_faults();
    let cleared = Instant::now();
    while ends && !mounts(server, &bad_key, bad.labels(0)).await {
        assert!(cleared.elapsed() < 2 * SLACK, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_any_content_are_answered() {
    let registry = TestRegistry::start();
    let image = publish(&registry, 1);
    let server = daemon().await;
    let long = "a".repeat(4_000);
    let digest = image.layers[0].to_string();
    let values = [
        (IMAGE_REFERENCE, "../../../etc/passwd"),
        (IMAGE_REFERENCE, "registry.example/a b\nc:1"),
        (IMAGE_REFERENCE, "user:secret@127.0.0.1/a:1"),
        (IMAGE_REFERENCE, "127.0.0.1:99999/a:1"),
        (IMAGE_REFERENCE, "[::1]:0/a:1"),
        (IMAGE_REFERENCE, &long),
        (MANIFEST_DIGEST, "sha256:../../x"),
        (MANIFEST_DIGEST, "sha256:"),
        (MANIFEST_DIGEST, "md5:d41d8cd98f00b204e9800998ecf8427e"),
        (MANIFEST_DIGEST, &digest),
        (LAYER_DIGEST, "sha256:0"),
        (LAYER_DIGEST, "\u{0}"),
        (LAYER_DIGEST, &long),
        ("containerd.io/snapshot/remote/soci.index.digest", "x"),
        ("containerd.io/snapshot/remote/soci.index.digest", "sha512:"),
    ];
    for (n, (label, value)) in values.into_iter().enumerate() {
        let mut labels = image.labels(0);
        labels.insert(label.to_owned(), value.to_owned());
        let key = format!("hostile-{n}");
        assert!(!mounts(&server, &key, labels).await, "{label}: {value:?}");
    }
    // An index that does not exist does not keep the image from being pulled whole.
    let mut labels = image.labels(0);
    let index = "containerd.io/snapshot/remote/soci.index.digest".to_owned();
    labels.insert(index, digest.clone());
    assert!(mounts(&server, "no-index", labels).await);
    // containerd cuts lists off in the middle of a digest.
    let mut labels = image.labels(0);
    let mut cut = vec![digest; 80].join(",");
    cut.truncate(4_096 - "containerd.io/snapshot/cri.image-layers".len());
    for (label, value) in [
        ("containerd.io/snapshot/cri.image-layers", cut.as_str()),
        ("containerd.io/snapshot/remote/image.layers.size", "1,-2,x"),
        ("containerd.io/snapshot/remote/soci.size", "many"),
        ("containerd.io/snapshot/max-size", "1e99"),
    ] {
        labels.insert(label.to_owned(), value.to_owned());
    }
    assert!(mounts(&server, "cut", labels).await);
    server.interrupt().await;
}

/// Publishes the image with its manifest changed by `change`.
fn changed(registry: &TestRegistry, image: &Image, change: impl Fn(String) -> String) -> Labels {
    let (kind, bytes) = registry
        .manifest(REPOSITORY, &image.manifest.to_string())
        .unwrap();
    let text = change(String::from_utf8(bytes.to_vec()).unwrap());
    let manifest = registry.add_manifest(REPOSITORY, None, &kind, text.into_bytes());
    let mut labels = image.labels(0);
    labels.insert(MANIFEST_DIGEST.to_owned(), manifest.digest.to_string());
    labels
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_and_indexes_of_any_content_are_answered() {
    let registry = TestRegistry::start();
    let image = publish(&registry, 2);
    let server = daemon().await;
    let many = format!(
        r#""layers":[{}"#,
        (0..10_000)
            .map(|n: u32| format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":9}},"#,
                Digest::sha256(n.to_string().as_bytes())
            ))
            .collect::<String>()
    );
    let huge = |text: String| text + &" ".repeat(20 << 20);
    let start = Instant::now();
    let left = [
        changed(&registry, &image, huge),
        changed(&registry, &image, |text| {
            text.replace("sha256:", "sha256:..")
        }),
        changed(&registry, &image, |text| {
            text.replace("\"size\":", "\"size\":-")
        }),
        changed(&registry, &image, |_| "[".repeat(100_000)),
        changed(&registry, &image, |_| String::new()),
        changed(&registry, &image, |text| text[..text.len() / 2].to_owned()),
    ];
    for (n, labels) in left.into_iter().enumerate() {
        assert!(!mounts(&server, &format!("left-{n}"), labels).await, "{n}");
    }
    // The index names the layer, wherever it is in the manifest.
    let labels = changed(&registry, &image, |text| {
        text.replace(r#""layers":["#, &many)
    });
    assert!(mounts(&server, "many", labels).await, "10,001 layers");
    assert!(start.elapsed() < SLACK * 3, "{:?}", start.elapsed());
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_changes_no_byte() {
    let registry = TestRegistry::start();
    let server = daemon().await;
    let other = Digest::sha256(b"another").to_string();
    type Change<'a> = &'a dyn Fn(&Image, String) -> String;
    let changes: [(&str, Change<'_>); 6] = [
        ("extra fields", &|_, text| {
            text.replacen('{', r#"{"more":[{"of":1}],"#, 1)
        }),
        ("a zTOC that is missing", &|image, text| {
            text.replace(&image.ztocs[0].to_string(), &other)
        }),
        ("a small size", &|_, text| sized(&text, "1")),
        ("a large size", &|_, text| sized(&text, "99999999999999")),
        ("a negative size", &|_, text| sized(&text, "-1")),
        ("a layer without a digest", &|image, text| {
            text.replace(&image.layers[0].to_string(), "sha256:0")
        }),
    ];
    for (n, (what, change)) in changes.into_iter().enumerate() {
        let seed = 300 + n as u64;
        let image = publish(&registry, seed);
        let (kind, index) = registry
            .manifest(REPOSITORY, &image.index.to_string())
            .unwrap();
        let index = change(&image, String::from_utf8(index.to_vec()).unwrap());
        let index = registry.add_manifest(REPOSITORY, None, &kind, index.into_bytes());
        let labels = changed(&registry, &image, |text| {
            text.replace(&image.index.to_string(), &index.digest.to_string())
        });
        if mounts(&server, &format!("lie-{n}"), labels).await {
            let view = server.viewed(&image.target(0)).await;
            let read = std::fs::read(view.path().join("a")).unwrap();
            assert!(read == noise(seed, 100_000), "{what}");
        } else {
            assert_ne!(what, "extra fields");
        }
    }
    server.interrupt().await;
}

/// The index with this size of every zTOC.
fn sized(index: &str, size: &str) -> String {
    let mut index: serde_json::Value = serde_json::from_str(index).unwrap();
    for blob in index["layers"].as_array_mut().unwrap() {
        blob["size"] = serde_json::from_str(size).unwrap();
    }
    index.to_string()
}
