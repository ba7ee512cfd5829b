//! Images that registries and tools accept, and that differ from what most builders create.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use soci_oci::{Digest, media_type};
use soci_registry::testing::TestRegistry;

use crate::golden::stored_gzip;
use crate::site::{self, docker, layer, layout, publish};
use crate::soci::{Ran, blob, converted, index, one_layer_with, put, read_json, run};

/// Creates a layout with these layers, and changes its manifest and configuration. Returns the
/// digest of the manifest.
fn image(folder: &Path, layers: &[Vec<u8>], edit: impl FnOnce(&mut Value, &mut Value)) -> String {
    let mut manifest = read_json(&blob(folder, &layout(folder, layers)));
    let old = manifest["config"]["digest"].as_str().unwrap().to_owned();
    let mut config = read_json(&blob(folder, &old));
    edit(&mut manifest, &mut config);
    fs::remove_file(blob(folder, &old)).unwrap();
    let config = config.to_string();
    manifest["config"]["digest"] = json!(put(folder, config.as_bytes()));
    manifest["config"]["size"] = json!(config.len());
    let manifest = manifest.to_string();
    let digest = put(folder, manifest.as_bytes());
    let entry = json!({
        "mediaType": media_type::OCI_MANIFEST,
        "digest": digest,
        "size": manifest.len(),
        "platform": {"os": "linux", "architecture": "amd64"},
    });
    index(folder, &[entry]);
    digest
}

fn digest(layer: &[u8]) -> String {
    Digest::sha256(layer).to_string()
}

fn verify(flags: &[&str], image: &str) -> Ran {
    let words = ["verify"].into_iter().chain(flags.iter().copied());
    run(words.chain([image]))
}

/// An image with a foreign layer that it does not contain.
fn foreign(folder: &Path) -> (String, String) {
    let layers = [layer(1, 5000), layer(2, 5000)];
    let manifest = image(folder, &layers, |manifest, _| {
        let foreign = &mut manifest["layers"][0];
        foreign["mediaType"] = json!(media_type::DOCKER_FOREIGN_LAYER);
        foreign["urls"] = json!(["https://download.example/layer"]);
    });
    let foreign = digest(&layers[0]);
    fs::remove_file(blob(folder, &foreign)).unwrap();
    (manifest, foreign)
}

#[test]
fn a_foreign_layer_that_is_not_there_is_skipped_and_the_rest_converted() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (manifest, foreign) = foreign(&path("in"));
    let registry = TestRegistry::start();
    publish(&path("in"), &manifest, &registry, "in");
    let skipped = format!(
        "ztoc skipped - layer {foreign} ({}) is non-distributable and not stored with the image",
        media_type::DOCKER_FOREIGN_LAYER
    );
    let other = TestRegistry::start();
    let shown = |name: &str| path(name).display().to_string();
    for (from, to) in [
        (shown("in"), shown("out.tar")),
        (docker(&registry, "in:1"), docker(&registry, "in:2")),
        (docker(&registry, "in:1"), docker(&other, "out:2")),
        (docker(&registry, "in:1"), format!("oci:{}", shown("out"))),
    ] {
        let ran = site::converted(&["--all-platforms"], &from, &to);
        let lines: Vec<&str> = ran.stdout.lines().collect();
        assert_eq!(lines.len(), 2, "{to}: {ran:?}");
        assert_eq!(lines[0], skipped, "{to}");
        assert!(lines[1].contains(" -> ztoc "), "{to}: {ran:?}");
        let ran = verify(&["--deep"], &to);
        assert_eq!(ran.code, Some(0), "{to}: {ran:?}");
    }
}

#[test]
fn a_foreign_layer_that_is_there_is_indexed() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    image(&input, &[layer(1, 5000)], |manifest, _| {
        manifest["layers"][0]["mediaType"] = json!(media_type::DOCKER_FOREIGN_LAYER);
    });
    let ran = converted(&["--format", "oci-dir"], &input, &output);
    assert!(ran.stdout.contains(" -> ztoc "), "{ran:?}");
}

/// A change of the diff-IDs of a configuration.
type Change = fn(&mut Vec<Value>);

/// Changes of two diff-IDs: a name, and what `verify` and `verify --deep` find.
const CHANGES: &[(&str, Change, &str, &str)] = &[
    ("swapped", |ids| ids.swap(0, 1), "", "when unpacked; it is"),
    (
        "wrong",
        |ids| ids[1] = json!(digest(b"other")),
        "",
        "when unpacked; it is",
    ),
    (
        "fewer",
        |ids| ids.truncate(1),
        "has 1 diff-IDs, its manifest has 2 layers",
        "",
    ),
    (
        "more",
        |ids| ids.push(json!(digest(b"other"))),
        "has 3 diff-IDs, its manifest has 2 layers",
        "",
    ),
    (
        "none",
        Vec::clear,
        "has 0 diff-IDs, its manifest has 2 layers",
        "",
    ),
];

