//! `soci ztoc`: lists, zTOC contents, and errors.

use serde_json::{Value, json};
use soci_index::artifacts::{Entry, Kind};

use crate::seed::{Root, absent, entry};
use crate::soci::{member, tar};

const HEADER: &str = "DIGEST    SIZE    LAYER DIGEST    \n";

/// `dir/`, a file whose name Go escapes, one whose name is not UTF-8, and a link.
fn archive() -> Vec<u8> {
    let mut odd = member("x", b'0', "", b"12345");
    // A name that is not UTF-8, in a header with a corrected checksum.
    odd[0] = 0xff;
    let sum: u64 = u64::from_str_radix(std::str::from_utf8(&odd[148..154]).unwrap(), 8).unwrap();
    let sum = sum + 0xff - u64::from(b'x');
    odd[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    tar(&[
        member("dir/", b'5', "", b""),
        member("dir/a<b>&", b'0', "", &[7; 1500]),
        odd,
        member("link", b'2', "dir/a<b>&", b""),
    ])
}

#[test]
fn lists_have_all_ztocs_by_digest() {
    let root = Root::new();
    assert_eq!(root.prints(&["ztoc", "list"]), HEADER);
    assert_eq!(root.prints(&["ztoc", "ls", "-q"]), "");
    let empty = "{\n  \"schema_version\": 1,\n  \"ztocs\": []\n}\n";
    assert_eq!(root.prints(&["ztoc", "ls", "--json"]), empty);
    let mut digests = Vec::new();
    for name in ["a", "b", "c"] {
        let blob = absent(name);
        root.record(Kind::Layer, &blob);
        digests.push(blob.digest.to_string());
    }
    root.record(Kind::Index, &absent("index"));
    digests.sort();
    assert_eq!(
        root.prints(&["ztoc", "ls", "-q"]),
        digests.join("\n") + "\n"
    );
    let printed = root.prints(&["ztoc", "list", "--ztoc-digest", &digests[1]]);
    let layer = entry(Kind::Layer, &absent("a")).oci_digest;
    let wanted = format!(
        "{:<75}SIZE    {:<75}\n{}    1       {layer}    \n",
        "DIGEST", "LAYER DIGEST", digests[1]
    );
    assert_eq!(printed, wanted);
    for unknown in ["x", &absent("index").digest.to_string()] {
        let line = ["ztoc", "list", "--ztoc-digest", unknown];
        assert_eq!(root.prints(&line), HEADER);
    }
}

#[test]
fn lists_can_be_had_as_json() {
    let root = Root::new();
    let blob = absent("a");
    let layer = Entry {
        span_size: 4096,
        ..entry(Kind::Layer, &blob)
    };
    root.artifacts().put(std::slice::from_ref(&layer)).unwrap();
    let value: Value = serde_json::from_str(&root.prints(&["ztoc", "list", "--json"])).unwrap();
    let wanted = json!({
        "digest": blob.digest.to_string(),
        "size": 1,
        "layer_digest": layer.oci_digest,
        "span_size": 4096,
        "created_at": null,
    });
    assert_eq!(value, json!({"schema_version": 1, "ztocs": [wanted]}));
}

#[test]
fn info_says_what_the_reference_says() {
    let root = Root::new();
    let blob = root.ztoc(&archive(), 2048);
    root.record(Kind::Layer, &blob);
    let digest = blob.digest.to_string();
    let wanted = format!(
        r#"{{
  "version": "0.9",
  "build_tool": "AWS SOCI CLI v0.2",
  "size": {},
  "span_size": 2048,
  "num_spans": 3,
  "num_files": 4,
  "num_multi_span_files": 1,
  "files": [
    {{
      "filename": "dir/",
      "offset": 512,
      "size": 0,
      "type": "dir",
      "start_span": 0,
      "end_span": 0
    }},
    {{
      "filename": "dir/a\u003cb\u003e\u0026",
      "offset": 1024,
      "size": 1500,
      "type": "reg",
      "start_span": 0,
      "end_span": 1
    }},
    {{
      "filename": "\ufffd",
      "offset": 3072,
      "size": 5,
      "type": "reg",
      "start_span": 1,
      "end_span": 1
    }},
    {{
      "filename": "link",
      "offset": 4096,
      "size": 0,
      "type": "symlink",
      "start_span": 2,
      "end_span": 2
    }}
  ]
}}
"#,
        blob.size
    );
    assert_eq!(root.prints(&["ztoc", "info", &digest]), wanted);

    let compact = root.prints(&["ztoc", "info", "--json", &digest]);
    assert_eq!(compact.lines().count(), 1);
    let value: Value = serde_json::from_str(&compact).unwrap();
    assert_eq!(value, serde_json::from_str::<Value>(&wanted).unwrap());
    assert!(
        compact.starts_with("{\"version\":\"0.9\",\"build_tool\""),
        "{compact}"
    );
}

