//! The end of the daemon when a part of it fails.

use std::fs;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use soci_oci::testing::{TestRegistry, noise};
use soci_snapshotter::store::FOLDER;

use crate::image::{Image, Shape, file, tar};
use crate::process::{Place, Running, mounted};
use crate::server::{connect, prepare_request};

const FILES: u64 = 40;
/// Header of the file of marks.
const HEADER: usize = 64;
/// A span that was written and may not be on the disk.
const WRITTEN: u8 = 1;

/// The only entry of a folder that begins with a digit.
fn numbered(folder: &std::path::Path) -> std::path::PathBuf {
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
    // A sync comes every few seconds: until one has not come yet.
    let mut files = 0..FILES;
    while !is_volatile() {
        let n = files.next().expect("something is not on the disk yet");
        let read = fs::read(snapshot.join(format!("fs/f{n}"))).unwrap();
        assert!(read == noise(n, 70_000));
    }
    // From here on it opens nothing, not even the table of mounts.
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
        assert!(running.next(), "it says why: {:#?}", running.said);
    }
    let error = &running.said.last().expect("a line")["error"];
    assert!(error.contains("table of mounts"), "{error}");
    assert_eq!(running.child.wait().unwrap().code(), Some(1));
    assert!(!is_volatile(), "what was read is on the disk");
    assert!(!mounted(&root).is_empty());
    let mut again = Running::start(command());
    assert_eq!(again.end(Signal::INT).code(), Some(0));
    assert_eq!(mounted(&root), Vec::<String>::new());
}
