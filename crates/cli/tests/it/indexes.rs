//! `soci index`: lists, documents, removal, and errors.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use soci_index::ARTIFACT_TYPE_V2;
use soci_index::artifacts::{Entry, Kind, now};
use soci_oci::Digest;
use soci_ztoc::Time;

use crate::seed::{Root, absent, entry, image};
use crate::soci::command;

const HEADER: &str =
    "DIGEST    SIZE    IMAGE REF    PLATFORM    MEDIA TYPE    MANIFEST VERSION    CREATED    \n";

#[test]
fn nothing_recorded_is_a_header_alone_and_needs_no_containerd() {
    for store in ["containerd", "soci", ""] {
        let root = Root::new();
        let store = format!("--content-store={store}");
        assert_eq!(root.prints(&["index", "ls", &store]), HEADER);
        assert_eq!(root.prints(&["index", "list", "-q", &store]), "");
        let printed = root.prints(&["index", "list", "--json", &store]);
        assert_eq!(
            printed,
            "{\n  \"schema_version\": 1,\n  \"indexes\": []\n}\n"
        );
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}

#[test]
fn the_table_has_the_references_columns_and_order() {
    let root = Root::new();
    let (old, new, unknown) = (absent("old"), absent("new"), absent("unknown"));
    let ago = |seconds| {
        let now = now();
        Some(Time {
            secs: now.secs - seconds,
            ..now
        })
    };
    let entries = [
        Entry {
            created_at: ago(26_626),
            ..entry(Kind::Index, &old)
        },
        Entry {
            created_at: ago(5),
            artifact_type: ARTIFACT_TYPE_V2.to_owned(),
            platform: "linux/arm64/v8".to_owned(),
            ..entry(Kind::Index, &new)
        },
        Entry {
            artifact_type: String::new(),
            ..entry(Kind::Index, &unknown)
        },
        entry(Kind::Layer, &absent("ztoc")),
        entry(Kind::Prefetch, &absent("prefetch")),
    ];
    root.artifacts().put(&entries).unwrap();

    let printed = root.prints(&["index", "list"]);
    let lines: Vec<&str> = printed.lines().collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json    ";
    let row = |digest: &Digest, size, platform: &str, version: &str| {
        format!("{digest}    {size:<8}             {platform:<18}{media_type}{version:<20}")
    };
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with(&format!("{:<75}SIZE    IMAGE REF    PLATFORM", "DIGEST")));
    assert!(lines[1].starts_with(&row(&new.digest, 3, "linux/arm64/v8", "v2")));
    assert!(lines[2].starts_with(&row(&old.digest, 3, "linux/amd64", "v1")));
    assert!(lines[3].starts_with(&row(&unknown.digest, 7, "linux/amd64", "")));
    // The test itself takes some time.
    let age = |line: &str| line[line.len() - 16..].to_owned();
    assert!(age(lines[1]).trim_end().ends_with("s ago"), "{lines:?}");
    assert!(age(lines[2]).starts_with("7h23m4"), "{lines:?}");
    assert!(age(lines[3]).starts_with("n/a  "), "{lines:?}");
    let width = lines[0].len();
    assert!(lines.iter().all(|line| line.len() == width), "{lines:?}");

    let digests = format!("{}\n{}\n{}\n", new.digest, old.digest, unknown.digest);
    assert_eq!(root.prints(&["index", "ls", "-q"]), digests);
}

#[test]
fn lists_can_be_had_as_json() {
    let root = Root::new();
    let index = absent("index");
    root.artifacts()
        .put(&[Entry {
            platform: "<>".to_owned(),
            created_at: Some(Time {
                secs: 0,
                nanos: 1000,
            }),
            ..entry(Kind::Index, &index)
        }])
        .unwrap();
    let printed = root.prints(&["index", "list", "--json"]);
    assert!(
        printed.contains("\"platform\": \"\\u003c\\u003e\""),
        "{printed}"
    );
    let value: Value = serde_json::from_str(&printed).unwrap();
    let wanted = json!({
        "digest": index.digest.to_string(),
        "size": 5,
        "image_refs": [],
        "platform": "<>",
        "media_type": "application/vnd.oci.image.manifest.v1+json",
        "manifest_version": "v1",
        "manifest_digest": image().to_string(),
        "image_digest": image().to_string(),
        "created_at": "1970-01-01T00:00:00.000001Z",
    });
    assert_eq!(value, json!({"schema_version": 1, "indexes": [wanted]}));
}

