//! Every input transport with every output transport.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use soci_oci::Digest;
use soci_registry::testing::TestRegistry;

use crate::site::{convert, converted, docker, layer, layout, publish, tagged};
use crate::soci::{blob, command, index, member, names, put, read_json, tar, tar_of};

mod docker;

fn root(folder: &Path) -> String {
    let index = read_json(&folder.join("index.json"));
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

/// The digest of the only image in an archive.
fn in_archive(path: &Path, flags: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let from = format!("{}{flags}", path.display());
    converted(&["--format", "oci-dir"], &from, out.to_str().unwrap());
    root(&out)
}

#[test]
fn every_pair_of_transports_gives_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let manifest = layout(&path("in"), &[layer(1, 300_000), layer(2, 5000)]);
    fs::write(path("in.tar"), tar_of(&path("in"))).unwrap();
    let registry = TestRegistry::start();
    publish(&path("in"), &manifest, &registry, "in");
    converted(&[], &text("in"), &text("expected.tar"));
    let expected_archive = fs::read(path("expected.tar")).unwrap();
    converted(&["--format", "oci-dir"], &text("in"), &text("expected"));
    let expected = root(&path("expected"));
    let inputs = [
        text("in"),
        text("in.tar"),
        format!("oci:{}", text("in")),
        format!("oci-archive:{}", text("in.tar")),
        docker(&registry, "in:1"),
        docker(&registry, &format!("in:1@{manifest}")),
    ];
    for (number, input) in inputs.iter().enumerate() {
        let out = |form: &str| text(&format!("{number}-{form}"));
        converted(&[], input, &out("bare.tar"));
        assert_eq!(
            fs::read(out("bare.tar")).unwrap(),
            expected_archive,
            "{input}"
        );
        converted(&[], input, &format!("oci-archive:{}", out("archive.tar")));
        assert_eq!(
            fs::read(out("archive.tar")).unwrap(),
            expected_archive,
            "{input}"
        );
        converted(&["--format", "oci-dir"], input, &out("bare"));
        assert_eq!(root(Path::new(&out("bare"))), expected, "{input}");
        converted(&[], input, &format!("oci:{}", out("oci")));
        assert_eq!(root(Path::new(&out("oci"))), expected, "{input}");
        let repository = format!("out-{number}");
        converted(&[], input, &docker(&registry, &format!("{repository}:2")));
        assert_eq!(
            tagged(&registry, &repository, "2"),
            Some(expected.clone()),
            "{input}"
        );
        let ran = command()
            .args([
                "convert",
                "--standalone",
                "--min-layer-size",
                "0",
                input,
                "-",
            ])
            .output()
            .unwrap();
        assert_eq!(ran.stdout, expected_archive, "{input}");
        let lines = String::from_utf8(ran.stderr).unwrap();
        assert!(lines.contains("-> ztoc sha256:"), "{lines}");
    }
    let leftovers = names(folder.path());
    assert!(
        !leftovers.iter().any(|name| name.starts_with('.')),
        "{leftovers:?}"
    );
    assert!(
        !leftovers.iter().any(|name| name.contains("soci-")),
        "{leftovers:?}"
    );
}

#[test]
fn an_archive_may_come_through_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    layout(&path("in"), &[layer(1, 300_000)]);
    converted(
        &[],
        path("in").to_str().unwrap(),
        path("expected.tar").to_str().unwrap(),
    );
    let mut child = command()
        .args(["convert", "--standalone", "--min-layer-size", "0", "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let archive = tar_of(&path("in"));
    let writer = std::thread::spawn(move || stdin.write_all(&archive));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, fs::read(path("expected.tar")).unwrap());
}

#[test]
fn a_name_chooses_among_images_and_names_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let one = layout(&path("in"), &[layer(1, 3000)]);
    let two = layout(&path("in"), &[layer(2, 3000)]);
    let entry = |digest: &str, name: &str| {
        let size = fs::metadata(blob(&path("in"), digest)).unwrap().len();
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": size,
            "annotations": { "org.opencontainers.image.ref.name": name },
        })
    };
    index(
        &path("in"),
        &[entry(&one, "one"), entry(&two, "r.example/two:2")],
    );
    fs::write(path("in.tar"), tar_of(&path("in"))).unwrap();
    converted(
        &[],
        &format!("oci:{}:one", text("in")),
        &format!("oci:{}:a", text("out")),
    );
    let input = format!("oci-archive:{}:r.example/two:2", text("in.tar"));
    converted(&[], &input, &format!("oci:{}:b", text("out")));
    let listed = read_json(&path("out").join("index.json"));
    let listed = listed["manifests"].as_array().unwrap();
    let name =
        |number: usize| listed[number]["annotations"]["org.opencontainers.image.ref.name"].as_str();
    assert_eq!((listed.len(), name(0), name(1)), (2, Some("a"), Some("b")));
    assert_ne!(listed[0]["digest"], listed[1]["digest"]);
    // Reusing a name replaces only the image of that name.
    converted(&[], &input, &format!("oci:{}:a", text("out")));
    let again = read_json(&path("out").join("index.json"));
    assert_eq!(again["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(
        again["manifests"][0]["digest"],
        again["manifests"][1]["digest"]
    );
    let ran = convert(
        &[],
        &format!("oci:{}:three", text("in")),
        &text("never.tar"),
    );
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("no image named \"three\"")
            && ran.stderr.contains("one, r.example/two:2"),
        "{ran:?}"
    );
    assert!(!path("never.tar").exists());
}

