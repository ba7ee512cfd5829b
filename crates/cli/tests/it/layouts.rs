//! Input and output on disk: formats, image selection, and what is kept or replaced.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::soci::{
    blob, command, convert, converted, index, member, names, one_layer, put, read_json, tar, tar_of,
};

fn image(layout: &Path) {
    one_layer(layout, &tar(&[member("f", b'0', "", b"content")]), false);
}

fn image_digest(layout: &Path) -> String {
    let index = read_json(&layout.join("index.json"));
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn every_form_of_input_and_output_is_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    fs::write(path("in.tar"), tar_of(&path("in"))).unwrap();
    for (number, input) in ["in", "in.tar"].into_iter().enumerate() {
        converted(&[], &path(input), &path(&format!("{number}.tar")));
        converted(
            &["--format", "oci-dir"],
            &path(input),
            &path(&format!("{number}")),
        );
    }
    assert_eq!(
        fs::read(path("0.tar")).unwrap(),
        fs::read(path("1.tar")).unwrap()
    );
    assert_eq!(image_digest(&path("0")), image_digest(&path("1")));
    for number in ["0", "1"] {
        let out = path(number);
        assert_eq!(names(&out), ["blobs", "index.json", "ingest", "oci-layout"]);
        assert!(names(&out.join("ingest")).is_empty());
        // The replaced manifest is kept, as in the output of the reference.
        assert!(blob(&out, &image_digest(&path("in"))).is_file());
        let expected = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{}","size":{}}}]}}"#,
            image_digest(&out),
            fs::metadata(blob(&out, &image_digest(&out))).unwrap().len()
        );
        assert_eq!(
            fs::read_to_string(out.join("index.json")).unwrap(),
            expected
        );
        assert_eq!(
            fs::metadata(&out).unwrap().permissions().mode() & 0o777,
            0o755
        );
    }
    // No temporary files remain next to the results.
    assert_eq!(
        names(folder.path()),
        ["0", "0.tar", "1", "1.tar", "in", "in.tar"]
    );
}

#[test]
fn other_files_of_a_folder_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    image(&input);
    fs::write(input.join("manifest.json"), "[]").unwrap();
    fs::create_dir_all(input.join("extra/deep")).unwrap();
    fs::write(input.join("extra/deep/file"), "x").unwrap();
    symlink("/nowhere", input.join("link")).unwrap();
    fs::create_dir(input.join("ingest")).unwrap();
    fs::write(input.join("ingest/unfinished"), "x").unwrap();
    let orphan = put(&input, b"orphan");
    converted(&["--format", "oci-dir"], &input, &output);
    assert_eq!(fs::read(output.join("manifest.json")).unwrap(), b"[]");
    assert_eq!(fs::read(output.join("extra/deep/file")).unwrap(), b"x");
    assert_eq!(
        fs::read_link(output.join("link")).unwrap(),
        Path::new("/nowhere")
    );
    assert_eq!(fs::read(blob(&output, &orphan)).unwrap(), b"orphan");
    assert!(names(&output.join("ingest")).is_empty());
}

#[test]
fn an_archive_has_what_the_image_needs_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    let orphan = put(&path("in"), b"orphan");
    converted(&[], &path("in"), &path("out.tar"));
    converted(&["--format", "oci-dir"], &path("out.tar"), &path("out"));
    assert!(!blob(&path("out"), &orphan).exists());
    assert!(!blob(&path("out"), &image_digest(&path("in"))).exists());
}

#[test]
fn a_result_replaces_what_stood_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    image(&path("out"));
    fs::write(path("out").join("old"), "x").unwrap();
    fs::write(path("out.tar"), "x").unwrap();
    fs::create_dir(path("empty")).unwrap();
    symlink("out.tar", path("link.tar")).unwrap();
    converted(&["--format", "oci-dir"], &path("in"), &path("out"));
    assert!(!path("out").join("old").exists());
    converted(&["--format", "oci-dir"], &path("in"), &path("empty"));
    converted(&["--format", "oci-dir"], &path("in"), &path("new/below"));
    assert_eq!(image_digest(&path("out")), image_digest(&path("new/below")));
    converted(&[], &path("in"), &path("link.tar"));
    assert_eq!(
        fs::read_link(path("link.tar")).unwrap(),
        Path::new("out.tar")
    );
    assert!(fs::metadata(path("out.tar")).unwrap().len() > 1000);
    let expected = ["empty", "in", "link.tar", "new", "out", "out.tar"];
    assert_eq!(names(folder.path()), expected);
}

#[test]
fn a_folder_and_an_archive_can_be_converted_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("a"));
    fs::write(path("a.tar"), tar_of(&path("a"))).unwrap();
    converted(&["--format", "oci-dir"], &path("a"), &path("b"));
    converted(&["--format", "oci-dir"], &path("a"), &path("a"));
    assert_eq!(image_digest(&path("a")), image_digest(&path("b")));
    converted(&[], &path("a.tar"), &path("a.tar"));
    converted(&["--format", "oci-dir"], &path("a.tar"), &path("c"));
    assert_eq!(image_digest(&path("c")), image_digest(&path("b")));
    // Also into itself: the copy does not contain itself.
    converted(&["--format", "oci-dir"], &path("b"), &path("b/sub"));
    assert!(!path("b/sub/sub").exists());
}

#[test]
fn a_folder_that_is_no_image_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("in"));
    fs::create_dir(path("home")).unwrap();
    fs::write(path("home/thesis"), "x").unwrap();
    let ran = convert(&["--format", "oci-dir"], &path("in"), &path("home"));
    assert_eq!(ran.code, Some(1));
    let expected = format!(
        "soci: output {} is a directory that is not an OCI image layout; it is not replaced\n",
        path("home").display()
    );
    assert_eq!(ran.stderr, expected);
    assert_eq!(fs::read(path("home/thesis")).unwrap(), b"x");
}

