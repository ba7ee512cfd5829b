//! A node where the reference implementation ran: its own daemon makes the state, and ours goes on
//! with it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::process::Daemon;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, NodeOptions, Program, Shape, Site};

const LIMIT: Duration = Duration::from_secs(15);

/// A node whose snapshotter the test starts, and an image with an index beside it, of which the
/// layer with `big` is loaded lazily.
fn site() -> Result<(Site, String)> {
    let config = format!("{NOTHING_BEHIND}[pull_modes.soci_v1]\nenable = true\n");
    let options = NodeOptions {
        config,
        service_apart: true,
        ..NodeOptions::default()
    };
    let site = Site::with(options, Shape::default())?;
    let big = file("data/big", noise(7, 1 << 20));
    let image = Image::runnable(&[
        &[
            directory("data"),
            big,
            file("data/small", "small\n").owner(5, 7),
        ],
        &[file("top", "top\n")],
    ])?;
    let reference = site.publish_plain(&image, "takeover:1")?;
    let create = ["create", "--standalone", "--min-layer-size", "100000"];
    site.node
        .soci(create)?
        .env("SSL_CERT_FILE", site.registry.authority())
        .args(["--span-size", "262144", &format!("docker://{reference}")])
        .succeed()?;
    Ok((site, reference))
}

fn start_reference(site: &Site) -> Result<Daemon> {
    let config = site.folder().join("reference.toml");
    fs::write(&config, "[background_fetch]\ndisable = true\n")?;
    let socket = site.node.snapshotter_socket();
    let program = Program::tool("reference/soci-snapshotter-grpc")?
        .env("SSL_CERT_FILE", site.registry.authority())
        .args([Path::new("--address"), &socket])
        .args([Path::new("--root"), site.node.root()])
        .args([Path::new("--config"), &config])
        .args(["--log-level", "debug"]);
    let mut daemon = program.spawn(&site.folder().join("reference.log"))?;
    daemon.wait_until("listening", LIMIT, |_| {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })?;
    Ok(daemon)
}

fn run(site: &Site, reference: &str, id: &str) -> Result<String> {
    let script = "cat /data/small /top && md5sum /data/big && stat -c %u:%g /data/small";
    let start = Instant::now();
    loop {
        let said = site
            .node
            .run(reference, SOCI, id, &["/bin/sh", "-c", script])?;
        if said.code == Some(0) {
            return Ok(said.stdout);
        }
        // containerd takes some seconds to connect to a restarted snapshotter.
        ensure!(
            start.elapsed() < LIMIT,
            "{}\n{}\n{}",
            said.stderr,
            site.node.snapshotter_log(),
            fs::read_to_string(site.folder().join("reference.log")).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn dead_mounts(site: &Site) -> Result<usize> {
    let mounts = site.node.mounts()?;
    // Our own device has the same type, elsewhere.
    let its = mounts
        .iter()
        .filter(|line| line.contains("fuse.rawBridge") && line.contains("/snapshots/"));
    Ok(its.count())
}

#[test]
fn images_and_containers_of_the_reference_go_on() -> Result<()> {
    let (mut site, reference) = site()?;
    let mut daemon = start_reference(&site)?;
    site.node.pull(&reference, SOCI)?;
    let before = run(&site, &reference, "before")?;
    ensure!(dead_mounts(&site)? > 0, "the reference loads lazily");
    let root = site.node.root().to_path_buf();
    ensure!(root.join("soci/spancache").exists() && root.join("metadata.db").exists());
    daemon.terminate(LIMIT)?;
    let records = fs::read(root.join("snapshotter/metadata.db"))?;

    site.node.start_snapshotter()?;
    let log = site.node.snapshotter_log();
    ensure!(log.contains("imported the snapshot records"), "{log}");
    ensure!(dead_mounts(&site)? == 0, "{:#?}", site.node.mounts()?);
    let after = run(&site, &reference, "after")?;
    assert_eq!(after, before);
    let mounts = site.node.mounts()?;
    let lazy = mounts.iter().filter(|line| line.contains(" - erofs "));
    ensure!(lazy.count() > 0, "{mounts:#?}");
    ensure!(fs::read(root.join("snapshotter/metadata.db"))? == records);

    site.node.remove_image(&reference)?;
    let snapshots = root.join("snapshotter/snapshots");
    let left = || -> Result<usize> { Ok(fs::read_dir(&snapshots)?.count()) };
    let start = Instant::now();
    while left()? > 0 || root.join("soci").exists() || root.join("metadata.db").exists() {
        ensure!(
            start.elapsed() < LIMIT,
            "{} snapshots are left\n{}",
            left()?,
            site.node.snapshotter_log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // The image can be pulled again.
    site.node.pull(&reference, SOCI)?;
    assert_eq!(run(&site, &reference, "again")?, before);
    Ok(())
}

#[test]
fn the_reference_starts_again_after_a_drain() -> Result<()> {
    let (mut site, reference) = site()?;
    let mut daemon = start_reference(&site)?;
    site.node.pull(&reference, SOCI)?;
    let before = run(&site, &reference, "before")?;
    daemon.terminate(LIMIT)?;
    site.node.start_snapshotter()?;
    // The page for upgrades says how: remove what uses the snapshotter, then its state.
    run(&site, &reference, "ours")?;
    site.node.remove_image(&reference)?;
    site.node.snapshotter()?.interrupt(LIMIT)?;
    ensure!(site.node.mounts()?.is_empty(), "{:#?}", site.node.mounts()?);
    fs::remove_dir_all(site.node.root()).context("remove the state")?;
    let _daemon = start_reference(&site)?;
    site.node.pull(&reference, SOCI)?;
    assert_eq!(run(&site, &reference, "back")?, before);
    Ok(())
}