#[test]
fn platforms_are_compared_by_what_they_mean() {
    let root = Root::new();
    let named = ["linux/arm64/v8", "linux/amd64", "?"].map(|platform| {
        let blob = absent(platform);
        let index = Entry {
            platform: platform.to_owned(),
            ..entry(Kind::Index, &blob)
        };
        root.artifacts().put(&[index]).unwrap();
        format!("{}\n", blob.digest)
    });
    for (flags, wanted) in [
        (&["-p", "linux/arm64"][..], &named[..1]),
        (&["--platform", "aarch64"], &named[..1]),
        (&["-p", "linux/x86_64"], &named[1..2]),
        (&["-p", "linux/riscv64"], &[]),
    ] {
        let line = [&["index", "ls", "-q"], flags].concat();
        assert_eq!(root.prints(&line), wanted.concat(), "{flags:?}");
    }
    let both = root.prints(&["index", "ls", "-q", "-p", "linux/arm64,linux/amd64"]);
    assert_eq!(both.lines().count(), 2);
    assert_eq!(
        root.fails(&["index", "ls", "-p", "linux/*"]),
        "\"linux/*\": wildcards not yet supported: invalid argument"
    );
}

#[test]
fn what_a_record_says_does_not_reach_the_terminal_raw() {
    let root = Root::new();
    let index = Entry {
        platform: "\u{1b}]0;x\u{7}\n\t".to_owned(),
        media_type: "a\u{9b}2J".to_owned(),
        ..entry(Kind::Index, &absent("index"))
    };
    root.artifacts().put(&[index]).unwrap();
    let printed = root.prints(&["index", "list"]);
    assert_eq!(printed.lines().count(), 2);
    assert!(
        !printed.chars().any(|c| c.is_control() && c != '\n'),
        "{printed:?}"
    );
}

#[test]
fn info_prints_the_document_with_its_keys_in_order() {
    let root = Root::new();
    let manifest = absent("manifest");
    let index = root.index(&manifest, Vec::new());
    root.record(Kind::Index, &index);
    let digest = index.digest.to_string();
    let wanted = format!(
        r#"{{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {{
    "mediaType": "application/vnd.amazon.soci.index.v1+json",
    "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    "size": 2
  }},
  "layers": [],
  "subject": {{
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "digest": "{}",
    "size": 8
  }},
  "annotations": {{
    "com.amazon.soci.build-tool-identifier": "AWS SOCI CLI v0.2"
  }}
}}
"#,
        manifest.digest
    );
    assert_eq!(root.prints(&["index", "info", &digest]), wanted);
    let compact = root.prints(&["index", "info", "--json", &digest]);
    assert!(
        compact.starts_with("{\"schemaVersion\":2,\"mediaType\""),
        "{compact}"
    );
    assert_eq!(compact.lines().count(), 1);
}

