//! Conversion from registry to registry: requests, uploads, and failures.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use soci_oci::{Digest, media_type};
use soci_registry::testing::{Access, Fault, On, Seen, Setup, TestRegistry, Wrong};

use crate::site::{convert, converted, docker, layer, layout, publish, tagged, uploads};
use crate::soci::{Ran, command, run};

mod interrupted;
mod logins;

/// A registry with an image of these layers as `in:1`.
fn with_image(setup: Setup, layers: &[Vec<u8>]) -> TestRegistry {
    let registry = TestRegistry::with(setup);
    let folder = tempfile::tempdir().unwrap();
    let manifest = layout(folder.path(), layers);
    publish(folder.path(), &manifest, &registry, "in");
    registry.forget_seen();
    registry
}

fn layers() -> Vec<Vec<u8>> {
    vec![layer(1, 3 << 20), layer(2, 1 << 20), layer(3, 900)]
}

/// A `--min-layer-size` that excludes the last of [`layers`].
const SOME: &[&str] = &["--min-layer-size", "100000"];

fn digests(layers: &[Vec<u8>]) -> Vec<Digest> {
    layers.iter().map(|layer| Digest::sha256(layer)).collect()
}

#[test]
fn in_the_same_repository_layers_are_read_once_and_nothing_is_sent_that_is_there() {
    let layers = layers();
    let registry = with_image(Setup::default(), &layers);
    converted(SOME, &docker(&registry, "in:1"), &docker(&registry, "in:2"));
    let digests = digests(&layers);
    for (digest, layer) in digests.iter().zip(&layers).take(2) {
        assert_eq!(
            registry.bytes_sent(digest),
            layer.len() as u64,
            "one time each"
        );
    }
    assert_eq!(
        registry.bytes_sent(&digests[2]),
        0,
        "a small layer is not even read"
    );
    // Two zTOCs and the index's empty configuration.
    assert_eq!(uploads(&registry, "in").len(), 3);
    // The tag is written last.
    let seen = registry.seen();
    let last = seen.last().unwrap();
    assert_eq!(
        (last.method.as_str(), last.path.as_str()),
        ("PUT", "/v2/in/manifests/2")
    );
}

#[test]
fn another_repository_of_the_registry_gets_layers_without_sending_them() {
    let layers = layers();
    let registry = with_image(Setup::default(), &layers);
    converted(
        SOME,
        &docker(&registry, "in:1"),
        &docker(&registry, "other/out:2"),
    );
    for digest in digests(&layers) {
        assert!(registry.has_blob("other/out", &digest));
    }
    assert_eq!(registry.bytes_sent(&digests(&layers)[2]), 0);
    assert_eq!(uploads(&registry, "other/out").len(), 3);
}

