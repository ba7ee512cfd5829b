//! Records of starts: what a daemon gives, and what a conversion makes of them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use soci_oci::Digest;
use soci_status::{PATH, STARTS_PATH};
use tempfile::TempDir;

use crate::site::{layer, layout};
use crate::soci::{Ran, blob, convert, read_json, run};
use crate::status::example;

/// A record of a start that read from two layers.
fn record(layers: &[(&[u8], Value)]) -> Value {
    let layers = layers.iter().map(|(layer, wants)| {
        let digest = Digest::sha256(layer).to_string();
        json!({"digest": digest, "wants": wants})
    });
    json!({
        "schema_version": 1,
        "image": "registry.example/app:1",
        "manifest": "sha256:registry.example/app:1",
        "platform": "linux/amd64",
        "layers": layers.collect::<Vec<_>>(),
    })
}

fn want(ms: u64, offset: u64, path: &str) -> Value {
    let files = json!([{"ms": ms, "path": path, "at": 0}]);
    json!({"ms": ms, "offset": offset, "bytes": 1000, "files": files})
}

/// A daemon that knows the images of [`example`] and has this record of every one.
struct Daemon(TempDir);

impl Daemon {
    fn new(record: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("status.sock")).unwrap();
        let (status, record) = (
            serde_json::to_string(&example()).unwrap(),
            record.to_string(),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let path = first.split(' ').nth(1).unwrap();
                let (code, body) = match path {
                    PATH => (200, &status),
                    path if path.starts_with(STARTS_PATH) => (200, &record),
                    _ => (404, &status),
                };
                let length = body.len();
                let head = format!("HTTP/1.1 {code} X\r\ncontent-length: {length}\r\n\r\n");
                drop(stream.write_all(format!("{head}{body}").as_bytes()));
            }
        });
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn ask(&self, words: &[&str]) -> Ran {
        ask(&self.path("status.sock"), words)
    }
}

fn ask(socket: &Path, words: &[&str]) -> Ran {
    let socket = socket.to_str().unwrap();
    run(["prefetch", "record", "--socket", socket]
        .iter()
        .chain(words))
}

#[track_caller]
fn fails(ran: &Ran, why: &str) {
    assert_eq!((ran.code, &*ran.stdout), (Some(1), ""), "{ran:?}");
    assert!(ran.stderr.contains(why), "{ran:?}");
}

#[test]
fn a_record_is_printed_or_written_as_far_as_it_is_early_enough() {
    let wants = json!([
        want(0, 0, "a"),
        want(59_000, 1000, "b"),
        want(61_000, 2000, "c")
    ]);
    let daemon = Daemon::new(&record(&[(b"layer", wants)]));
    let ran = daemon.ask(&["app:1"]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(printed["image"], "registry.example/app:1");
    let count = |record: &Value| record["layers"][0]["wants"].as_array().unwrap().len();
    assert_eq!(count(&printed), 2);
    let file = daemon.path("start.json");
    let ran = daemon.ask(&["app:1", "--within", "1s", "-o", file.to_str().unwrap()]);
    assert_eq!((ran.code, &*ran.stdout), (Some(0), ""), "{ran:?}");
    assert_eq!(count(&read_json(&file)), 1);
}

#[test]
fn a_record_that_cannot_be_had_is_an_error_that_says_what_to_do() {
    let daemon = Daemon::new(&record(&[]));
    fails(&daemon.ask(&["app:1"]), "nothing was recorded for app:1");
    fails(&daemon.ask(&["other:1"]), "does not know an image other:1");
    fails(&daemon.ask(&[]), "an image needs to be specified");
    fails(&daemon.ask(&["app:1", "--", "sh"]), "only for --run");
    let none = daemon.path("none.sock");
    fails(&ask(&none, &["app:1"]), "no daemon answers");
    let newer = Daemon::new(&json!({"schema_version": 2}));
    fails(&newer.ask(&["app:1"]), "version of a record of a start: 2");
}

/// Converts two layers with this record. Returns the prefetch artifacts and the warnings.
fn artifacts(layers: &[Vec<u8>], record: &Value) -> (Vec<Value>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    layout(&path("in"), layers);
    fs::write(path("start.json"), record.to_string()).unwrap();
    let file = path("start.json");
    let flags = ["--json", "--format", "oci-dir", "--span-size", "1000"];
    let flags = [&flags[..], &["--prefetch-record", file.to_str().unwrap()]].concat();
    let ran = convert(&flags, &path("in"), &path("out"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let made = report["platforms"][0]["prefetch"].as_array().unwrap();
    let read = |it: &Value| read_json(&blob(&path("out"), it["digest"].as_str().unwrap()));
    (made.iter().map(read).collect(), ran.stderr)
}

#[test]
fn a_conversion_keeps_the_spans_of_layers_that_are_the_same_and_finds_the_files_of_the_others() {
    let layers = [layer(1, 9000), layer(2, 9000)];
    let same = json!([want(5, 6000, "file-1"), want(400, 2000, "file-1")]);
    let changed = json!([want(0, 0, "file-2"), want(7, 0, "gone")]);
    let record = record(&[(&layers[0], same), (b"older", changed)]);
    let (made, warnings) = artifacts(&layers, &record);
    let ranges = |artifact: &Value| {
        let ranges = artifact["prefetch_spans"].as_array().unwrap().clone();
        let of = |it: &Value, key: &str| it[key].as_u64().unwrap();
        let of = |it: &Value| ["start_span", "end_span", "first_use_ms"].map(|key| of(it, key));
        ranges.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&made[0]), [[6, 6, 5], [2, 2, 400]]);
    assert_eq!(ranges(&made[1]), [[0, 0, 0]]);
    assert!(warnings.contains("1 of 2 recorded files"), "{warnings}");
}

#[test]
fn a_file_that_is_no_record_fails_the_conversion() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    layout(&path("in"), &[layer(1, 5000)]);
    for (text, why) in [
        ("[]", "cannot be read"),
        (
            r#"{"schema_version":3}"#,
            "unsupported version of a record of a start: 3",
        ),
    ] {
        fs::write(path("bad.json"), text).unwrap();
        let file = path("bad.json");
        let flags = ["--prefetch-record", file.to_str().unwrap()];
        fails(&convert(&flags, &path("in"), &path("out")), why);
    }
    let none = ["--prefetch-record", "/nothing/here.json"];
    fails(
        &convert(&none, &path("in"), &path("out")),
        "--prefetch-record /nothing/here.json",
    );
    assert!(!path("out").exists());
}
