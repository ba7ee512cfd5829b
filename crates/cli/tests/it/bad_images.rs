//! Damaged and malicious images: each is rejected with exit code 1 and one line that names the
//! problem, and nothing else changes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use soci_oci::Digest;

use crate::golden::stored_gzip;
use crate::soci::{Ran, blob, command, index, member, names, one_layer, put, read_json, tar};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const GIGABYTE: u64 = 1 << 30;

/// Creates an image in a layout directory.
type Image = fn(&Path);

fn archive() -> Vec<u8> {
    tar(&[
        member("first", b'0', "", &[7; 3000]),
        member("second", b'0', "", b"x"),
    ])
}

/// The digests of an image's manifest and of its only layer.
fn digests(layout: &Path) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let manifest = text(&read_json(&layout.join("index.json"))["manifests"][0]["digest"]);
    let layer = text(&read_json(&blob(layout, &manifest))["layers"][0]["digest"]);
    (manifest, layer)
}

/// Changes the manifest, and updates the index.
fn edit_manifest(layout: &Path, edit: impl FnOnce(&mut Value)) {
    let (digest, _) = digests(layout);
    let mut manifest = read_json(&blob(layout, &digest));
    edit(&mut manifest);
    let bytes = manifest.to_string().into_bytes();
    let entry = json!({"mediaType": MANIFEST, "digest": put(layout, &bytes), "size": bytes.len()});
    index(layout, &[entry]);
}

/// Replaces the layers, and the diff-IDs with the digests of the layers.
fn set_layers(layout: &Path, layers: &[Value]) {
    edit_manifest(layout, |it| {
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string();
        it["config"]["digest"] = json!(put(layout, config.as_bytes()));
        it["config"]["size"] = json!(config.len());
        it["layers"] = json!(layers);
    });
}

fn with_layer(layout: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut layer = stored_gzip(&archive());
    change(&mut layer);
    one_layer(layout, &layer, true);
}

fn broken_header(layout: &Path) {
    let mut layer = archive();
    // The checksum of the second header, which follows one header and six blocks.
    layer[7 * 512 + 148..7 * 512 + 156].fill(b'9');
    one_layer(layout, &layer, false);
}

fn wrong_layer_size(layout: &Path) {
    one_layer(layout, &archive(), false);
    edit_manifest(layout, |it| it["layers"][0]["size"] = json!(4711));
}

fn other_layer(layout: &Path) {
    one_layer(layout, &archive(), false);
    let (_, layer) = digests(layout);
    let mut bytes = archive();
    bytes[1000] ^= 1;
    fs::write(blob(layout, &layer), bytes).unwrap();
}

fn other_manifest(layout: &Path) {
    one_layer(layout, &archive(), false);
    let (manifest, _) = digests(layout);
    fs::write(blob(layout, &manifest), "{}").unwrap();
}

fn no_layers(layout: &Path) {
    one_layer(layout, &archive(), false);
    let missing = |number: u32| {
        let digest = Digest::sha256(&number.to_le_bytes()).to_string();
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": 9})
    };
    let layers: Vec<Value> = (0..10_000).map(missing).collect();
    set_layers(layout, &layers);
}

/// A sparse file of one gigabyte.
fn huge(path: &Path) {
    let file = fs::File::create(path).unwrap();
    file.set_len(GIGABYTE).unwrap();
}

fn huge_manifest(layout: &Path) {
    one_layer(layout, &archive(), false);
    let digest = put(layout, b"huge");
    huge(&blob(layout, &digest));
    let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": GIGABYTE});
    index(layout, &[entry]);
}

fn huge_index(layout: &Path) {
    one_layer(layout, &archive(), false);
    huge(&layout.join("index.json"));
}

