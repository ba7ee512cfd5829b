//! The daemon is stopped, killed and restarted.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{Entry, directory, file};
use soci_tests::{Image, Site, walk};

const SIZE: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(15);

fn entries() -> Vec<Entry> {
    let mut entries = vec![directory("d")];
    entries.extend((0..4).map(|n| file(format!("d/f{n}"), noise(n + 1, SIZE))));
    entries
}

/// Waits until every layer of the image is complete according to the log.
fn wait_complete(site: &Site, layers: usize) -> Result<()> {
    let start = Instant::now();
    while site
        .node
        .snapshotter_log()
        .matches("layer is complete")
        .count()
        < layers
    {
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "not complete:\n{}",
            site.node.snapshotter_log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn after_a_restart_new_containers_need_no_registry_for_stored_data() -> Result<()> {
    restarted_without_registry(|site| {
        assert_eq!(
            site.node.snapshotter()?.terminate(LIMIT)?,
            Some(0),
            "exit code after SIGTERM"
        );
        Ok(())
    })
}

#[test]
fn after_a_kill_new_containers_need_no_registry_for_stored_data() -> Result<()> {
    restarted_without_registry(|site| site.node.snapshotter()?.kill(LIMIT))
}

fn restarted_without_registry(stop: impl FnOnce(&mut Site) -> Result<()>) -> Result<()> {
    let mut site = Site::new(NOTHING_BEHIND)?;
    let reference = site.publish(&Image::runnable(&[&entries()])?, "restart:1")?;
    site.node.pull(&reference, SOCI)?;
    let said = site
        .node
        .run(&reference, SOCI, "before", &["/bin/md5sum", "/d/f1"])?;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    stop(&mut site)?;
    site.relay.cut();
    site.node.start_snapshotter()?;
    walk::drop_caches()?;
    let again = run_until_connected(&site, &reference, &["/bin/md5sum", "/d/f1"])?;
    assert_eq!(again, said.stdout);
    // Missing bytes are fetched when the registry is back.
    site.relay.restore();
    let view = site.view_when_connected(&reference)?;
    for n in 0..4 {
        assert_eq!(fs::read(view.join(format!("d/f{n}")))?, noise(n + 1, SIZE));
    }
    Ok(())
}

/// containerd can take some seconds to reconnect to a restarted snapshotter.
fn run_until_connected(site: &Site, reference: &str, command: &[&str]) -> Result<String> {
    let start = Instant::now();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let said = site
            .node
            .run(reference, SOCI, &format!("attempt{attempt}"), command)?;
        if said.code == Some(0) {
            return Ok(said.stdout);
        }
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "{}\n{}",
            said.stderr,
            site.node.snapshotter_log()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_complete_layer_needs_no_daemon() -> Result<()> {
    let mut site = Site::new("")?;
    let reference = site.publish(&Image::of(&[&entries()])?, "complete:1")?;
    site.node.pull(&reference, SOCI)?;
    wait_complete(&site, 1)?;
    let view = site.node.view(&reference, SOCI)?;
    site.node.snapshotter()?.kill(LIMIT)?;
    walk::drop_caches()?;
    for n in 0..4 {
        assert_eq!(fs::read(view.join(format!("d/f{n}")))?, noise(n + 1, SIZE));
    }
    // Layers that were complete before the restart need no request to the registry.
    site.relay.cut();
    site.node.start_snapshotter()?;
    walk::drop_caches()?;
    let view = site.view_when_connected(&reference)?;
    site.node.snapshotter()?.kill(LIMIT)?;
    walk::drop_caches()?;
    for n in 0..4 {
        assert_eq!(fs::read(view.join(format!("d/f{n}")))?, noise(n + 1, SIZE));
    }
    Ok(())
}

#[test]
fn a_kill_in_the_middle_of_mounting_leaves_a_process_that_ends_and_a_state_that_works() -> Result<()>
{
    let mut site = Site::new(NOTHING_BEHIND)?;
    let layers: Vec<Vec<Entry>> = (0..6)
        .map(|n| vec![file(format!("f{n}"), noise(n, 200_000))])
        .collect();
    let lists: Vec<&[Entry]> = layers.iter().map(Vec::as_slice).collect();
    let reference = site.publish(&Image::of(&lists)?, "killed:1")?;
    for delay in [5, 15, 30, 50, 80, 120, 180, 260] {
        let before = prepares(&site);
        let arguments = ["images", "pull", "--snapshotter", SOCI, &reference];
        let pull = site
            .node
            .ctr(arguments)?
            .spawn(&site.folder().join("pull.log"))?;
        // The time starts with the first layer that the daemon is asked for.
        let start = Instant::now();
        while prepares(&site) == before && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(delay));
        site.node.snapshotter()?.kill(LIMIT)?;
        drop(pull);
        site.node.start_snapshotter()?;
        // Its results must not make the next round shorter. There may be nothing to remove.
        drop(site.node.remove_image(&reference));
    }
    let start = Instant::now();
    while let Err(error) = site.node.pull(&reference, SOCI) {
        ensure!(start.elapsed() < Duration::from_secs(60), "{error:#}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let view = site.node.view(&reference, SOCI)?;
    for n in 0..6 {
        assert_eq!(fs::read(view.join(format!("f{n}")))?, noise(n, 200_000));
    }
    Ok(())
}

fn prepares(site: &Site) -> usize {
    site.node.snapshotter_log().matches("prepar").count()
}