#[test]
fn info_shows_a_prefetch_artifact_as_well() {
    let root = Root::new();
    let blob = root.prefetch(&image(), r#"{"version":"1.0","prefetch_spans":[]}"#);
    root.record(Kind::Prefetch, &blob);
    let digest = blob.digest.to_string();
    let printed = root.prints(&["index", "info", &digest]);
    assert_eq!(
        printed,
        "{\n  \"version\": \"1.0\",\n  \"prefetch_spans\": []\n}\n"
    );
}

#[test]
fn info_refuses_what_is_no_index() {
    let root = Root::new();
    let digest = absent("index").digest.to_string();
    assert_eq!(
        root.fails(&["index", "info", &digest]),
        "soci_artifacts not found"
    );
    let ztoc = absent("ztoc");
    root.record(Kind::Layer, &ztoc);
    for (word, message) in [
        ("", "invalid checksum digest format".to_owned()),
        ("x", "invalid checksum digest format".to_owned()),
        ("sha256:12", "invalid checksum digest length".to_owned()),
        ("md5:12", "unsupported digest algorithm".to_owned()),
        (
            &digest,
            format!("couldn't retrieve artifact for {digest}, not found"),
        ),
        (
            &ztoc.digest.to_string(),
            "the provided digest is of ztoc not SOCI index. Use \"soci ztoc info\" command to get detailed info of ztoc".to_owned(),
        ),
    ] {
        assert_eq!(root.fails(&["index", "info", word]), message, "{word}");
    }
    root.record(Kind::Index, &absent("index"));
    assert_eq!(
        root.fails(&["index", "info", &digest]),
        format!("content digest {digest}: not found")
    );
    assert_eq!(
        root.fails(&["index", "info", &digest, "--content-store", "tape"]),
        "unknown content store type: tape; must be one of [soci containerd]"
    );
}

#[test]
fn removed_indexes_are_gone_from_the_records_and_ztocs_stay() {
    let root = Root::new();
    let ztoc = absent("ztoc");
    root.record(Kind::Layer, &ztoc);
    let digests = ["a", "b", "c"].map(|name| {
        let index = root.index(&absent(name), Vec::new());
        root.record(Kind::Index, &index);
        index.digest.to_string()
    });
    assert_eq!(root.prints(&["index", "rm", &digests[0], &digests[1]]), "");
    assert_eq!(
        root.prints(&["index", "ls", "-q"]),
        format!("{}\n", digests[2])
    );
    assert_eq!(
        root.prints(&["ztoc", "ls", "-q"]),
        format!("{}\n", ztoc.digest)
    );
    // Removal deletes no blobs from the directory's content store.
    let blobs = fs::read_dir(root.path().join("content/blobs/sha256")).unwrap();
    assert_eq!(blobs.count(), 3);
}

#[test]
fn removal_refuses_what_is_no_index() {
    let root = Root::new();
    assert_eq!(root.prints(&["index", "remove"]), "");
    assert_eq!(
        root.fails(&["index", "rm", "x"]),
        "soci_artifacts not found"
    );
    let (index, ztoc) = (absent("index"), absent("ztoc"));
    root.record(Kind::Index, &index);
    root.record(Kind::Layer, &ztoc);
    let ztoc = ztoc.digest.to_string();
    let unknown = absent("unknown").digest.to_string();
    for (words, message) in [
        (
            &["x"][..],
            "the index of the digest x doesn't exist".to_owned(),
        ),
        (
            &[&unknown],
            format!("the index of the digest {unknown} doesn't exist"),
        ),
        (
            &[&ztoc],
            format!("the digest {ztoc} does not correspond to an index"),
        ),
        (
            &["--ref", "a", "x"],
            "please provide either index digests or image ref, but not both".to_owned(),
        ),
        (
            &["x", "--content-store=tape"],
            "unknown content store type: tape; must be one of [soci containerd]".to_owned(),
        ),
        (
            &["--ref", "a"],
            "context deadline exceeded while waiting for connections to become ready: context deadline exceeded".to_owned(),
        ),
    ] {
        let line = [&["index", "rm"], words].concat();
        assert_eq!(root.fails(&line), message, "{words:?}");
    }
    // If the content store is unreachable, the record is kept.
    let index = index.digest.to_string();
    root.fails(&["index", "rm", &index, "--content-store", "containerd"]);
    assert_eq!(root.prints(&["index", "ls", "-q"]), format!("{index}\n"));
}

#[test]
fn nobody_listening_is_no_error() {
    let root = Root::new();
    let names: Vec<Entry> = (0..2000)
        .map(|number| entry(Kind::Index, &absent(&number.to_string())))
        .collect();
    root.artifacts().put(&names).unwrap();
    let mut child = command()
        .args(["index", "list", "--root"])
        .arg(root.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn a_full_disk_is_an_error() {
    let root = Root::new();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = command()
        .args(["index", "list", "--root"])
        .arg(root.path())
        .stdout(full)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.starts_with("soci: cannot write to standard output: "),
        "{said}"
    );
}
