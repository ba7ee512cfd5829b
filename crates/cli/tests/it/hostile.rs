//! Malicious input.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::soci::{
    blob, convert, converted, member, names, one_layer, read_json, run, tar, tar_of,
};

fn image(layout: &Path) {
    one_layer(layout, &tar(&[member("f", b'0', "", b"content")]), false);
}

#[test]
fn members_of_an_archive_stay_inside_the_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    fs::write(path("secret"), "secret").unwrap();
    let good = tar_of(&path("in"));
    let mut archive = Vec::new();
    for (name, kind, link) in [
        ("../escaped", b'0', ""),
        ("blobs/../../escaped", b'0', ""),
        ("extra", b'2', "../secret"),
        ("extra/through", b'0', ""),
        ("dir", b'2', "/tmp"),
        ("dir/through", b'0', ""),
        ("hard", b'1', "../secret"),
        ("/absolute", b'0', ""),
    ] {
        archive.extend(member(
            name,
            kind,
            link,
            if kind == b'0' { b"x" } else { b"" },
        ));
    }
    archive.extend(good);
    fs::write(path("in.tar"), archive).unwrap();
    converted(&["--format", "oci-dir"], &path("in.tar"), &path("out"));
    assert_eq!(names(folder.path()), ["in", "in.tar", "out", "secret"]);
    assert_eq!(
        names(&path("out")),
        [
            "absolute",
            "blobs",
            "dir",
            "extra",
            "index.json",
            "ingest",
            "oci-layout"
        ]
    );
    assert!(path("out/dir").is_dir() && !path("out/dir").is_symlink());
    assert!(!Path::new("/tmp/through").exists());
}

#[test]
fn blobs_that_are_links_are_read_but_only_as_what_they_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    let index = read_json(&path("in").join("index.json"));
    let manifest = blob(
        &path("in"),
        index["manifests"][0]["digest"].as_str().unwrap(),
    );
    fs::rename(&manifest, path("elsewhere")).unwrap();
    symlink(path("elsewhere"), &manifest).unwrap();
    let flags = ["--format", "oci-dir", "--follow-links"];
    converted(&flags, &path("in"), &path("out"));
    fs::write(path("elsewhere"), "secret").unwrap();
    let ran = convert(&flags, &path("in"), &path("out2"));
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("digest mismatch") && !ran.stderr.contains("secret"),
        "{ran:?}"
    );
}

/// Moves a file and leaves a link to it.
fn replace_by_link(file: &Path, target: &Path) {
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::rename(file, target).unwrap();
    symlink(target, file).unwrap();
}

#[test]
fn links_out_of_a_layout_are_refused_unless_they_are_allowed() {
    for what in ["manifest", "layer", "index.json", "blobs"] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        image(&path("in"));
        let index = read_json(&path("in/index.json"));
        let digest = |value: &Value| value["digest"].as_str().unwrap().to_owned();
        let manifest = blob(&path("in"), &digest(&index["manifests"][0]));
        let layer = blob(&path("in"), &digest(&read_json(&manifest)["layers"][0]));
        let file = match what {
            "manifest" => manifest.clone(),
            "layer" => layer,
            name => path("in").join(name),
        };
        replace_by_link(&file, &path("elsewhere"));
        let shown = if what == "blobs" { manifest } else { file };
        let message = format!(
            "{} is a link that leads out of the layout, to ",
            shown.display()
        );
        let flags = ["--format", "oci-dir"];
        let ran = convert(&flags, &path("in"), &path("out"));
        assert_eq!(ran.code, Some(1), "{what}: {ran:?}");
        assert!(ran.stderr.contains(&message), "{what}: {ran:?}");
        assert!(
            ran.stderr.ends_with("; --follow-links allows that\n"),
            "{what}: {ran:?}"
        );
        assert!(!path("out").exists());
        let image = path("in").display().to_string();
        let ran = run(["verify", "--deep", &image]);
        assert!(ran.stderr.contains(&message), "{what}: {ran:?}");
        let ran = run(["verify", "--deep", "--follow-links", &image]);
        assert!(
            ran.stdout.contains("no SOCI index belongs to it"),
            "{what}: {ran:?}"
        );
        converted(
            &["--follow-links", flags[0], flags[1]],
            &path("in"),
            &path("out"),
        );
    }
}

#[test]
fn links_that_stay_in_the_layout_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("real/in"));
    // The layout itself may be reached through a link.
    symlink(path("real/in"), path("in")).unwrap();
    for name in names(&path("in/blobs/sha256")) {
        let file = path("in/blobs/sha256").join(&name);
        fs::create_dir_all(path("in/objects")).unwrap();
        fs::rename(&file, path("in/objects").join(&name)).unwrap();
        symlink(Path::new("../../objects").join(&name), &file).unwrap();
    }
    fs::rename(path("in/index.json"), path("in/objects/index")).unwrap();
    symlink(path("in/objects/index"), path("in/index.json")).unwrap();
    converted(&["--format", "oci-dir"], &path("in"), &path("out"));
}

