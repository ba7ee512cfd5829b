//! `soci status` with a daemon that gives fixed answers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use soci_status::{Image, Layer, PATH, Progress, Reads, SCHEMA_VERSION, Status};
use tempfile::TempDir;

use crate::soci::{Ran, command, run};

/// A status socket whose daemon answers every request alike, until the test ends.
struct Daemon {
    folder: TempDir,
}

impl Daemon {
    fn new(code: u16, body: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("status.sock")).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                assert_eq!(first, format!("GET {PATH} HTTP/1.1"));
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let length = body.len();
                let head = format!("HTTP/1.1 {code} X\r\ncontent-length: {length}\r\n\r\n");
                drop(stream.write_all(format!("{head}{body}").as_bytes()));
            }
        });
        Self { folder }
    }

    fn of(status: &Status) -> Self {
        Self::new(200, serde_json::to_string(status).unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("status.sock")
    }

    fn ask(&self, words: &[&str]) -> Ran {
        ask(&self.socket(), words)
    }
}

fn ask(socket: &Path, words: &[&str]) -> Ran {
    let socket = socket.to_str().unwrap();
    run(["status", "--socket", socket].iter().chain(words))
}

/// Two images: a lazy one with an error, and one that is left to containerd.
pub(crate) fn example() -> Status {
    let progress = Progress {
        spans: 4,
        spans_present: 1,
        bytes: 400,
        bytes_present: 100,
        spans_on_demand: 1,
        bytes_on_demand: 100,
        ..Progress::default()
    };
    let reads = Reads {
        reads_waited: 2,
        waited_seconds: 0.5,
        longest_wait_seconds: 0.4,
    };
    let lazy = Layer {
        digest: "sha256:1111".to_owned(),
        verdict: "lazy".to_owned(),
        reason: "index".to_owned(),
        why: "named by the manifest".to_owned(),
        progress,
        reads,
        last_error: Some("registry does not answer".to_owned()),
    };
    let left = Layer {
        digest: "sha256:2222".to_owned(),
        verdict: "containerd".to_owned(),
        reason: "no_index".to_owned(),
        why: "the manifest names none".to_owned(),
        ..Layer::default()
    };
    let image = |name: &str, layer: Layer| Image {
        image: name.to_owned(),
        namespace: "k8s.io".to_owned(),
        manifest: format!("sha256:{name}"),
        verdict: layer.verdict.clone(),
        reason: layer.reason.clone(),
        why: layer.why.clone(),
        progress: layer.progress,
        reads: layer.reads,
        layers: vec![layer],
    };
    Status {
        schema_version: SCHEMA_VERSION,
        daemon: "v1.2.3".to_owned(),
        mounts_layers: true,
        images: vec![
            image("registry.example/app:1", lazy),
            image("registry.example/plain:1", left),
        ],
    }
}

/// What `soci status --json` prints for a daemon with this status.
pub(crate) fn printed(status: &Status) -> Value {
    let ran = Daemon::of(status).ask(&["--json"]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn all_images_are_a_table_and_one_image_has_its_layers() {
    let daemon = Daemon::of(&example());
    let ran = daemon.ask(&[]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().map(words).collect();
    let wanted = [
        "IMAGE NAMESPACE VERDICT REASON COMPLETE WAITED",
        "registry.example/app:1 k8s.io lazy index 25% 2 reads, 0.500 s, longest 0.400 s",
        "registry.example/plain:1 k8s.io containerd no_index 0% -",
    ];
    assert_eq!(lines, wanted);
    let ran = daemon.ask(&["app:1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for text in [
        "sha256:1111",
        "registry does not answer",
        "named by the manifest",
    ] {
        assert!(ran.stdout.contains(text), "{ran:?}");
    }
    assert!(!ran.stdout.contains("plain"), "{ran:?}");
}

#[test]
fn json_can_be_limited_to_one_image() {
    let daemon = Daemon::of(&example());
    let ran = daemon.ask(&["--json", "plain:1"]);
    let status: Status = serde_json::from_str(&ran.stdout).unwrap();
    let mut wanted = example();
    wanted.images.remove(0);
    assert_eq!(status, wanted);
}

#[test]
fn watching_prints_a_line_each_time_and_ends_with_its_reader() {
    let daemon = Daemon::of(&Status {
        schema_version: SCHEMA_VERSION,
        ..Status::default()
    });
    let mut soci = command()
        .args(["status", "--json", "--watch", "--socket"])
        .arg(daemon.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(soci.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = lines.next().unwrap().unwrap();
        let _: Status = serde_json::from_str(&line).unwrap();
    }
    drop(lines);
    assert_eq!(soci.wait().unwrap().code(), Some(0));
}

#[test]
fn errors_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let absent = ask(&folder.path().join("none.sock"), &[]);
    let unknown = Daemon::of(&example()).ask(&["other:1"]);
    let newer = Status {
        schema_version: SCHEMA_VERSION + 1,
        ..example()
    };
    let newer = Daemon::of(&newer).ask(&["--json"]);
    let failing = Daemon::new(500, "the disk is gone\n".to_owned()).ask(&[]);
    for (ran, said) in [
        (
            absent,
            "start soci-snapshotter-grpc, or name its status socket with --socket",
        ),
        (unknown, "the daemon does not know an image other:1"),
        (newer, "use the soci of the daemon's release"),
        (failing, "the disk is gone (500)"),
    ] {
        assert_eq!((ran.code, &*ran.stdout), (Some(1), ""), "{ran:?}");
        assert!(ran.stderr.contains(said), "{ran:?}");
    }
}

#[test]
fn a_daemon_that_breaks_off_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("status.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let breaks = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        drop(stream.read(&mut [0; 16]));
    });
    let ran = ask(&socket, &[]);
    breaks.join().unwrap();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("broke off"), "{ran:?}");
}
