//! The log under stress: standard error is not read, or there are too many lines.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use soci_registry::testing::{Fault, On, TestRegistry, Wrong, noise};

use crate::image::{Image, Shape, file, tar};
use crate::process::{LONG, Line, Place, serves};
use crate::server::{connect, prepare_request};

/// Capacity of a pipe in bytes.
const PIPE: usize = 64 << 10;

/// A child process that is killed on drop.
struct Spawned(Child);

impl Drop for Spawned {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn until_there(socket: &Path) {
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < LONG, "the daemon does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_unread_standard_error_blocks_nothing() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'\n'; PIPE]).unwrap();
    let place = Place::new();
    let mut command = place.command();
    command
        .args(["--no-keeper", "--log-level=trace"])
        .stderr(writer);
    let mut daemon = Spawned(command.spawn().unwrap());
    // The command holds the writing end as well.
    drop(command);
    let socket = place.path("s/s.sock");
    until_there(&socket);
    serves(&socket);
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = daemon.0.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < LONG, "the daemon does not end");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(0));
    let mut written = Vec::new();
    reader.read_to_end(&mut written).unwrap();
    assert_eq!(written.len(), PIPE, "the pipe is full");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_fail_are_not_logged_one_by_one() {
    const FILES: u64 = 40;
    let registry = TestRegistry::start();
    let files: Vec<_> = (0..FILES)
        .map(|n| file(&format!("f{n}"), &noise(n, 70_000)))
        .collect();
    let image = Image::publish(&registry, &[tar(&files)], Shape::default());
    let place = Place::with("[background_fetch]\ndisable = true\n");
    let mut command = place.command();
    // Not a pipe: if the daemon waited for a reader of the log, reads would hang here.
    let log = place.path("log");
    command
        .arg("--no-keeper")
        .stderr(fs::File::create(&log).unwrap());
    let mut daemon = Spawned(command.spawn().unwrap());
    let socket = place.path("s/s.sock");
    until_there(&socket);
    let mut client = connect(socket).await;
    let request = prepare_request("default", "key", "", image.labels(0));
    let said = client.prepare(request).await.unwrap_err();
    assert_eq!(said.code(), tonic::Code::AlreadyExists, "{said}");
    let gone = Wrong::status(404);
    registry.fault(Fault::always(On::Blob(image.layers[0]), gone));
    let snapshots = fs::read_dir(place.path("root/snapshotter/snapshots")).unwrap();
    let snapshots: Vec<_> = snapshots.map(|entry| entry.unwrap().path()).collect();
    let [snapshot] = &snapshots[..] else {
        panic!("{snapshots:?}")
    };
    for n in 0..FILES {
        let read = fs::read(snapshot.join(format!("fs/f{n}")));
        assert!(read.is_err(), "f{n}: the registry is gone, so reads fail");
    }
    drop(client);
    kill_process(Pid::from_child(&daemon.0), Signal::INT).unwrap();
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    let said = fs::read_to_string(log).unwrap();
    let said: Vec<Line> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for message in ["read of layer data failed", "reads fail"] {
        let count = said.iter().filter(|line| line["msg"] == message);
        let count = count.count();
        assert!((1..=5).contains(&count), "{message}: {count}");
    }
}