#[test]
fn a_conversion_that_fails_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    image(&path("old"));
    fs::write(path("old.tar"), "old").unwrap();
    one_layer(&path("in"), b"no tar at all", false);
    for (format, output) in [("oci-dir", "old"), ("oci-archive", "old.tar")] {
        let ran = convert(&["--format", format], &path("in"), &path(output));
        assert_eq!(ran.code, Some(1), "{ran:?}");
    }
    assert_eq!(fs::read(path("old.tar")).unwrap(), b"old");
    assert!(path("old/oci-layout").is_file());
    assert_eq!(names(folder.path()), ["in", "old", "old.tar"]);
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    one_layer(
        &path("in"),
        &tar(&[member("f", b'0', "", b"content")]),
        false,
    );
    // A layer that takes much longer to convert than the test waits.
    let index = read_json(&path("in/index.json"));
    let manifest = read_json(&blob(
        &path("in"),
        index["manifests"][0]["digest"].as_str().unwrap(),
    ));
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let size: u64 = 1 << 40;
    fs::OpenOptions::new()
        .write(true)
        .open(blob(&path("in"), layer))
        .and_then(|file| file.set_len(size))
        .unwrap();
    let mut manifest = manifest.clone();
    manifest["layers"][0]["size"] = json!(size);
    let bytes = manifest.to_string().into_bytes();
    let manifest = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": put(&path("in"), &bytes),
        "size": bytes.len(),
    });
    crate::soci::index(&path("in"), &[manifest]);
    for (signal, code, format) in [
        ("-INT", 130, "oci-archive"),
        ("-TERM", 143, "oci-dir"),
        ("-HUP", 129, "oci-dir"),
    ] {
        fs::create_dir_all(path("tmp")).unwrap();
        let mut soci = command()
            .env("TMPDIR", path("tmp"))
            .args([
                "convert",
                "--standalone",
                "--min-layer-size=0",
                "--format",
                format,
            ])
            .args([path("in"), path("out")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while names(folder.path()).len() < 3 {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "nothing was begun"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(200));
        let killed = Command::new("kill")
            .args([signal, &soci.id().to_string()])
            .status();
        assert!(killed.unwrap().success());
        assert_eq!(soci.wait().unwrap().code(), Some(code));
        let stderr = std::io::read_to_string(soci.stderr.take().unwrap()).unwrap();
        assert_eq!(stderr, "soci: interrupted\n");
        assert_eq!(names(folder.path()), ["in", "tmp"]);
        assert!(names(&path("tmp")).is_empty());
    }
}

#[test]
fn the_image_of_an_index_is_selected_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let input = path("in");
    image(&input);
    let manifest = read_json(&input.join("index.json"))["manifests"][0].clone();
    let with = |platform: &str| {
        let mut manifest = manifest.clone();
        manifest["platform"] = json!({ "architecture": platform, "os": "linux" });
        manifest
    };
    let missing = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", "0".repeat(64)),
        "size": 1,
        "platform": { "architecture": "arm64", "os": "linux" },
    });
    let nested = |members: &[serde_json::Value]| {
        let list = json!({ "schemaVersion": 2, "manifests": members, "annotations": {"k": "v"} });
        let bytes = list.to_string().into_bytes();
        json!({
            "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
            "digest": put(&input, &bytes),
            "size": bytes.len(),
        })
    };
    let run = |manifests: &[serde_json::Value]| {
        index(&input, manifests);
        let ran = convert(
            &["--format", "oci-dir", "--all-platforms"],
            &input,
            &path("out"),
        );
        if ran.code != Some(0) {
            return Err(ran.stderr);
        }
        let result = read_json(&blob(&path("out"), &image_digest(&path("out"))));
        let platforms = result["manifests"].as_array().unwrap().iter();
        let platforms =
            platforms.map(|it| it["platform"]["architecture"].as_str().unwrap().to_owned());
        Ok((
            platforms.collect::<Vec<_>>(),
            result["annotations"]["k"] == "v",
        ))
    };
    let list = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    // A single remaining manifest becomes the image, whatever its parent was.
    assert_eq!(
        run(&[with("arm64"), missing.clone()]),
        Ok((list(&["arm64", "arm64"]), false))
    );
    assert_eq!(
        run(&[nested(&[with("arm64"), missing.clone()])]),
        Ok((list(&["arm64", "arm64"]), false))
    );
    // Several manifests keep their index.
    let both = list(&["amd64", "s390x", "amd64", "s390x"]);
    assert_eq!(
        run(&[with("amd64"), with("s390x")]),
        Ok((both.clone(), false))
    );
    assert_eq!(
        run(&[nested(&[with("amd64"), with("s390x")])]),
        Ok((both.clone(), true))
    );
    let all = [with("amd64"), missing.clone(), with("s390x")];
    assert_eq!(run(&[nested(&all)]), Ok((both, true)));
    assert_eq!(
        run(&[]),
        Err("soci: index.json contains no manifests\n".to_owned())
    );
    assert_eq!(
        run(&[missing.clone(), missing.clone()]),
        Err("soci: manifest list contains no entries with available blobs\n".to_owned())
    );
    let absent = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": format!("sha256:{}", "1".repeat(64)),
        "size": 1,
    });
    assert!(
        run(&[absent])
            .unwrap_err()
            .starts_with("soci: read manifest list: ")
    );
}
