//! Conversion with registries that answer in unusual but valid ways.

use std::fs;

use serde_json::json;
use soci_oci::Digest;
use soci_oci::digest::Verifier;
use soci_registry::testing::{Fault, On, TestRegistry, Wrong};

use crate::site::{self, converted, docker, layer, layout, publish};
use crate::soci::{blob, read_json, run};

/// A registry with an image of one layer as `in:1`.
fn registry(layer: &[u8]) -> TestRegistry {
    let registry = TestRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let manifest = layout(folder.path(), &[layer.to_vec()]);
    publish(folder.path(), &manifest, &registry, "in");
    registry
}

fn is_well(image: &str) {
    let ran = run(["verify", "--deep", image]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn a_whole_layer_without_a_length_that_ends_early_is_gone_on_with() {
    let layer = layer(1, 1 << 20);
    let (from, to) = (registry(&layer), TestRegistry::start());
    let digest = Digest::sha256(&layer);
    let short = Wrong::WholeWithoutLength(300_000);
    from.fault(Fault::always(On::Blob(digest), short).times(3));
    converted(&[], &docker(&from, "in:1"), &docker(&to, "out:2"));
    assert!(to.has_blob("out", &digest));
    is_well(&docker(&to, "out:2"));
}

#[test]
fn answers_to_head_need_no_headers() {
    let (from, to) = (registry(&layer(1, 5000)), TestRegistry::start());
    for site in [&from, &to] {
        site.fault(Fault::always(On::Head(String::new()), Wrong::Bare));
    }
    for _ in 0..2 {
        converted(&[], &docker(&from, "in:1"), &docker(&to, "out:2"));
        converted(&[], &docker(&from, "in:1"), &docker(&from, "in:2"));
    }
    is_well(&docker(&to, "out:2"));
    is_well(&docker(&from, "in:2"));
}

#[test]
fn layers_may_have_sha512_digests() {
    let layer = layer(1, 5000);
    let registry = TestRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let manifest = layout(&path("in"), std::slice::from_ref(&layer));
    let mut manifest = read_json(&blob(&path("in"), &manifest));
    let none: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    let mut hash = Verifier::new(none);
    hash.update(&layer);
    let digest = *hash.finish().unwrap_err().actual;
    manifest["layers"][0]["digest"] = json!(digest.to_string());
    fs::write(path("layer"), &layer).unwrap();
    registry.add_file("in", &digest, &path("layer"));
    let config = manifest["config"]["digest"].as_str().unwrap();
    registry.add_blob("in", fs::read(blob(&path("in"), config)).unwrap());
    let media_type = manifest["mediaType"].as_str().unwrap();
    registry.add_manifest("in", Some("1"), media_type, manifest.to_string());
    let out = format!("oci:{}", path("out").display());
    let archive = format!("oci-archive:{}", path("out.tar").display());
    for to in [
        docker(&registry, "in:2"),
        docker(&registry, "other:2"),
        out,
        archive,
    ] {
        let ran = site::converted(&[], &docker(&registry, "in:1"), &to);
        let line = format!("layer {digest} -> ztoc ");
        assert!(ran.stdout.starts_with(&line), "{to}: {ran:?}");
        is_well(&to);
    }
}

#[test]
fn requests_are_shown_to_those_who_debug() {
    let registry = registry(&layer(1, 5000));
    let image = docker(&registry, "in:1");
    let url = format!("http req GET http://{}/v2/in/manifests/1", registry.host());
    let plain = converted(&[], &image, &docker(&registry, "in:2"));
    assert_eq!(plain.stderr, "");
    let shown = converted(&["--debug"], &image, &docker(&registry, "in:2"));
    assert_eq!(shown.stdout, plain.stdout);
    let mut lines = shown.stderr.lines();
    assert!(lines.any(|line| line == url), "{shown:?}");
    assert!(shown.stderr.contains("http res 200 OK"), "{shown:?}");
}