#[test]
fn another_registry_gets_layers_from_the_same_stream() {
    let layers = layers();
    let from = with_image(Setup::default(), &layers);
    let to = TestRegistry::start();
    converted(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
    for (digest, layer) in digests(&layers).iter().zip(&layers) {
        assert_eq!(from.bytes_sent(digest), layer.len() as u64);
        assert!(to.has_blob("out", digest));
    }
    assert!(
        from.seen()
            .iter()
            .all(|seen| matches!(seen.method.as_str(), "GET" | "HEAD"))
    );
    let expected = tagged(&to, "out", "2");
    // The second time, everything is present, and only the tag is sent.
    to.forget_seen();
    let ran = converted(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
    assert_eq!(ran.stdout.matches("(already exists)").count(), 0, "{ran:?}");
    assert!(uploads(&to, "out").is_empty());
    // If the copy is trusted, only documents and zTOCs are read.
    from.forget_seen();
    to.forget_seen();
    let trusted = docker(&to, "out:2");
    let flags = [SOME, &["--reuse-from", &trusted]].concat();
    let ran = converted(&flags, &docker(&from, "in:1"), &docker(&to, "out:2"));
    assert_eq!(ran.stdout.matches("(already exists)").count(), 2, "{ran:?}");
    assert_eq!(
        digests(&layers)
            .iter()
            .map(|it| from.bytes_sent(it))
            .sum::<u64>(),
        0
    );
    assert!(uploads(&to, "out").is_empty());
    assert_eq!(tagged(&to, "out", "2"), expected);
    // `--force` builds everything again.
    let flags: Vec<&str> = flags.into_iter().chain(["--force"]).collect();
    let ran = converted(&flags, &docker(&from, "in:1"), &docker(&to, "out:2"));
    assert_eq!(ran.stdout.matches("(already exists)").count(), 0, "{ran:?}");
    assert_eq!(tagged(&to, "out", "2"), expected);
}

#[test]
fn connections_that_break_are_resumed_where_they_broke() {
    let layers = layers();
    let from = with_image(Setup::default(), &layers);
    let to = TestRegistry::start();
    let big = digests(&layers)[0];
    for at in [1 << 20, 700_000, 50_000] {
        from.fault(Fault::once(On::Blob(big), Wrong::Cut(at)));
    }
    converted(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
    let ranges = from.ranges(&big);
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert!(
        ranges.windows(2).all(|pair| pair[0].start < pair[1].start),
        "{ranges:?}"
    );
    assert!(to.has_blob("out", &big));
    assert_eq!(
        uploads(&to, "out").len(),
        7,
        "three layers, their image's configuration, two zTOCs, the index's"
    );
}

#[test]
fn an_upload_that_breaks_begins_again_and_the_image_is_whole() {
    let layers = layers();
    let from = with_image(Setup::default(), &layers);
    let to = TestRegistry::start();
    let refusal = Wrong::status(500);
    to.fault(Fault::once(On::Path("/blobs/uploads/".into()), refusal).times(2));
    converted(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
    for digest in digests(&layers) {
        assert!(to.has_blob("out", &digest));
    }
    assert!(tagged(&to, "out", "2").is_some());
}

#[test]
fn ztocs_of_another_image_are_taken_over() {
    let base = vec![layer(1, 3 << 20)];
    let registry = with_image(Setup::default(), &base);
    converted(
        SOME,
        &docker(&registry, "in:1"),
        &docker(&registry, "base:soci"),
    );
    let folder = tempfile::tempdir().unwrap();
    let manifest = layout(folder.path(), &[base[0].clone(), layer(2, 1 << 20)]);
    publish(folder.path(), &manifest, &registry, "app");
    registry.forget_seen();
    let reuse = format!("{}/base:soci", registry.host());
    let flags: Vec<&str> = SOME
        .iter()
        .copied()
        .chain(["--reuse-from", &reuse])
        .collect();
    let ran = converted(
        &flags,
        &docker(&registry, "app:1"),
        &docker(&registry, "app:soci"),
    );
    assert_eq!(ran.stdout.matches("(already exists)").count(), 1, "{ran:?}");
    assert_eq!(registry.bytes_sent(&digests(&base)[0]), 0);
    // The new zTOC. The old one and the index's configuration are mounted.
    assert_eq!(uploads(&registry, "app").len(), 1);
    let without = tagged(&registry, "app", "soci");
    converted(
        &[SOME, &["--force"]].concat(),
        &docker(&registry, "app:1"),
        &docker(&registry, "app:soci"),
    );
    assert_eq!(
        tagged(&registry, "app", "soci"),
        without,
        "taken over or built, it is the same image"
    );
}

#[test]
fn a_version_1_index_is_pushed_to_be_found_from_its_image() {
    let layers = layers();
    let registry = with_image(Setup::default(), &layers);
    let create = |flags: &[&str]| {
        let image = docker(&registry, "in:1");
        let words = ["create", "--standalone"];
        run(words
            .iter()
            .chain(SOME)
            .chain(flags)
            .copied()
            .chain([image.as_str()]))
    };
    let ran = create(&["--json"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let index = report["platforms"][0]["index"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let (_, bytes) = registry.manifest("in", &index).expect("the index is there");
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        document["config"]["mediaType"],
        "application/vnd.amazon.soci.index.v1+json"
    );
    assert_eq!(
        document["subject"]["digest"].as_str(),
        tagged(&registry, "in", "1").as_deref()
    );
    assert_eq!(registry.tags("in"), ["1"], "no tag is made for it");
    // Commands that trust the registry find and reuse it.
    let ran = create(&[]);
    assert_eq!(ran.stdout.matches("(already exists)").count(), 0, "{ran:?}");
    let trusted = docker(&registry, "in:1");
    let ran = create(&["--reuse-from", &trusted]);
    assert_eq!(ran.stdout.matches("(already exists)").count(), 2, "{ran:?}");
}

/// The zTOCs in a command's output.
fn ztocs(ran: &Ran) -> Vec<String> {
    let lines = ran.stdout.lines();
    let digests = lines.filter_map(|line| line.split("-> ztoc ").nth(1)?.split(' ').next());
    digests.map(str::to_owned).collect()
}

/// Tags an image whose index claims the zTOC of `lie` for `layer`. Returns the zTOC.
fn forge(registry: &TestRegistry, tag: &str, layer: &[u8], lie: Vec<u8>) -> String {
    let (layer, lied) = (Digest::sha256(layer), Digest::sha256(&lie));
    let elsewhere = with_image(Setup::default(), &[lie]);
    let (from, to) = (docker(&elsewhere, "in:1"), docker(&elsewhere, "in:2"));
    let ztoc = ztocs(&converted(&[], &from, &to)).remove(0);
    registry.add_blob("in", elsewhere.blob(&ztoc.parse().unwrap()).unwrap());
    // Digests have equal length, so all sizes stay correct.
    let text = |digest: &str| {
        let (_, bytes) = elsewhere.manifest("in", digest).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    let image = text("2");
    let parsed: Value = serde_json::from_str(&image).unwrap();
    let index = parsed["manifests"][1]["digest"].as_str().unwrap();
    let forged = text(index).replace(&lied.to_string(), &layer.to_string());
    let image = image.replace(index, &Digest::sha256(forged.as_bytes()).to_string());
    registry.add_manifest("in", None, media_type::OCI_MANIFEST, forged.into_bytes());
    registry.add_manifest("in", Some(tag), media_type::OCI_INDEX, image.into_bytes());
    ztoc
}

#[test]
fn a_forged_ztoc_is_taken_over_only_from_an_image_that_is_trusted() {
    let good = layer(1, 200_000);
    let registry = with_image(Setup::default(), std::slice::from_ref(&good));
    let source = docker(&registry, "in:1");
    let honest = converted(&[], &source, &docker(&registry, "in:honest"));
    let forged = [forge(&registry, "soci", &good, layer(2, 200_000))];
    assert_ne!(ztocs(&honest), forged);
    let copy = docker(&registry, "in:soci");
    let trusting = converted(
        &["--reuse-from", &copy],
        &source,
        &docker(&registry, "in:t"),
    );
    assert_eq!(ztocs(&trusting), forged, "the forgery would fit");
    let ran = converted(&[], &source, &copy);
    assert_eq!(ztocs(&ran), ztocs(&honest));
    assert_eq!(
        tagged(&registry, "in", "soci"),
        tagged(&registry, "in", "honest")
    );
}

#[test]
fn an_image_with_nothing_to_index_is_copied_when_that_is_fine() {
    let layers = vec![layer(1, 500)];
    let from = with_image(Setup::default(), &layers);
    let to = TestRegistry::start();
    let (source, target) = (docker(&from, "in:1"), docker(&to, "out:2"));
    let ran = convert(SOME, &source, &target);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(tagged(&to, "out", "2"), None);
    let ran = converted(&[SOME, &["--allow-empty"]].concat(), &source, &target);
    assert!(
        ran.stdout.contains("the copy is the image as it is"),
        "{ran:?}"
    );
    assert_eq!(tagged(&to, "out", "2"), tagged(&from, "in", "1"));
}

#[test]
fn a_registry_that_lies_ends_in_an_error_and_no_tag() {
    let layers = layers();
    let big = digests(&layers)[0];
    let html = || Wrong::Status {
        code: 200,
        headers: vec![("content-type", "text/html".to_owned())],
        body: "<html>log in</html>".to_owned(),
    };
    let around = move |registry: &TestRegistry| Wrong::Status {
        code: 307,
        headers: vec![(
            "location",
            format!("http://{}/v2/in/blobs/{big}", registry.host()),
        )],
        body: String::new(),
    };
    type Script = dyn Fn(&TestRegistry) -> Fault;
    let cases: [(&str, Box<Script>, &str); 6] = [
        (
            "wrong bytes",
            Box::new(move |_| Fault::always(On::Blob(big), Wrong::Flip(1000))),
            "sha256:",
        ),
        (
            "another size",
            Box::new(move |_| Fault::always(On::Blob(big), Wrong::OtherTotal(1))),
            "bytes",
        ),
        (
            "a web page",
            Box::new(move |_| Fault::always(On::Manifest, html())),
            "in:1",
        ),
        (
            "redirect loop",
            Box::new(move |it| Fault::always(On::Blob(big), around(it))),
            "redirects",
        ),
        (
            "no blob",
            Box::new(move |_| Fault::always(On::Blob(big), Wrong::status(404))),
            "404",
        ),
        (
            "refused",
            Box::new(move |_| Fault::always(On::Manifest, Wrong::status(403))),
            "403",
        ),
    ];
    for (name, script, said) in cases {
        let from = with_image(Setup::default(), &layers);
        let to = TestRegistry::start();
        from.fault(script(&from));
        let ran = convert(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
        assert_eq!(ran.code, Some(1), "{name}: {ran:?}");
        assert!(ran.stderr.contains(said), "{name}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{name}: {ran:?}");
        assert_eq!(tagged(&to, "out", "2"), None, "{name}");
        assert!(
            !to.has_blob("out", &big) || name == "another size",
            "{name}"
        );
    }
}