/// The names of the images in a layout, and the number of unnamed images.
fn listed(layout: &Path) -> (Vec<String>, usize) {
    let index = read_json(&layout.join("index.json"));
    let members = index["manifests"].as_array().unwrap();
    let name = |member: &serde_json::Value| {
        let name = &member["annotations"]["org.opencontainers.image.ref.name"];
        name.as_str().map(str::to_owned)
    };
    let mut names: Vec<String> = members.iter().filter_map(name).collect();
    names.sort();
    let unnamed = members.len() - names.len();
    (names, unnamed)
}

#[test]
fn processes_that_write_to_one_layout_keep_each_others_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for round in 0..5 {
        let out = path(&format!("out-{round}"));
        // The first group creates the directory; the second finds it.
        for tags in [["a", "b", "c"], ["d", "e", "f"]] {
            let convert = |(number, tag): (u64, &str)| {
                let input = path(&format!("in-{tag}"));
                layout(&input, &[layer(number, 3000)]);
                command()
                    .args(["convert", "--standalone", "--min-layer-size", "0"])
                    .args([
                        input.to_str().unwrap(),
                        &format!("oci:{}:{tag}", out.display()),
                    ])
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap()
            };
            let children: Vec<_> = (0..).zip(tags).map(convert).collect();
            for mut child in children {
                assert_eq!(child.wait().unwrap().code(), Some(0));
            }
        }
        let expected = ["a", "b", "c", "d", "e", "f"].map(str::to_owned).to_vec();
        assert_eq!(listed(&out), (expected, 0));
        for tag in ["a", "f"] {
            let input = format!("oci:{}:{tag}", out.display());
            converted(&[], &input, path("copy.tar").to_str().unwrap());
        }
    }
    let leftovers = names(folder.path());
    assert!(
        !leftovers.iter().any(|name| name.starts_with('.')),
        "{leftovers:?}"
    );
}

#[test]
fn an_image_without_a_name_leaves_others_without_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let out = format!("oci:{}", text("out"));
    for (number, name) in [(1, "one"), (2, "two")] {
        layout(&folder.path().join(name), &[layer(number, 3000)]);
    }
    converted(&[], &text("one"), &out);
    converted(&[], &text("two"), &format!("{out}:two"));
    converted(&[], &text("two"), &out);
    let expected = (vec!["two".to_owned()], 2);
    assert_eq!(listed(&folder.path().join("out")), expected);
    converted(&[], &text("two"), &out);
    assert_eq!(
        listed(&folder.path().join("out")),
        expected,
        "once is enough"
    );
}

#[test]
fn a_link_out_of_a_layout_gives_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let small = layer(2, 100);
    layout(&path("in"), &[layer(1, 300_000), small.clone()]);
    fs::write(path("secret"), "hunter2".repeat(small.len() / 7 + 1)).unwrap();
    let place = blob(&path("in"), &Digest::sha256(&small).to_string());
    fs::remove_file(&place).unwrap();
    let secret = fs::read(path("secret")).unwrap();
    fs::write(path("secret"), &secret[..small.len()]).unwrap();
    std::os::unix::fs::symlink(path("secret"), &place).unwrap();
    for to in ["out.tar", "oci:out", "oci-archive:out.tar"] {
        let to = match to.split_once(':') {
            Some((transport, name)) => format!("{transport}:{}", text(name)),
            None => text(to),
        };
        // The small layer is only copied, not indexed.
        let flags = ["--min-layer-size", "100000", "--follow-links"];
        for flags in [&flags[..2], &flags] {
            let ran = convert(flags, &text("in"), &to);
            assert_eq!(ran.code, Some(1), "{to}: {ran:?}");
            let named = Digest::sha256(&small).hex();
            assert!(ran.stderr.contains(&named), "{to}: {ran:?}");
            assert!(!ran.stderr.contains("hunter2"), "{to}: {ran:?}");
            assert_eq!(names(folder.path()), ["in", "secret"], "{to}");
        }
    }
}

#[test]
fn a_folder_that_is_no_layout_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    layout(&path("in"), &[layer(1, 3000)]);
    fs::create_dir(path("precious")).unwrap();
    fs::write(path("precious/file"), "x").unwrap();
    let ran = convert(&[], &text("in"), &format!("oci:{}", text("precious")));
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("not an OCI image layout"), "{ran:?}");
    assert_eq!(names(&path("precious")), ["file"]);
    put(&path("precious"), b"");
}
