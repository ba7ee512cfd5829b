//! The disk of the layer store is full.

use std::fs;
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
fn reads_are_answered_from_memory_while_the_disk_is_full_and_the_layer_completes_when_there_is_room()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = Disk::make(folder.path(), 64)?;
    let options = NodeOptions {
        root: Some(disk.path().join("soci")),
        ..NodeOptions::default()
    };
    // Slow enough that the pull and the view are there before the disk is full.
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
    // Room for the snapshot, the zTOC and the tree, not for 24 MB of content.
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
        "it cannot be: there is no room\n{log}"
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
