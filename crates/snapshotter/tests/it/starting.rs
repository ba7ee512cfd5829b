//! A start of the daemon that ends before it is complete, while readers wait.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use soci_registry::testing::{TestRegistry, noise};
use soci_snapshotter::config::Config;
use soci_snapshotter::daemon::{Daemon, Root};
use soci_snapshotter::device::KeptDevice;
use soci_snapshotter::store::FOLDER;
use tempfile::TempDir;

use crate::image::{Image, Shape, file, tar};
use crate::layers::pull_all;
use crate::server::Server;

const SIZE: usize = 300_000;
/// More than one, so that the start can end between two of them.
const LAYERS: u64 = 4;

fn copy(kept: &KeptDevice) -> KeptDevice {
    let journal = kept.journal.as_ref();
    KeptDevice {
        fuse: kept.fuse.try_clone().unwrap(),
        journal: journal.map(|journal| journal.try_clone().unwrap()),
    }
}

/// Takes the state directory when the previous process has let go of it.
async fn take(root: &Path) -> Root {
    for _ in 0..1000 {
        if let Ok(root) = Root::take(root) {
            return root;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the state directory is still locked");
}

/// Starts a daemon, but ends the start when it has waited this many times. Returns `None` then.
async fn start_for(root: &Path, config: &Config, kept: KeptDevice, waits: usize) -> Option<Daemon> {
    let mut start = pin!(Daemon::start(take(root).await, config, Some(kept)));
    let mut left = waits;
    let ended = poll_fn(|context| match start.as_mut().poll(context) {
        Poll::Ready(daemon) => Poll::Ready(Some(daemon.unwrap())),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await;
    if ended.is_none() {
        // Time for the READs of the layers that have been opened.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_ends_early_fails_no_read() {
    let registry = TestRegistry::start();
    let tars: Vec<_> = (0..LAYERS)
        .map(|n| tar(&[file(&format!("f{n}"), &noise(n, SIZE))]))
        .collect();
    let image = Image::publish(&registry, &tars, Shape::default());
    let mut config = Config::default();
    config.background_fetch.disable = true;
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    pull_all(&server, &image).await;
    let view = server.viewed(&image.target(tars.len() - 1)).await;
    registry.set_online(false);
    let reader = |n| {
        let path = view.path().join(format!("f{n}"));
        std::thread::spawn(move || std::fs::read(path))
    };
    let readers: Vec<_> = (0..LAYERS).map(reader).collect();
    let device = server.device();
    while device.parked() < readers.len() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let kept = device.keep().unwrap();
    drop(device);
    // If the test fails, the connection must end before the directory is removed.
    let (root, kept) = (server.leave().await, kept);

    let mut waits = 0;
    let daemon = loop {
        if let Some(daemon) = start_for(root.path(), &config, copy(&kept), waits).await {
            break daemon;
        }
        waits += 1;
    };
    registry.set_online(true);
    let read = tokio::task::spawn_blocking(|| {
        let read = readers.into_iter().map(|reader| reader.join().unwrap());
        read.collect::<Result<Vec<_>, _>>()
    });
    for (n, read) in (0..).zip(read.await.unwrap().unwrap()) {
        assert!(read == noise(n, SIZE), "f{n}");
    }
    assert!(waits > tars.len(), "the start waits only {waits} times");
    drop(view);
    daemon.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_not_a_use_of_the_layers() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &[tar(&[file("a", b"one")])], Shape::default());
    let server = Server::daemon_on(TempDir::new().unwrap(), &Config::default()).await;
    pull_all(&server, &image).await;
    let root = server.stop().await;
    let data = data_of(root.path());
    let used = |data: &Path| {
        let mut text = [0; 32];
        let length = rustix::fs::getxattr(data, "user.soci.used", &mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    };
    assert_ne!(used(&data), "1000");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&data, "user.soci.used", b"1000", flags).unwrap();
    let server = Server::daemon_on(root, &Config::default()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(used(&data), "1000", "the layer is still mounted");
    server.interrupt().await;
}

/// The contents of the only layer.
fn data_of(root: &Path) -> PathBuf {
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let is_layer = entry.path().iter().any(|part| part == FOLDER);
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() == "data" && is_layer {
                return entry.path();
            }
        }
    }
    panic!("no layer is stored");
}