fn link_out(layout: &Path) {
    one_layer(layout, &archive(), false);
    let (_, layer) = digests(layout);
    fs::remove_file(blob(layout, &layer)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", blob(layout, &layer)).unwrap();
}

fn link_to_itself(layout: &Path) {
    one_layer(layout, &archive(), false);
    let (_, layer) = digests(layout);
    fs::remove_file(blob(layout, &layer)).unwrap();
    std::os::unix::fs::symlink("self", blob(layout, &layer)).unwrap();
    std::os::unix::fs::symlink("self", layout.join("blobs/sha256/self")).unwrap();
}

fn pipe(layout: &Path) {
    one_layer(layout, &archive(), false);
    let (_, layer) = digests(layout);
    fs::remove_file(blob(layout, &layer)).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(blob(layout, &layer))
        .status();
    assert!(made.unwrap().success());
}

/// The problem, the image, and the expected message.
const IMAGES: &[(&str, Image, &str)] = &[
    (
        "a broken tar",
        broken_header,
        "archive/tar: invalid tar header",
    ),
    (
        "a truncated gzip",
        |it| with_layer(it, |layer| layer.truncate(2000)),
        "gzip error: -3",
    ),
    (
        "a gzip that lost its end",
        |it| with_layer(it, |layer| layer.truncate(layer.len() - 4)),
        "gzip error: -3",
    ),
    (
        "bytes behind the gzip",
        |it| with_layer(it, |layer| layer.extend([0; 512])),
        "gzip error: -3",
    ),
    (
        "a flipped bit in the gzip",
        |it| with_layer(it, |layer| layer[700] ^= 4),
        "gzip error: -3",
    ),
    (
        "an empty layer that says gzip",
        |it| with_layer(it, Vec::clear),
        "gzip error: -3",
    ),
    ("a layer of another size", wrong_layer_size, "4711"),
    ("another layer", other_layer, "digest mismatch"),
    ("another manifest", other_manifest, "digest mismatch"),
    (
        "ten thousand layers that are not there",
        no_layers,
        "not found",
    ),
    (
        "a manifest of a gigabyte",
        huge_manifest,
        "may be read at once",
    ),
    ("an index of a gigabyte", huge_index, "index.json"),
    (
        "a link to a file of the machine",
        link_out,
        "leads out of the layout, to /etc/passwd; --follow-links allows that",
    ),
    ("a link to itself", link_to_itself, "symbolic links"),
    ("a pipe instead of a layer", pipe, "not found"),
];

const OUTPUTS: [(&str, &str); 4] = [
    ("oci-archive", "new.tar"),
    ("oci-archive", "old.tar"),
    ("oci-dir", "new"),
    ("oci-dir", "old"),
];

fn convert(folder: &Path, format: &str, output: &str) -> Ran {
    let path = |name: &str| folder.join(name);
    let output = command()
        .env("TMPDIR", path("tmp"))
        .args([
            "convert",
            "--standalone",
            "--min-layer-size=0",
            "--format",
            format,
        ])
        .args([path("in"), path(output)])
        .output()
        .unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn bad_images_are_refused_and_leave_everything_as_it_was() {
    let mut wrong = Vec::new();
    for (what, make, said) in IMAGES {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        make(&path("in"));
        fs::create_dir(path("tmp")).unwrap();
        fs::write(path("old.tar"), "old").unwrap();
        one_layer(&path("old"), &archive(), false);
        let before = names(&path("old/blobs/sha256"));
        for (format, output) in OUTPUTS {
            let started = Instant::now();
            let ran = convert(folder.path(), format, output);
            let is_refused = ran.code == Some(1)
                && ran.stdout.is_empty()
                && ran.stderr.starts_with("soci: ")
                && ran.stderr.contains(said)
                && ran.stderr.len() < 20 << 10
                && ran.stderr.lines().count() == 1
                && started.elapsed() < Duration::from_secs(20);
            let is_untouched = names(folder.path()) == ["in", "old", "old.tar", "tmp"]
                && fs::read(path("old.tar")).unwrap() == b"old"
                && names(&path("old/blobs/sha256")) == before
                && names(&path("tmp")).is_empty();
            if !is_refused || !is_untouched {
                wrong.push(format!("{what}, {output}: {ran:.300?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn ten_thousand_layers_that_are_there_are_no_reason_to_refuse() {
    let folder = tempfile::tempdir().unwrap();
    one_layer(&folder.path().join("in"), &archive(), false);
    let layer = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": Digest::sha256(&archive()).to_string(),
        "size": archive().len(),
    });
    set_layers(&folder.path().join("in"), &vec![layer; 10_000]);
    fs::create_dir(folder.path().join("tmp")).unwrap();
    let ran = convert(folder.path(), "oci-archive", "out.tar");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(ran.stdout.lines().count(), 10_000);
}
