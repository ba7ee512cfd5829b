//! The end of the daemon when one of its parts fails.

use std::fs;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use soci_registry::testing::{TestRegistry, noise};
use soci_snapshotter::store::FOLDER;

use crate::image::{Image, Shape, file, tar};
use crate::process::{Place, Running, mounted};
use crate::server::{connect, prepare_request};

const FILES: u64 = 40;
/// Size of the header of `present`.
const HEADER: usize = 64;
/// Mark of a span that was written but not synced.
const WRITTEN: u8 = 1;

/// The only entry of a directory that starts with a digit.
pub(crate) fn numbered(folder: &std::path::Path) -> std::path::PathBuf {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(|first: char| first.is_ascii_digit())
    });
    let path = paths.next().expect("one");
    assert_eq!(paths.next(), None);
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_is_synced_though_the_layers_cannot_be_unmounted() {
    let registry = TestRegistry::start();
    let files: Vec<_> = (0..FILES)
        .map(|n| file(&format!("f{n}"), &noise(n, 70_000)))
        .collect();
    let image = Image::publish(&registry, &[tar(&files)], Shape::default());
    let place = Place::with("[background_fetch]\ndisable = true\n");
    let command = || {
        let mut command = place.command();
        command.arg("--no-keeper");
        command
    };
    let mut running = Running::start(command());
    let mut client = connect(place.path("s/s.sock")).await;
    let request = prepare_request("default", "key", "", image.labels(0));
    let said = client.prepare(request).await.unwrap_err();
    assert_eq!(said.code(), tonic::Code::AlreadyExists, "{said}");
    drop(client);
    let root = place.path("root");
    let snapshot = numbered(&root.join("snapshotter/snapshots"));
    let present = numbered(&root.join(FOLDER)).join("present");
    let is_volatile = || fs::read(&present).unwrap()[HEADER..].contains(&WRITTEN);
    // A sync runs every few seconds. Read until one has not run yet.
    let mut files = 0..FILES;
    while !is_volatile() {
        let n = files.next().expect("a span is not synced yet");
        let read = fs::read(snapshot.join(format!("fs/f{n}"))).unwrap();
        assert!(read == noise(n, 70_000));
    }
    // From here on, the daemon cannot open any file, not even the mount table.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    prlimit(
        Some(Pid::from_child(&running.child)),
        Resource::Nofile,
        none,
    )
    .unwrap();
    kill_process(Pid::from_child(&running.child), Signal::INT).unwrap();
    let is_fatal = |running: &Running| running.said.iter().any(|line| line["level"] == "fatal");
    while !is_fatal(&running) {
        assert!(
            running.next(),
            "the daemon ends without a fatal line: {:#?}",
            running.said
        );
    }
    let error = &running.said.last().expect("a line")["error"];
    assert!(error.contains("mount table"), "{error}");
    assert_eq!(running.child.wait().unwrap().code(), Some(1));
    assert!(!is_volatile(), "the data that was read is synced");
    assert!(!mounted(&root).is_empty());
    let mut again = Running::start(command());
    assert_eq!(again.end(Signal::INT).code(), Some(0));
    assert_eq!(mounted(&root), Vec::<String>::new());
}
