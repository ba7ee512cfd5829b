//! The output of create and convert during and after a build: lines, JSON, exit codes, and
//! progress.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use soci_oci::Digest;

use crate::soci::{Ran, blob, convert, index, member, put, read_json, run, tar};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Creates an image of these layers and returns their digests.
pub(crate) fn image(layout: &Path, layers: &[(&str, &[u8])]) -> Vec<String> {
    let descriptor = |media_type: &str, bytes: &[u8]| {
        let digest = put(layout, bytes);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let layers: Vec<Value> = layers.iter().map(|it| descriptor(it.0, it.1)).collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|it| &it["digest"]).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string();
    let config = descriptor(
        "application/vnd.oci.image.config.v1+json",
        config.as_bytes(),
    );
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers,
    });
    let manifest = descriptor(manifest_type, manifest.to_string().as_bytes());
    index(layout, &[manifest]);
    let digests = layers
        .iter()
        .map(|it| it["digest"].as_str().unwrap().to_owned());
    digests.collect()
}

fn plain(name: &str) -> Vec<u8> {
    tar(&[member(name, b'0', "", b"content")])
}

/// An archive with a global PAX header, which no zTOC can describe.
fn odd() -> Vec<u8> {
    tar(&[member("pax", b'g', "", b"17 comment=hello\n")])
}

fn refused(ran: &Ran, code: i32) -> &str {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    let text = ran.stderr.strip_prefix("soci: ").unwrap();
    text.strip_suffix('\n').unwrap()
}

#[test]
fn create_checks_in_the_documented_order_before_it_needs_containerd() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let nowhere = [
        "--root",
        root,
        "--address",
        "/none.sock",
        "--timeout",
        "50ms",
    ];
    let no_connection = "context deadline exceeded while waiting for connections to become ready: context deadline exceeded";
    for (words, message) in [
        (&[][..], "source image needs to be specified"),
        (&["--span-size=-1"], "source image needs to be specified"),
        (
            &["--optimizations", "xattr,fast", "--span-size=-1", "a"],
            "optimization fast is not a valid optimization [xattr]",
        ),
        // Other options are checked only after the image is found.
        (&["--span-size=-1", "-p", "linux/*", "a"], no_connection),
        (&["--prefetch-files-json=/none", "a"], no_connection),
    ] {
        let ran = run(nowhere.iter().chain(&["create"]).chain(words));
        assert_eq!(refused(&ran, 1), message, "{words:?}");
        assert_eq!(ran.stdout, "", "{words:?}");
    }
}

#[test]
fn lists_of_files_to_prefetch_are_refused_by_what_is_wrong_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"), &[(TAR, &plain("a"))]);
    let start = "failed to parse prefetch files: failed to load prefetch files from JSON: ";
    let flag = |name: &str| format!("--prefetch-files-json={}", path(name).display());
    let ran = convert(&[&flag("none")], &path("in"), &path("out"));
    let expected = format!(
        "{start}failed to read JSON file: open {}: no such file or directory",
        path("none").display()
    );
    assert_eq!(refused(&ran, 1), expected);
    for text in ["{}", "[1]", "", "[\"a\""] {
        fs::write(path("list"), text).unwrap();
        let ran = convert(&[&flag("list")], &path("in"), &path("out"));
        let said = refused(&ran, 1);
        assert!(
            said.starts_with(&format!("{start}failed to parse JSON: ")),
            "{said}"
        );
    }
    assert!(!path("out").exists());
}

