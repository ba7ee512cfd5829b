//! `soci verify` accepts valid images and reports each kind of damage.

mod damages;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use soci_oci::Digest;

use crate::soci::{
    Ran, blob, converted, member, one_layer, packed_layer, put, read_json, run, tar,
};

use damages::DAMAGES;

fn layers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/layers")
}

fn verify(flags: &[&str], image: &Path) -> Ran {
    let words = ["verify"].iter().chain(flags).map(AsRef::as_ref);
    run(words.chain([image.as_os_str()]))
}

/// Replaces a blob and updates everything that refers to it.
fn replace(layout: &Path, old: &str, bytes: &[u8]) -> String {
    let size = |bytes: &[u8]| format!(",\"size\":{}", bytes.len());
    let before = fs::read(blob(layout, old)).unwrap();
    let new = put(layout, bytes);
    if new != old {
        fs::remove_file(blob(layout, old)).unwrap();
    }
    let rewritten = |text: &str| {
        let named = |digest: &str| format!("\"digest\":\"{digest}\"");
        let text = text.replace(
            &(named(old) + &size(&before)),
            &(named(&new) + &size(bytes)),
        );
        text.replace(old, &new)
    };
    for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let digest = format!("sha256:{name}");
        let Ok(text) = fs::read_to_string(blob(layout, &digest)) else {
            continue;
        };
        if text.starts_with('{') && text.contains(old) {
            replace(layout, &digest, rewritten(&text).as_bytes());
        }
    }
    let index = layout.join("index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(index, rewritten(&text)).unwrap();
    new
}

/// The digests of a converted layout of one layer.
struct Image {
    layout: PathBuf,
    index: String,
    manifest: String,
    soci: String,
    ztoc: String,
    layer: String,
}

impl Image {
    fn of(layout: &Path) -> Self {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let index = text(&read_json(&layout.join("index.json"))["manifests"][0]["digest"]);
        let members = read_json(&blob(layout, &index));
        let manifest = text(&members["manifests"][0]["digest"]);
        let soci = text(&members["manifests"][1]["digest"]);
        let blobs = read_json(&blob(layout, &soci));
        let layer = text(&read_json(&blob(layout, &manifest))["layers"][0]["digest"]);
        Self {
            layout: layout.to_owned(),
            index,
            manifest,
            soci,
            ztoc: text(&blobs["layers"][0]["digest"]),
            layer,
        }
    }

    fn read(&self, digest: &str) -> Vec<u8> {
        fs::read(blob(&self.layout, digest)).unwrap()
    }

    /// Changes only the bytes of a blob.
    fn damage(&self, digest: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = self.read(digest);
        change(&mut bytes);
        fs::write(blob(&self.layout, digest), bytes).unwrap();
    }

    /// Changes a blob and updates everything that refers to it.
    fn change(&self, digest: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = self.read(digest);
        change(&mut bytes);
        replace(&self.layout, digest, &bytes);
    }

    /// Edits a document and updates everything that refers to it.
    fn edit(&self, digest: &str, from: &str, to: &str) {
        self.change(digest, |bytes| {
            let text = std::str::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{from} in {text}");
            *bytes = text.replacen(from, to, 1).into_bytes();
        });
    }
}

/// Makes one change.
type Damage = fn(&Image);

fn flip(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 0x40;
}

/// Renames an entry. The zTOC has its name in a string, and perhaps in windows.
fn rename(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let length = u32::try_from(from.len()).unwrap().to_le_bytes();
    let string = [&length[..], from].concat();
    let mut windows = bytes.windows(string.len());
    let at = windows.position(|window| window == string).unwrap() + 4;
    bytes[at..at + to.len()].copy_from_slice(to);
}

/// A converted image of one layer with a few spans.
fn image(folder: &Path) -> Image {
    let (input, output) = (folder.join("in"), folder.join("out"));
    let layer = fs::read(layers().join("t-z6.gz")).unwrap();
    packed_layer(&input, &layer, true);
    let flags = ["--format", "oci-dir", "--span-size", "20000"];
    converted(&flags, &input, &output);
    Image::of(&output)
}

