//! Lazily loaded layers in user namespaces: the kernel maps the owners, and nothing is copied.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use soci_registry::testing::TestRegistry;
use soci_snapshotter::config::Config;
use tempfile::TempDir;

use crate::image::{Image, Shape, file, tar};
use crate::layers::pull_all;
use crate::server::{Labels, Mounted, Server, labels};

fn map(to: &str) -> Labels {
    labels(&[
        ("containerd.io/snapshot/uidmapping", to),
        ("containerd.io/snapshot/gidmapping", to),
    ])
}

/// ID-mapped mounts below the directories of snapshots.
fn copies(server: &Server) -> usize {
    let below = server.directories().canonicalize().unwrap();
    let below = format!(" {}/", below.display());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = table.lines().filter(|line| line.contains(&below));
    ours.filter(|line| line.contains("idmapped")).count()
}

fn check(at: &Path, uid: u32) {
    for name in ["", "a", "b"] {
        let found = fs::metadata(at.join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (uid, uid), "{name}");
    }
    assert_eq!(fs::read(at.join("a")).unwrap(), b"one");
    assert_eq!(fs::read(at.join("b")).unwrap(), b"two");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_container_sees_lazy_layers_with_its_own_owners() {
    let registry = TestRegistry::start();
    let layers = [tar(&[file("a", b"one")]), tar(&[file("b", b"two")])];
    let image = Image::publish(&registry, &layers, Shape::default());
    let server = Server::daemon_on(TempDir::new().unwrap(), &Config::default()).await;
    pull_all(&server, &image).await;
    let top = image.target(1);

    let one = server.prepare_with("one", &top, map("0:100000:65536"));
    let one = one.await.unwrap();
    let two = server.prepare_with("two", &top, map("0:200000:1000,1000:5000:10"));
    let two = two.await.unwrap();
    assert_eq!(copies(&server), 4);
    check(Mounted::new(&one).path(), 100_000);
    check(Mounted::new(&two).path(), 200_000);
    assert_eq!(server.mounts("one").await.unwrap(), one);
    assert_eq!(copies(&server), 4, "they are made once");

    // The next process finds them, or makes them again.
    let root = server.stop().await;
    let server = Server::daemon_on(root, &Config::default()).await;
    assert_eq!(server.mounts("one").await.unwrap(), one);
    assert_eq!(copies(&server), 4);
    check(Mounted::new(&one).path(), 100_000);
    let root = server.stop_unmounted().await;
    let server = Server::daemon_on(root, &Config::default()).await;
    assert_eq!(copies(&server), 0);
    assert_eq!(server.mounts("one").await.unwrap(), one);
    check(Mounted::new(&one).path(), 100_000);

    for key in ["one", "two"] {
        server.remove(key).await.unwrap();
    }
    server.cleanup().await.unwrap();
    assert_eq!(copies(&server), 0);
    let left = fs::read_dir(server.directories()).unwrap();
    assert_eq!(left.count(), 2, "the two layers");
    drop(server.stop_unmounted().await);
}
