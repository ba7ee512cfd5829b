//! The disk of the layer store is full.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::disk::Disk;
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::tar::{Entry, file};
use soci_tests::{Image, NodeOptions, Shape, Site, stored, walk};

const SIZE: usize = 4 << 20;
const FILES: u64 = 6;

#[test]
fn reads_are_answered_from_memory_while_the_disk_is_full() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = Disk::make(folder.path(), 64)?;
    let options = NodeOptions {
        root: Some(disk.path().join("soci")),
        ..NodeOptions::default()
    };
    // Slow enough that the pull and the view finish before the disk is full.
    let slow = Shape {
        rate: Some(5_000_000),
        ..Shape::default()
    };
    let site = Site::with(options, slow)?;
    let entries: Vec<Entry> = (0..FILES)
        .map(|n| file(format!("f{n}"), noise(n + 1, SIZE)))
        .collect();
    let reference = site.publish_with(
        &Image::of(&[&entries])?,
        "full:1",
        &["--min-layer-size", "0", "--span-size", "1048576"],
    )?;
    // Space for the snapshot, the zTOC and the tree, but not for 24 MB of content.
    let ballast = disk.fill(10)?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    for _ in 0..2 {
        walk::drop_caches()?;
        for n in 0..FILES {
            assert!(
                fs::read(view.join(format!("f{n}")))? == noise(n + 1, SIZE),
                "file {n}"
            );
        }
    }
    let log = site.node.snapshotter_log();
    assert!(
        !log.contains("layer is complete"),
        "the layer cannot be complete: there is no space\n{log}"
    );
    for layer in stored::layers(site.node.root())? {
        assert!(
            stored::marks(&layer)?.contains(&0),
            "spans that are not written are not marked"
        );
    }
    fs::remove_file(ballast)?;
    let start = Instant::now();
    while !site.node.snapshotter_log().contains("layer is complete") {
        ensure!(
            start.elapsed() < Duration::from_secs(90),
            "not complete:\n{}",
            site.node.snapshotter_log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    walk::drop_caches()?;
    for n in 0..FILES {
        assert!(
            fs::read(view.join(format!("f{n}")))? == noise(n + 1, SIZE),
            "file {n}"
        );
    }
    Ok(())
}

#[test]
fn a_daemon_starts_on_a_full_disk_and_serves_what_is_mounted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = Disk::make(folder.path(), 64)?;
    let options = NodeOptions {
        root: Some(disk.path().join("soci")),
        config: soci_tests::site::NOTHING_BEHIND.to_owned(),
        ..NodeOptions::default()
    };
    let mut site = Site::with(options, Shape::default())?;
    let entries: Vec<Entry> = (0..FILES)
        .map(|n| file(format!("f{n}"), noise(n + 1, 200_000)))
        .collect();
    let reference = site.publish(&Image::of(&[&entries])?, "start:1")?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    assert!(fs::read(view.join("f0"))? == noise(1, 200_000));
    disk.fill(0)?;
    site.node
        .snapshotter()?
        .kill(std::time::Duration::from_secs(15))?;
    site.node.start_snapshotter()?;
    walk::drop_caches()?;
    for n in 0..FILES {
        assert!(
            fs::read(view.join(format!("f{n}")))? == noise(n + 1, 200_000),
            "file {n}"
        );
    }
    Ok(())
}

/// A node whose daemon has its state on a small disk, and two small images.
struct Cramped {
    site: Site,
    images: [String; 2],
    // After the site, because its mounts must be removed first.
    disk: Disk,
    _folder: tempfile::TempDir,
}

impl Cramped {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let disk = Disk::make(folder.path(), 64)?;
        let options = NodeOptions {
            root: Some(disk.path().join("soci")),
            ..NodeOptions::default()
        };
        let site = Site::with(options, Shape::default())?;
        let publish = |n: u64| {
            let image = Image::of(&[&[file("f", noise(n, 200_000))], &[file("g", "small")]])?;
            site.publish(&image, &format!("small-{n}:1"))
        };
        let images = [publish(1)?, publish(2)?];
        Ok(Self {
            site,
            images,
            disk,
            _folder: folder,
        })
    }

    fn snapshots(&self) -> Result<usize> {
        let listed = self
            .site
            .node
            .ctr(["snapshots", "--snapshotter", SOCI, "ls"])?;
        Ok(listed.succeed()?.lines().count() - 1)
    }

    fn stored(&self) -> Result<usize> {
        Ok(stored::layers(self.site.node.root())?.len())
    }

    /// Requests a snapshot like for a container, with a name of this length.
    fn prepare(&self, name: &str) -> Result<soci_tests::process::Finished> {
        let words = ["snapshots", "--snapshotter", SOCI, "prepare", name];
        self.site.node.ctr(words)?.finish()
    }

    fn shows(&self, n: usize) -> Result<()> {
        let view = self.site.node.view(&self.images[n], SOCI)?;
        walk::drop_caches()?;
        ensure!(fs::read(view.join("f"))? == noise(n as u64 + 1, 200_000));
        view.close()
    }
}