#[test]
fn diff_ids_are_counted_and_with_deep_compared() {
    for (name, change, counted, compared) in CHANGES {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in"), folder.path().join("out"));
        let layers = [layer(1, 5000), layer(2, 5000)];
        image(&input, &layers, |_, config| {
            let ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
            change(ids);
        });
        let input = input.display().to_string();
        let output = format!("oci:{}", output.display());
        let ran = site::converted(&[], &input, &output);
        let warns = ran.stderr.contains("diff-IDs");
        assert_eq!(warns, !counted.is_empty(), "{name}: {ran:?}");
        for (flags, wanted) in [(&[][..], *counted), (&["--deep"], compared)] {
            let wanted = if wanted.is_empty() { *counted } else { wanted };
            let ran = verify(flags, &output);
            assert!(ran.stdout.contains(wanted), "{name}: {ran:?}");
            let code = if wanted.is_empty() { 0 } else { 1 };
            assert_eq!(ran.code, Some(code), "{name}: {ran:?}");
        }
    }
}

#[test]
fn every_layer_with_a_wrong_diff_id_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    let layers = [layer(1, 5000), layer(2, 100)];
    image(&input, &layers, |_, config| {
        let ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
        ids.swap(0, 1);
    });
    // The second layer has no zTOC.
    let flags = ["--format", "oci-dir", "--min-layer-size", "4000"];
    converted(&flags, &input, &output);
    let ran = verify(&["--deep"], output.to_str().unwrap());
    let [one, two] = layers.map(|layer| digest(&layer));
    let found: Vec<&str> = ran
        .stdout
        .lines()
        .filter(|line| line.starts_with("config "))
        .collect();
    assert_eq!(found.len(), 2, "{ran:?}");
    let says = |layer: &str, stated: &str| {
        format!(": says that layer {layer} is {stated} when unpacked; it is {layer}")
    };
    assert!(
        found.iter().any(|line| line.ends_with(&says(&one, &two))),
        "{ran:?}"
    );
    assert!(
        found.iter().any(|line| line.ends_with(&says(&two, &one))),
        "{ran:?}"
    );
}

#[test]
fn a_gzip_layer_is_compared_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    let archive = layer(1, 200_000);
    let gzip = stored_gzip(&archive);
    for (diff_id, code) in [(&archive, 0), (&gzip, 1)] {
        one_layer_with(&input, &gzip, true, &digest(diff_id));
        converted(&["--format", "oci-dir"], &input, &output);
        let ran = verify(&["--deep"], output.to_str().unwrap());
        assert_eq!(ran.code, Some(code), "{ran:?}");
    }
}

#[test]
fn a_member_that_is_not_gzip_after_the_archive_cannot_be_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    let archive = layer(1, 200_000);
    let mut gzip = stored_gzip(&archive);
    let at = gzip.len();
    // An empty zlib stream. The search for checkpoints accepts it.
    gzip.extend(b"\x78\x01\x03\0\0\0\0\x01");
    one_layer_with(&input, &gzip, true, &digest(&archive));
    converted(&["--format", "oci-dir"], &input, &output);
    let ran = verify(&["--deep"], output.to_str().unwrap());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("cannot be unpacked"), "{ran:?}");
    assert!(ran.stdout.contains(&at.to_string()), "{ran:?}");
}

#[test]
fn a_configuration_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    let digest = image(&input, &[layer(1, 5000)], |_, _| {});
    let registry = TestRegistry::start();
    let manifest = read_json(&blob(&input, &digest));
    let config = manifest["config"]["digest"].as_str().unwrap();
    fs::remove_file(blob(&input, config)).unwrap();
    publish(&input, &digest, &registry, "in");
    let output = folder.path().join("out.tar");
    let output = output.display().to_string();
    let named = format!("config {config} of manifest {digest}: not found");
    let other = docker(&registry, "in:2");
    for (from, to, wanted) in [
        (input.display().to_string(), &output, &named),
        (docker(&registry, "in:1"), &other, &named),
        (docker(&registry, "in:1"), &output, &named),
    ] {
        let ran = site::convert(&["--platform", "linux/amd64"], &from, to);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains(config), "{ran:?}");
        assert!(ran.stderr.contains(wanted), "{ran:?}");
        assert!(!folder.path().join("out.tar").exists());
    }
    let ran = verify(&["--plain-http"], &docker(&registry, "in:1"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let named =
        format!("config {config}: not found; it is the image configuration of manifest {digest}");
    assert!(ran.stdout.contains(&named), "{ran:?}");
}