#[test]
fn every_image_that_was_converted_is_well() {
    let expected = read_json(&layers().join("expected.json"));
    let mut checked = 0;
    for (key, row) in expected.as_object().unwrap() {
        let (file, span_size) = key.split_once('@').unwrap();
        if row["rc"] != 0 {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in"), folder.path().join("out.tar"));
        let layer = fs::read(layers().join(file)).unwrap();
        packed_layer(&input, &layer, file.ends_with("gz"));
        converted(&["--span-size", span_size], &input, &output);
        let ran = verify(&["--deep"], &output);
        assert_eq!(
            (ran.code, ran.stderr.as_str()),
            (Some(0), ""),
            "{key}: {ran:?}"
        );
        let said = "checked 1 manifest, 1 SOCI index, 1 zTOC of 1 layer, read ";
        assert!(ran.stdout.starts_with(said), "{key}: {ran:?}");
        assert!(
            ran.stdout.ends_with(": no problems found\n"),
            "{key}: {ran:?}"
        );
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn each_damage_is_found() {
    for (what, damage, parts) in DAMAGES {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        damage(&image);
        let ran = verify(&[], &image.layout);
        assert_eq!(ran.code, Some(1), "{what}: {ran:?}");
        for part in *parts {
            assert!(ran.stdout.contains(part), "{what}: {part} in {ran:?}");
        }
        assert!(
            ran.stderr.starts_with("soci: ") && ran.stderr.ends_with("found\n"),
            "{ran:?}"
        );
    }
}

#[test]
fn prefetch_artifacts_are_checked() {
    for (artifact, said) in [
        (
            r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":1}]}"#,
            "",
        ),
        (
            r#"{"version":"2.0","prefetch_spans":[{"start_span":0,"end_span":1}]}"#,
            "unsupported prefetch artifact version: 2.0",
        ),
        (
            r#"{"version":"1.0","prefetch_spans":[]}"#,
            "prefetch artifact is empty",
        ),
        (
            r#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":1}]}"#,
            "range of spans from 3 to 1",
        ),
        (
            r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":999}]}"#,
            "asks for spans 0 to 999, the layer has ",
        ),
        ("text", "is no prefetch artifact"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let digest = put(&image.layout, artifact.as_bytes());
        let entry = format!(
            r#",{{"mediaType":"application/vnd.amazon.soci.prefetch.v1+json","digest":"{digest}","size":{},"annotations":{{"com.amazon.soci.image-layer-digest":"{}"}}}}],"annotations""#,
            artifact.len(),
            image.layer
        );
        image.edit(&image.soci, r#"],"annotations""#, &entry);
        let ran = verify(&[], &image.layout);
        assert_eq!(
            ran.code,
            Some(i32::from(!said.is_empty())),
            "{artifact}: {ran:?}"
        );
        assert!(
            ran.stdout.contains(said) && ran.stdout.contains(", 1 prefetch artifact"),
            "{ran:?}"
        );
    }
}

#[test]
fn what_only_the_layer_can_tell_is_found_when_it_is_read() {
    let rows: &[(&str, Damage, &[&str])] = &[
        (
            "bytes of the layer",
            |it| it.damage(&it.layer, |b| flip(b, 5000)),
            &[
                "layer ",
                "its bytes have the digest",
                "span 0 of the layer is",
            ],
        ),
        (
            "a span's digest",
            |it| it.change(&it.ztoc, |b| change_hex(b)),
            &["zTOC ", "span 0 of the layer is", "the zTOC says"],
        ),
        (
            "a window",
            |it| it.change(&it.ztoc, |b| change_window(b)),
            &["zTOC ", "the checkpoint of span "],
        ),
    ];
    for (what, damage, parts) in rows {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        damage(&image);
        let ran = verify(&[], &image.layout);
        assert_eq!(ran.code, Some(0), "{what}: {ran:?}");
        let ran = verify(&["--deep"], &image.layout);
        assert_eq!(ran.code, Some(1), "{what}: {ran:?}");
        for part in *parts {
            assert!(ran.stdout.contains(part), "{what}: {part} in {ran:?}");
        }
    }
}

/// Changes the digest of the first span, which is written last.
fn change_hex(bytes: &mut [u8]) {
    let mut windows = bytes.windows(7);
    let at = windows.rposition(|window| window == b"sha256:").unwrap();
    let digit = &mut bytes[at + 20];
    *digit = if *digit == b'0' { b'1' } else { b'0' };
}

/// Changes a byte in the middle of the checkpoints.
fn change_window(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    let at = (middle..).find(|&at| bytes[at] != 0).unwrap();
    flip(bytes, at);
}

#[test]
fn an_entry_that_the_layer_has_otherwise_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    let layer = tar(&[
        member("first", b'0', "", b"1"),
        member("second", b'0', "", b"2"),
    ]);
    one_layer(&input, &layer, false);
    converted(&["--format", "oci-dir"], &input, &output);
    let image = Image::of(&output);
    image.change(&image.ztoc, |bytes| rename(bytes, b"second", b"SECOND"));
    assert_eq!(verify(&[], &output).code, Some(0));
    let ran = verify(&["--deep"], &output);
    assert_eq!(ran.code, Some(1));
    let said = "entry 1, \"SECOND\": tar header and zTOC disagree about the name\n";
    assert!(ran.stdout.contains(said), "{ran:?}");
}

#[test]
fn machines_get_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let ran = verify(&["--json", "--deep"], &image.layout);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (ran.code, &report["ok"], &report["digest"]),
        (Some(0), &true.into(), &image.index.clone().into())
    );
    assert_eq!(report["checked"]["ztocs"], 1);
    assert_eq!(report["checked"]["bytes"], image.read(&image.layer).len());
    fs::remove_file(blob(&image.layout, &image.ztoc)).unwrap();
    let ran = verify(&["--json"], &image.layout);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ran.code, Some(1));
    assert_eq!(report["problems"][0]["part"], "zTOC");
    assert_eq!(report["problems"][0]["problem"], "not found");
}

#[test]
fn an_image_without_an_index_is_not_well() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    one_layer(&input, &tar(&[member("f", b'0', "", b"x")]), false);
    let ran = verify(&[], &input);
    let manifest = read_json(&input.join("index.json"))["manifests"][0]["digest"].clone();
    let manifest: Digest = manifest.as_str().unwrap().parse().unwrap();
    let expected = Ran {
        code: Some(1),
        stdout: format!(
            "manifest {manifest}: no SOCI index belongs to it\nchecked 1 manifest, 0 SOCI indexes, 0 zTOCs of 1 layer: 1 problem\n"
        ),
        stderr: format!("soci: {}: 1 problem found\n", input.display()),
    };
    assert_eq!(ran, expected);
    let ran = run(["verify"]);
    assert_eq!(ran.stderr, "soci: please provide an image to verify\n");
}