#[test]
fn files_to_prefetch_come_from_flags_and_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let layers = image(&path("in"), &[(TAR, &plain("a")), (TAR, &plain("b"))]);
    fs::write(path("list"), r#"["/b", " ", "../c"]"#).unwrap();
    let list = format!("--prefetch-files-json={}", path("list").display());
    let flags = ["--format=oci-dir", "--prefetch-file= /a ,, d", &list];
    let ran = convert(&flags, &path("in"), &path("out"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let artifact = r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":0}]}"#;
    let digest = Digest::sha256(artifact.as_bytes());
    let created = |layer| format!("Created prefetch artifact for layer {layer}: {digest}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[2..], [created(&layers[0]), created(&layers[1])]);
    let warnings: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(warnings.len(), 2, "{ran:?}");
    for (line, name) in warnings.iter().zip(["d", "c"]) {
        let end = format!(" level=warning msg=\"prefetch file {name} not found in any layer\"");
        assert!(
            line.starts_with("time=\"20") && line.ends_with(&end),
            "{line}"
        );
    }
    let stored = blob(&path("out"), &digest.to_string());
    assert_eq!(fs::read_to_string(stored).unwrap(), artifact);
}

#[test]
fn an_object_in_the_end_says_what_became_of_every_layer() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (indexed, unknown) = (plain("a"), odd());
    let layers = image(
        &path("in"),
        &[
            (TAR, &indexed),
            (ZSTD, b"zstd"),
            (TAR, &unknown),
            (TAR, &indexed),
        ],
    );
    let ran = convert(&["--json", "--format=oci-dir"], &path("in"), &path("out"));
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let mut report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(report["seconds"].as_f64().unwrap() >= 0.0);
    report["seconds"] = json!(0);
    let image = read_json(&path("out/index.json"))["manifests"][0].clone();
    let members = read_json(&blob(&path("out"), image["digest"].as_str().unwrap()));
    let soci = &members["manifests"][1];
    let ztoc = &read_json(&blob(&path("out"), soci["digest"].as_str().unwrap()))["layers"][0];
    let source = &read_json(&path("in/index.json"))["manifests"][0]["digest"];
    let platform = report["platforms"][0].as_object_mut().unwrap();
    let rows = platform.insert("layers".into(), Value::Null).unwrap();
    let expected = json!({
        "schema_version": 1,
        "source": path("in"),
        "destination": path("out"),
        "digest": image["digest"],
        "size": image["size"],
        "platforms": [{
            "platform": "linux/amd64",
            "manifest": source,
            "converted_manifest": members["manifests"][0]["digest"],
            "index": {"digest": soci["digest"], "size": soci["size"]},
            "layers": null,
            "prefetch": [],
        }],
        "bytes": indexed.len(),
        "seconds": 0,
    });
    assert_eq!(report, expected);
    let row = |outcome: &str, number: usize| {
        let row = &rows[number];
        assert_eq!(row["outcome"], outcome);
        assert_eq!(row["digest"], *layers[number]);
        row
    };
    let ztoc = json!({"digest": ztoc["digest"], "size": ztoc["size"]});
    assert_eq!(row("built", 0)["ztoc"], ztoc);
    let reason =
        "is compressed in an unsupported format. expect: [tar, gzip, unknown] but got \"zstd\"";
    assert_eq!(row("skipped", 1)["reason"], reason);
    assert_eq!(row("skipped", 1)["media_type"], ZSTD);
    let reason = row("skipped", 2)["reason"].as_str().unwrap();
    assert!(reason.starts_with("cannot have a ztoc: unsupported input tar entry 'g'"));
    assert_eq!(row("reused", 3)["ztoc"], ztoc);
}

#[test]
fn strict_exits_with_4_where_a_layer_worth_a_ztoc_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let strict = |output: &str| convert(&["--strict"], &path("in"), &path(output));

    let layers = image(&path("in"), &[(TAR, &plain("a")), (ZSTD, b"zstd")]);
    let ran = strict("some.tar");
    let said = refused(&ran, 4);
    let start = format!(
        "1 layer was left without a ztoc: layer {} is compressed",
        layers[1]
    );
    assert!(said.starts_with(&start), "{said}");
    // The image is written nevertheless, and the lines are printed.
    assert!(path("some.tar").is_file());
    assert_eq!(ran.stdout.lines().count(), 2);

    // No zTOC at all: the error is the same, and the exit code gives the reason.
    image(&path("in"), &[(ZSTD, b"zstd")]);
    let nothing = "no ztocs created, all layers either skipped or produced errors";
    assert_eq!(refused(&strict("none.tar"), 4), nothing);
    image(&path("in"), &[(TAR, &odd())]);
    assert!(refused(&strict("none.tar"), 4).starts_with("errors encountered"));

    // Layers below the minimum size need no zTOC, unlike damaged ones.
    image(&path("in"), &[(TAR, &plain("a"))]);
    let flags = ["--strict", "--min-layer-size=10000"];
    let ran = convert(&flags, &path("in"), &path("none.tar"));
    assert_eq!(refused(&ran, 1), nothing);
    image(&path("in"), &[(ZSTD, b"zstd"), (TAR, b"no tar")]);
    refused(&strict("none.tar"), 1);
    assert!(!path("none.tar").exists());
    image(&path("in"), &[(TAR, &plain("a"))]);
    assert_eq!(strict("all.tar").code, Some(0));
}

#[test]
fn an_image_with_nothing_to_index_is_copied_where_that_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"), &[(TAR, &plain("a"))]);
    let flags = ["--min-layer-size=10000", "--format=oci-dir"];
    let ran = convert(&flags, &path("in"), &path("out"));
    assert_eq!(ran.code, Some(1));
    let allowed = [&flags[..], &["--allow-empty"]].concat();
    let ran = convert(&allowed, &path("in"), &path("out"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.starts_with("ztoc skipped - layer "), "{ran:?}");
    let digest = |name: &str| read_json(&path(name))["manifests"][0]["digest"].clone();
    assert_eq!(digest("out/index.json"), digest("in/index.json"));
}

#[test]
fn a_span_size_of_zero_is_refused_for_a_plain_layer() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let layers = image(&path("in"), &[(TAR, &plain("a"))]);
    let ran = convert(&["--span-size=0"], &path("in"), &path("out.tar"));
    let expected = format!(
        "errors encountered while building soci layers; layer {} is not compressed: span size must be > 0",
        layers[0]
    );
    assert_eq!(refused(&ran, 1), expected);
}

