//! `[snapshotter] mount`: each way of giving a layer to the kernel starts, reads, completes and restarts.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Site, View, loops, walk};

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

/// Layers that are EROFS mounts, and how many of them lie on loop devices.
fn layers(site: &Site) -> Result<(usize, usize)> {
    let mounts = site.node.mounts()?;
    let of = |kind: &str| mounts.iter().filter(|line| line.contains(kind)).count();
    Ok((of(" - erofs "), of(" - erofs /dev/loop")))
}

/// Starts, reads, completes and restarts; `on_loops` says whether the layers have to lie on loop devices.
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
fn layers_are_mounted_on_loop_devices_where_that_is_asked_for() -> Result<()> {
    works("loop", true)
}

#[test]
fn layers_are_mounted_from_files_where_that_is_asked_for() -> Result<()> {
    works("file", false)
}

#[test]
fn loop_devices_are_what_the_daemon_takes_by_itself() -> Result<()> {
    works("auto", true)
}

#[test]
fn layers_are_left_to_containerd_where_that_is_asked_for() -> Result<()> {
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