#[test]
fn images_are_removed_on_a_full_disk_and_no_restart_is_needed() -> Result<()> {
    let cramped = Cramped::new()?;
    let Cramped { site, images, .. } = &cramped;
    site.node.pull(&images[0], SOCI)?;
    site.node.wait_complete(2)?;
    let ballast = cramped.disk.fill(0)?;
    // Some succeed, because existing directories have space for another entry.
    let refused = (0..64).find_map(|n| match cramped.prepare(&format!("container-{n}")) {
        Ok(done) if done.code == Some(0) => None,
        other => Some(other),
    });
    let refused = refused
        .expect("there is no space for 64 directories")?
        .stderr;
    ensure!(
        refused.contains("is full") && refused.contains("remove images"),
        "{refused}"
    );
    let pulled = site.node.pull(&images[1], SOCI);
    ensure!(pulled.is_err(), "there is no space for another image");
    let listed = site
        .node
        .ctr(["snapshots", "--snapshotter", SOCI, "ls"])?
        .succeed()?;
    for line in listed.lines().filter(|line| line.starts_with("container-")) {
        let name = line.split_ascii_whitespace().next().unwrap_or_default();
        let words = ["snapshots", "--snapshotter", SOCI, "rm", name];
        site.node.ctr(words)?.succeed()?;
    }
    site.node.remove_image(&images[0])?;
    ensure!(cramped.snapshots()? == 0, "{listed}");
    ensure!(cramped.stored()? == 0, "the layers are deleted");
    fs::remove_file(ballast)?;
    site.node.pull(&images[1], SOCI)?;
    cramped.shows(1)?;
    let log = site.node.snapshotter_log();
    ensure!(log.matches("successfully started").count() == 1, "{log}");
    Ok(())
}

#[test]
fn a_daemon_that_had_no_space_to_probe_mounts_layers_later() -> Result<()> {
    let mut cramped = Cramped::new()?;
    let (reference, root) = (
        cramped.images[0].clone(),
        cramped.site.node.root().to_path_buf(),
    );
    cramped
        .site
        .node
        .snapshotter()?
        .kill(Duration::from_secs(15))?;
    fs::remove_file(root.join("mount.json"))?;
    let ballast = cramped.disk.fill(0)?;
    cramped.site.node.start_snapshotter()?;
    let log = cramped.site.node.snapshotter_log();
    ensure!(log.contains("until there is space"), "{log}");
    fs::remove_file(ballast)?;
    // containerd may have to reconnect to the daemon first.
    let start = Instant::now();
    while let Err(error) = cramped.site.node.pull(&reference, SOCI) {
        ensure!(start.elapsed() < Duration::from_secs(30), "{error:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let log = cramped.site.node.snapshotter_log();
    ensure!(log.contains("layers can be mounted from now on"), "{log}");
    ensure!(
        cramped.stored()? == 2,
        "both layers are provided by our snapshotter"
    );
    cramped.shows(0)
}

#[test]
fn unused_layers_are_evicted_when_free_space_is_low() -> Result<()> {
    const BYTES: usize = 12 << 20;
    let folder = tempfile::tempdir()?;
    let disk = Disk::make(folder.path(), 107)?;
    let options = NodeOptions {
        root: Some(disk.path().join("soci")),
        config: "[cache]\nmin_free_bytes = 62914560\n".to_owned(),
        ..NodeOptions::default()
    };
    let site = Site::with(options, Shape::default())?;
    let publish = |n: u64| {
        let image = Image::of(&[&[file("f", noise(n, BYTES))]])?;
        let small = ["--min-layer-size", "0", "--span-size", "1048576"];
        site.publish_with(&image, &format!("evict-{n}:1"), &small)
    };
    let images = [publish(1)?, publish(2)?, publish(3)?];
    site.node.pull(&images[0], SOCI)?;
    site.node.wait_complete(1)?;
    site.node.pull(&images[1], SOCI)?;
    let used = site.node.view(&images[1], SOCI)?;
    site.node.wait_complete(2)?;
    site.node.pull(&images[2], SOCI)?;
    let third = site.node.view(&images[2], SOCI)?;
    ensure!(fs::read(third.join("f"))? == noise(3, BYTES));
    let start = Instant::now();
    let lines = |log: &str| -> Vec<String> {
        let gave = log
            .lines()
            .filter(|line| line.contains("gave back the space"));
        gave.map(str::to_owned).collect()
    };
    let gave = loop {
        let log = site.node.snapshotter_log();
        let gave = lines(&log);
        if !gave.is_empty() {
            break gave;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(40),
            "no layer was evicted:\n{log}"
        );
        std::thread::sleep(Duration::from_millis(100));
    };
    ensure!(gave.iter().all(|line| line.contains("evict-1")), "{gave:?}");
    // Layers in use are kept. Evicted spans are downloaded again on the next read.
    let whole = |layer: &Path| Ok::<_, anyhow::Error>(!stored::marks(layer)?.contains(&0));
    let mut kept = 0;
    for layer in stored::layers(site.node.root())? {
        kept += usize::from(whole(&layer)?);
    }
    ensure!(kept >= 1, "the layers of views stay");
    walk::drop_caches()?;
    ensure!(fs::read(used.join("f"))? == noise(2, BYTES));
    ensure!(fs::read(third.join("f"))? == noise(3, BYTES));
    // The layer stayed mounted, and is downloaded again for new readers as soon as there is space.
    let first = site.node.view(&images[0], SOCI)?;
    let mut beginning = vec![0; 1000];
    fs::File::open(first.join("f"))?.read_exact(&mut beginning)?;
    ensure!(beginning == noise(1, BYTES)[..1000]);
    third.close()?;
    site.node.remove_image(&images[2])?;
    let start = Instant::now();
    loop {
        let layers = stored::layers(site.node.root())?;
        let whole: Vec<bool> = layers
            .iter()
            .map(|layer| whole(layer))
            .collect::<Result<_>>()?;
        if whole.iter().all(|whole| *whole) {
            break;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "not fetched again: {whole:?}\n{}",
            site.node.snapshotter_log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(fs::read(first.join("f"))? == noise(1, BYTES));
    Ok(())
}
