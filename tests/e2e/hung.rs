//! containerd's content store starts to answer and then hangs: its images are read from the
//! registry, and no other request waits.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::{NodeOptions, SOCI};
use soci_tests::tar::file;
use soci_tests::{Image, Shape, Site};

/// A proxy between the daemon and containerd's socket, until the end of the test.
struct Between {
    socket: PathBuf,
    silent: Arc<AtomicBool>,
}

impl Between {
    /// Listens at `socket`, and connects to `to` for each client.
    fn start(socket: PathBuf, to: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&socket)?;
        let silent = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&silent);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let connected = client.and_then(|client| carry(client, &to, &told));
                // The daemon sees a closed connection.
                drop(connected);
            }
        });
        Ok(Self { socket, silent })
    }

    /// From now on, forwards nothing that containerd sends.
    fn silence(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.socket));
    }
}

fn carry(client: UnixStream, to: &Path, silent: &Arc<AtomicBool>) -> std::io::Result<()> {
    let containerd = UnixStream::connect(to)?;
    let (mut from, mut into) = (client.try_clone()?, containerd.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut from, &mut into));
    let silent = Arc::clone(silent);
    std::thread::spawn(move || {
        let (mut from, mut into) = (containerd, client);
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            // Cuts off in the middle of a frame.
            let length = match silent.load(Ordering::SeqCst) {
                false => length,
                true => length.min(1),
            };
            if into.write_all(&bytes[..length]).is_err() {
                return;
            }
            if silent.load(Ordering::SeqCst) {
                // Keeps both ends open as long as containerd does.
                while from.read(&mut bytes).is_ok_and(|length| length > 0) {}
                return;
            }
        }
    });
    Ok(())
}

#[test]
fn a_hanging_content_store_is_abandoned_and_other_prepares_continue() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("between.sock");
    let options = NodeOptions {
        content: Some(socket.clone()),
        ..NodeOptions::default()
    };
    let site = Site::with(options, Shape::default())?;
    let between = Between::start(socket, site.node.containerd_socket())?;
    let first = Image::of(&[&[file("first", noise(1, 100_000))]])?;
    let parent = first.layers[0].diff_id();
    let first = site.publish(&first, "first:1")?;
    let layers = [0, 1, 2].map(|n| [file(format!("f{n}"), noise(n + 2, 100_000))]);
    let lists = layers.each_ref().map(|layer| layer.as_slice());
    let second = site.publish(&Image::of(&lists)?, "second:1")?;
    site.node.pull(&first, SOCI)?;
    between.silence();
    let before = site.node.snapshotter_log().len();
    let pull = ["images", "pull", "--snapshotter", SOCI, &second];
    let mut pulling = site
        .node
        .ctr(pull)?
        .spawn(&site.folder().join("pull.log"))?;
    let start = Instant::now();
    let mut beside = 0;
    while !pulling.ended() {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "the pull hangs:\n{}",
            site.node.snapshotter_log()
        );
        let key = format!("beside-{beside}");
        let prepare = ["snapshots", "--snapshotter", SOCI, "prepare", &key, &parent];
        let begin = Instant::now();
        site.node.ctr(prepare)?.succeed()?;
        let took = begin.elapsed();
        ensure!(took < Duration::from_secs(1), "a Prepare took {took:?}");
        beside += 1;
    }
    ensure!(beside > 3, "the pull did not wait for containerd: {beside}");
    let log = site.node.snapshotter_log();
    let said = log.get(before..).context("what it said since")?;
    ensure!(
        said.contains("containerd does not answer") && !said.contains("defer-snapshot-runtime"),
        "{said}"
    );
    let view = site.node.view(&second, SOCI)?;
    for n in 0..3 {
        ensure!(fs::read(view.join(format!("f{n}")))? == noise(n + 2, 100_000));
    }
    Ok(())
}
