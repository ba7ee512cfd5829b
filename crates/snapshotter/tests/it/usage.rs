//! The disk usage of lazily loaded layers, and the free space that a container on them sees.

use rustix::fs::statvfs;
use soci_registry::testing::{TestRegistry, noise};
use soci_snapshotter::config::{Config, LazyUsage};
use tempfile::TempDir;

use crate::image::{Image, Shape, file, tar};
use crate::layers::pull_all;
use crate::server::{Mounted, Server};

#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_layer_uses_what_it_has_on_disk_and_shows_the_space_of_the_disk() {
    let registry = TestRegistry::start();
    let big = noise(1, 300_000);
    let layers = [tar(&[file("big", &big)]), tar(&[file("b", b"two")])];
    let image = Image::publish(&registry, &layers, Shape::default());
    let mut config = Config::default();
    config.background_fetch.disable = true;
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    pull_all(&server, &image).await;
    let before = server.usage(&image.target(0)).await.unwrap();
    assert!(before.size > 0 && before.inodes > 0, "{before:?}");

    let mounted = Mounted::new(&server.prepare("one", &image.target(1)).await.unwrap());
    let (seen, disk) = (statvfs(mounted.path()), statvfs(server.root.path()));
    assert_eq!(seen.unwrap().f_blocks, disk.unwrap().f_blocks);
    assert_eq!(std::fs::read(mounted.path().join("big")).unwrap(), big);
    drop(mounted);
    let most = i64::try_from(big.len()).unwrap() / 2;
    // The bytes are written after the reader has got them.
    let mut after = server.usage(&image.target(0)).await.unwrap();
    for _ in 0..500 {
        after = server.usage(&image.target(0)).await.unwrap();
        if after.size >= before.size + most {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(after.size >= before.size + most, "{before:?} {after:?}");

    config.snapshotter.lazy_usage = LazyUsage::Zero;
    let server = Server::daemon_on(server.stop_unmounted().await, &config).await;
    let zero = server.usage(&image.target(0)).await.unwrap();
    assert_eq!((zero.size, zero.inodes), (0, 0));
    drop(server.stop_unmounted().await);
}