#[test]
fn info_of_an_empty_archive_has_null_for_files() {
    let root = Root::new();
    let blob = root.ztoc(&tar(&[]), 4 << 20);
    root.record(Kind::Layer, &blob);
    let digest = blob.digest.to_string();
    let printed = root.prints(&["ztoc", "info", &digest]);
    let end = "  \"num_files\": 0,\n  \"num_multi_span_files\": 0,\n  \"files\": null\n}\n";
    assert!(printed.ends_with(end), "{printed}");
    let compact = root.prints(&["ztoc", "info", "--json", &digest]);
    assert!(compact.ends_with(",\"files\":null}\n"), "{compact}");
}

#[test]
fn info_refuses_what_is_no_ztoc() {
    let root = Root::new();
    let digest = absent("ztoc").digest.to_string();
    assert_eq!(
        root.fails(&["ztoc", "info", &digest]),
        "soci_artifacts not found"
    );
    let (index, junk) = (absent("index"), root.put("x", b"no zTOC"));
    root.record(Kind::Index, &index);
    root.record(Kind::Layer, &junk);
    for (word, message) in [
        ("", "invalid checksum digest format".to_owned()),
        (
            &digest,
            format!("couldn't retrieve artifact for {digest}, not found"),
        ),
        (
            &index.digest.to_string(),
            "the provided digest belongs to a SOCI index. Use `soci index info` to get the detailed information about it".to_owned(),
        ),
    ] {
        assert_eq!(root.fails(&["ztoc", "info", word]), message, "{word}");
    }
    let said = root.fails(&["ztoc", "info", &junk.digest.to_string()]);
    assert!(said.starts_with("cannot unmarshal ztoc: "), "{said}");
    root.record(Kind::Layer, &absent("ztoc"));
    assert_eq!(
        root.fails(&["ztoc", "info", &digest]),
        format!("content digest {digest}: not found")
    );
}

#[test]
fn get_file_wants_exactly_two_operands() {
    let root = Root::new();
    let wanted = "please provide both a ztoc digest and a filename to extract";
    for words in [&[][..], &["a"], &["a", "b", "c"]] {
        let line = [&["ztoc", "get-file"], words].concat();
        assert_eq!(root.fails(&line), wanted, "{words:?}");
    }
    let digest = absent("ztoc").digest.to_string();
    for (words, message) in [
        (["x", "file"], "invalid checksum digest format".to_owned()),
        (
            [&digest, "file"],
            format!("content digest {digest}: not found"),
        ),
    ] {
        let line = [&["ztoc", "get-file", "-o", ""][..], &words].concat();
        assert_eq!(root.fails(&line), message, "{words:?}");
    }
    let blob = root.ztoc(&archive(), 2048);
    assert_eq!(
        root.fails(&["ztoc", "get-file", &blob.digest.to_string(), "link"]),
        "soci_artifacts not found"
    );
}