#[test]
fn a_blob_of_an_archive_that_is_a_link_to_nothing_is_named() {
    for (kind, target) in [
        (b'2', "/elsewhere"),
        (b'2', "../../../elsewhere"),
        (b'2', "none"),
        (b'1', "blobs/none"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        image(&path("in"));
        let index = read_json(&path("in/index.json"));
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let name = format!("blobs/{}", digest.replace(':', "/"));
        fs::remove_file(blob(&path("in"), digest)).unwrap();
        let link = member(&name, kind, target, b"");
        fs::write(path("in.tar"), [link, tar_of(&path("in"))].concat()).unwrap();
        let ran = convert(&[], &path("in.tar"), &path("out.tar"));
        assert_eq!(ran.code, Some(1));
        let named = path("in.tar").join(&name).display().to_string();
        let message = format!("soci: {named} is a link to ");
        assert!(ran.stderr.starts_with(&message), "{target}: {ran:?}");
        let end = ", which the archive does not have\n";
        assert!(ran.stderr.ends_with(end), "{target}: {ran:?}");
    }
}

#[test]
fn links_in_a_folder_of_blobs_do_not_lead_to_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    fs::create_dir_all(path("private/deep")).unwrap();
    fs::write(path("private/secret"), "secret").unwrap();
    fs::write(path("private/deep/secret"), "secret").unwrap();
    symlink(path("private"), path("in/blobs/other")).unwrap();
    symlink(path("private"), path("in/blobs/sha256/other")).unwrap();
    symlink(path("private/secret"), path("in/blobs/sha256/name")).unwrap();
    converted(&["--format", "oci-dir"], &path("in"), &path("out"));
    assert_eq!(names(&path("out/blobs")), ["sha256"]);
    assert!(
        names(&path("out/blobs/sha256"))
            .iter()
            .all(|name| name.len() == 64)
    );
    // A link with the name of a blob is refused, and its target verified if it is allowed.
    symlink(
        path("private/secret"),
        path("in/blobs/sha256").join("0".repeat(64)),
    )
    .unwrap();
    let flags = ["--format", "oci-dir", "--follow-links"];
    for (flags, message) in [
        (&flags[..2], "leads out of the layout"),
        (&flags, "digest mismatch"),
    ] {
        let ran = convert(flags, &path("in"), &path("out2"));
        assert!(ran.stderr.contains(message), "{ran:?}");
        assert!(!path("out2").exists());
    }
}

#[test]
fn a_folder_of_blobs_may_be_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    fs::rename(path("in/blobs"), path("blobs")).unwrap();
    symlink("../blobs", path("in/blobs")).unwrap();
    let before = names(&path("blobs/sha256"));
    let flags = ["--format", "oci-dir", "--follow-links"];
    converted(&flags, &path("in"), &path("out"));
    assert_eq!(names(&path("blobs/sha256")), before);
    let after = names(&path("out/blobs/sha256"));
    assert!(before.iter().all(|name| after.contains(name)) && after.len() > before.len());
    assert!(!path("out/blobs").is_symlink());
}

#[test]
fn digests_cannot_name_paths() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    image(&input);
    for digest in ["sha256:../../../../../etc/passwd", "../x:00", "sha256:", ""] {
        let index = format!(
            r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1}}]}}"#
        );
        fs::write(input.join("index.json"), index).unwrap();
        let ran = convert(&[], &input, &folder.path().join("out.tar"));
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.stderr
                .starts_with("soci: unmarshal index.json: invalid checksum"),
            "{ran:?}"
        );
    }
}

#[test]
fn damaged_archives_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    let good = tar_of(&path("in"));
    let input = path("in.tar");
    let shown = input.display();
    for (bytes, message) in [
        (&[0x1f; 1024][..], "archive/tar: invalid tar header"),
        (&good[..520], "unexpected EOF"),
        (&[1; 10], "unexpected EOF"),
    ] {
        fs::write(&input, bytes).unwrap();
        let ran = convert(&[], &input, &path("out.tar"));
        assert_eq!(
            ran.stderr,
            format!("soci: failed to extract OCI tar {shown}: {message}\n")
        );
        assert_eq!(ran.code, Some(1));
    }
    fs::write(&input, b"").unwrap();
    let ran = convert(&[], &input, &path("out.tar"));
    assert!(
        ran.stderr
            .starts_with(&format!("soci: failed to read index.json from {shown}: "))
    );
    assert!(!path("out.tar").exists());
}

#[test]
fn a_layer_that_is_not_what_its_digest_says_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let layer = tar(&[member("f", b'0', "", b"content")]);
    one_layer(&path("in"), &layer, false);
    let digest = soci_oci::Digest::sha256(&layer).to_string();
    fs::write(
        blob(&path("in"), &digest),
        tar(&[member("f", b'0', "", b"CONTENT")]),
    )
    .unwrap();
    let ran = convert(&[], &path("in"), &path("out.tar"));
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains(&digest) && ran.stderr.contains("digest mismatch"),
        "{ran:?}"
    );
}