#[test]
fn progress_is_told_where_it_is_asked_for_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let layers = image(&path("in"), &[(TAR, &plain("a"))]);
    for kind in ["auto", "none"] {
        let ran = convert(&["--progress", kind], &path("in"), &path("out.tar"));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    }
    let ran = convert(&["--progress=plain"], &path("in"), &path("out.tar"));
    let short = &layers[0]["sha256:".len()..][..12];
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 4, "{ran:?}");
    assert_eq!(lines[0], format!("{short}: indexing, 2.00 KiB"));
    assert_eq!(lines[1], format!("{short}: storing, 2.00 KiB"));
    assert!(
        lines[2].starts_with(&format!("{short}: done in ")),
        "{ran:?}"
    );
    let summary = "1 layers indexed, 0 taken over, 0 without a ztoc; 2.00 KiB in ";
    assert!(lines[3].starts_with(summary), "{ran:?}");
}

/// Runs with a pseudoterminal as standard error, created by `script`.
#[test]
fn a_terminal_shows_bars_and_keeps_results_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"), &[(TAR, &plain("a"))]);
    let soci = format!(
        "{} convert --standalone --min-layer-size=0 {} {} >{}",
        env!("CARGO_BIN_EXE_soci"),
        path("in").display(),
        path("out.tar").display(),
        path("stdout").display()
    );
    let output = Command::new("script")
        .args(["-qec", &soci, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let screen = String::from_utf8(output.stdout).unwrap();
    assert!(
        screen.contains("1 layers indexed, 0 taken over"),
        "{screen:?}"
    );
    let results = fs::read_to_string(path("stdout")).unwrap();
    assert!(results.starts_with("layer sha256:") && results.lines().count() == 1);
}
