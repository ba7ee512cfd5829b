//! Archives of `docker save`.

use super::*;

/// An archive in the format of `docker save`.
fn docker_save(folder: &Path, repo_tags: &[&str], legacy: bool) -> Vec<u8> {
    let manifest = read_json(&folder.join("index.json"));
    let manifest = manifest["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let manifest = read_json(&blob(folder, &manifest));
    let config = manifest["config"]["digest"].as_str().unwrap();
    let mut members = vec![member(
        "image.json",
        b'0',
        "",
        &fs::read(blob(folder, config)).unwrap(),
    )];
    let mut layers = Vec::new();
    for (number, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
        let bytes = fs::read(blob(folder, layer["digest"].as_str().unwrap())).unwrap();
        if legacy {
            // Like skopeo and old daemons: the layer is a link to a shared file.
            members.push(member(&format!("{number}.tar"), b'0', "", &bytes));
            let link = format!("../{number}.tar");
            members.push(member(&format!("id{number}/layer.tar"), b'2', &link, b""));
            layers.push(format!("id{number}/layer.tar"));
        } else {
            let name = format!("blobs/sha256/{}", Digest::sha256(&bytes).hex());
            members.push(member(&name, b'0', "", &bytes));
            layers.push(name);
        }
    }
    let list = json!([{ "Config": "image.json", "RepoTags": repo_tags, "Layers": layers }]);
    members.push(member(
        "manifest.json",
        b'0',
        "",
        list.to_string().as_bytes(),
    ));
    tar(&members)
}

#[test]
fn what_docker_save_writes_is_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    layout(&path("in"), &[layer(1, 300_000), layer(2, 5000)]);
    let expected = {
        converted(&["--format", "oci-dir"], &text("in"), &text("expected"));
        root(&path("expected"))
    };
    for (number, legacy) in [(0, false), (1, true)] {
        let saved = format!("{number}.tar");
        fs::write(
            path(&saved),
            docker_save(&path("in"), &["busybox:latest"], legacy),
        )
        .unwrap();
        for name in [
            "",
            ":busybox:latest",
            ":docker.io/library/busybox:latest",
            ":busybox",
        ] {
            let input = format!("docker-archive:{}{name}", text(&saved));
            converted(&[], &input, &text("out.tar"));
            assert_eq!(in_archive(&path("out.tar"), ""), expected, "{input}");
        }
        let input = format!("docker-archive:{}", text(&saved));
        converted(&["--format", "oci-dir"], &input, &text("folder"));
        assert_eq!(root(&path("folder")), expected);
        let ran = convert(&[], &format!("{input}:other:1"), &text("never.tar"));
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.stderr
                .contains("no image \"other:1\"; it has busybox:latest"),
            "{ran:?}"
        );
    }
    let ran = convert(&[], &text("in"), "docker-archive:x.tar");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("cannot hold an index"), "{ran:?}");
}

#[test]
fn a_docker_archive_that_lies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    layout(&path("in"), &[layer(1, 3000)]);
    let good = String::from_utf8_lossy(&docker_save(&path("in"), &[], false)).into_owned();
    drop(good);
    let saved = docker_save(&path("in"), &[], false);
    let mut wrong = saved.clone();
    // A byte in the layer's file.
    wrong[2 * 512 + 512 + 600] ^= 1;
    let list = |text: &str| tar(&[member("manifest.json", b'0', "", text.as_bytes())]);
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("wrong layer", wrong, "but the configuration says"),
        (
            "no list",
            tar(&[member("x", b'0', "", b"")]),
            "no manifest.json in it",
        ),
        ("no json", list("<html>"), "manifest.json"),
        ("empty", list("[]"), "no image; it has none"),
        (
            "no config",
            list(r#"[{"Config":"../../etc/passwd"}]"#),
            "is not in it",
        ),
        (
            "outside",
            tar(&[
                member(
                    "manifest.json",
                    b'0',
                    "",
                    br#"[{"Config":"c","Layers":["l"]}]"#,
                ),
                member("c", b'2', "/etc/hostname", b""),
            ]),
            "\"c\" is not in it",
        ),
        (
            "truncated",
            saved[..saved.len() / 2].to_vec(),
            "unexpected EOF",
        ),
    ];
    for (name, bytes, said) in cases {
        fs::write(path("x.tar"), bytes).unwrap();
        let ran = convert(
            &[],
            &format!("docker-archive:{}", text("x.tar")),
            &text("never.tar"),
        );
        assert_eq!(ran.code, Some(1), "{name}: {ran:?}");
        assert!(ran.stderr.contains(said), "{name}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{name}: {ran:?}");
        assert!(!path("never.tar").exists(), "{name}");
    }
}
