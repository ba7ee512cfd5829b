//! `[snapshotter] mount`: with each mount mode, layers start, are read, complete and survive a
//! restart.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::{NodeOptions, SOCI};
use soci_tests::relay::Shape;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Program, Site, View, loops, walk};

const SIZE: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(15);

fn image() -> Result<Image> {
    let mut entries = vec![directory("d")];
    entries.extend((0..3).map(|n| file(format!("d/f{n}"), noise(n + 1, SIZE))));
    Image::runnable(&[&entries])
}

fn config(way: &str) -> String {
    format!("[snapshotter]\nmount = \"{way}\"\n")
}

fn assert_right(view: &View) -> Result<()> {
    for n in 0..3 {
        let right = fs::read(view.join(format!("d/f{n}")))? == noise(n + 1, SIZE);
        ensure!(right, "f{n}");
    }
    Ok(())
}

/// Number of layers that are EROFS mounts, and how many of them are on loop devices.
fn layers(site: &Site) -> Result<(usize, usize)> {
    let mounts = site.node.mounts()?;
    let of = |kind: &str| mounts.iter().filter(|line| line.contains(kind)).count();
    Ok((of(" - erofs "), of(" - erofs /dev/loop")))
}

/// Start, read, complete and restart. `on_loops` says whether the layers must be on loop devices.
fn works(way: &str, on_loops: bool) -> Result<()> {
    let mut site = Site::new(&config(way))?;
    let reference = site.publish(&image()?, "way:1")?;
    site.node.pull(&reference, SOCI)?;
    let said = site
        .node
        .run(&reference, SOCI, "first", &["/bin/cat", "/d/f0"])?;
    ensure!(said.code == Some(0), "{}", said.stderr);
    let check = |site: &Site| {
        let (all, loops) = layers(site)?;
        ensure!(
            all >= 2,
            "two layers are mounted: {:#?}",
            site.node.mounts()
        );
        let want = if on_loops { all } else { 0 };
        ensure!(loops == want, "{way}: {:#?}", site.node.mounts());
        Ok(())
    };
    check(&site)?;
    let view = site.node.view(&reference, SOCI)?;
    assert_right(&view)?;
    site.node.wait_complete(2)?;
    site.relay.cut();
    walk::drop_caches()?;
    assert_right(&view)?;
    view.close()?;
    site.node.snapshotter()?.kill_all(LIMIT)?;
    site.node.start_snapshotter()?;
    walk::drop_caches()?;
    let view = site.view_when_connected(&reference)?;
    assert_right(&view)?;
    check(&site)?;
    view.close()
}

#[test]
fn layers_are_mounted_on_loop_devices_if_configured() -> Result<()> {
    works("loop", true)
}

#[test]
fn layers_are_mounted_from_files_if_configured() -> Result<()> {
    works("file", false)
}

#[test]
fn the_daemon_uses_loop_devices_by_default() -> Result<()> {
    works("auto", true)
}

#[test]
fn layers_are_left_to_containerd_if_configured() -> Result<()> {
    let site = Site::new(&config("none"))?;
    let reference = site.publish(&image()?, "none:1")?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    assert_right(&view)?;
    ensure!(layers(&site)? == (0, 0), "{:#?}", site.node.mounts()?);
    ensure!(loops::below(site.node.root())?.is_empty());
    let log = site.node.snapshotter_log();
    ensure!(log.contains("mount = "), "the log says why:\n{log}");
    Ok(())
}

fn program(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default();
    Program::at(Path::new(name)).args(words).succeed().map(drop)
}

/// An image that was not read, seen through a view.
fn fresh(site: &Site, name: &str, seed: u64) -> Result<View> {
    let entries = [directory("d"), file("d/f", noise(seed, SIZE))];
    let reference = site.publish(&Image::runnable(&[&entries])?, name)?;
    site.node.pull(&reference, SOCI)?;
    site.node.view(&reference, SOCI)
}

#[test]
fn while_there_is_no_free_loop_device_layers_are_left_to_containerd() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().display();
    program(&format!("mount --bind {root} {root}"))?;
    program(&format!("mount --make-shared {root}"))?;
    let options = NodeOptions {
        config: NOTHING_BEHIND.to_owned(),
        root: Some(folder.path().to_owned()),
        service_apart: true,
        ..NodeOptions::default()
    };
    let mut site = Site::with(options, Shape::default())?;
    site.node.start_snapshotter_apart()?;
    let before = fresh(&site, "before:1", 1)?;
    let (lazy, _) = layers(&site)?;
    ensure!(lazy >= 1, "{:#?}", site.node.mounts());

    // Replace the control device in the daemon's namespace with one that provides no devices.
    let inside = format!(
        "nsenter --mount=/proc/{}/ns/mnt",
        site.node.snapshotter()?.pid()
    );
    program(&format!(
        "{inside} mount --bind /dev/null /dev/loop-control"
    ))?;
    let without = fresh(&site, "without:1", 2)?;
    ensure!(fs::read(without.join("d/f"))? == noise(2, SIZE));
    ensure!(layers(&site)?.0 == lazy, "{:#?}", site.node.mounts());
    ensure!(
        fs::read(before.join("d/f"))? == noise(1, SIZE),
        "other readers continue"
    );
    let log = site.node.snapshotter_log();
    for part in ["without:1", "/dev/loop-control", "raise `max_loop`"] {
        ensure!(log.contains(part), "{part} is not in the log:\n{log}");
    }

    program(&format!("{inside} umount /dev/loop-control"))?;
    let after = fresh(&site, "after:1", 3)?;
    ensure!(fs::read(after.join("d/f"))? == noise(3, SIZE));
    ensure!(layers(&site)?.0 > lazy, "{:#?}", site.node.mounts());
    for view in [before, without, after] {
        view.close()?;
    }
    drop(site);
    program(&format!("umount -l {root}"))
}
