//! Images that are pulled whole, all layers at once: those without an index by default, and all on
//! request.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_tests::image::{Compressor, noise};
use soci_tests::node::{OVERLAYFS, SOCI};
use soci_tests::process::{Daemon, Program};
use soci_tests::tar::{self, directory, file, whiteout};
use soci_tests::{Image, Layer, NodeOptions, Shape, Site, stored, walk};

const LIMIT: Duration = Duration::from_secs(30);
const SIZE: usize = 1 << 20;
/// Bytes per second of a slow link: a pull takes some seconds, and is far from its end after one.
const SLOW: u64 = 1 << 20;
/// Fast enough for the rest of a test.
const FAST: u64 = 1 << 30;

/// An image of four layers, each with about a megabyte.
fn image(top: Compressor) -> Result<Image> {
    let mut image = Image::runnable(&[
        &[directory("d"), file("d/first", noise(1, SIZE))],
        &[file("d/second", noise(2, SIZE)).mode(0o600)],
    ])?;
    let entries = [whiteout("d/first"), file("third", noise(3, SIZE))];
    let top = Layer::compressed(tar::write(&entries), top)?;
    image.layers.push(top);
    Ok(image)
}

fn slow_site(config: &str) -> Result<Site> {
    let options = NodeOptions {
        config: config.to_owned(),
        ..NodeOptions::default()
    };
    let slow = Shape {
        rate: Some(SLOW),
        ..Shape::default()
    };
    Site::with(options, slow)
}

/// Waits for a condition.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts a pull over the slow link and waits until the bytes of the layers arrive.
fn begun(site: &Site, reference: &str) -> Result<Daemon> {
    let before = site.relay.delivered();
    let pull = ["images", "pull", "--snapshotter", SOCI, reference];
    let pulling = site
        .node
        .ctr(pull)?
        .spawn(&site.folder().join("pull.log"))?;
    let half = SIZE as u64 / 2;
    until("the pull begins", || {
        Ok(site.relay.delivered() > before + half)
    })?;
    Ok(pulling)
}

/// Verdict and reason in `soci status`.
fn verdict(site: &Site, reference: &str) -> Result<String> {
    let socket = site.node.snapshotter_socket();
    let socket = socket.with_file_name("status.sock");
    let words = ["status".as_ref(), "--socket".as_ref(), socket.as_os_str()];
    let said = Program::ours("soci")?.args(words).succeed()?;
    let line = said.lines().find(|line| line.starts_with(reference));
    let line = line.with_context(|| said.clone())?;
    let words: Vec<_> = line.split_whitespace().collect();
    Ok(words[2..4].join(" "))
}

/// Compares the image with what overlayfs unpacks.
fn compare(site: &Site, reference: &str, start: i64) -> Result<()> {
    site.node.pull(reference, OVERLAYFS)?;
    let views = (
        site.node.view(reference, OVERLAYFS)?,
        site.node.view(reference, SOCI)?,
    );
    let different = walk::differences(views.0.path(), views.1.path(), start)?;
    ensure!(different.is_empty(), "{different:#?}");
    Ok(())
}

/// The directories in the store of layers that are not a complete layer. A complete one names its
/// sources, and is removed like any that no snapshot uses.
fn drafts(site: &Site) -> Result<usize> {
    let entries = fs::read_dir(stored::folder(site.node.root()))?;
    let folders = entries.flatten().map(|entry| entry.path());
    let is_draft = |folder: &PathBuf| folder.is_dir() && !folder.join("sources").exists();
    Ok(folders.filter(is_draft).count())
}

#[test]
fn an_image_without_an_index_is_downloaded_once_and_is_the_same_tree() -> Result<()> {
    let start = walk::now();
    let site = Site::new("")?;
    let image = image(Compressor::Zstd)?;
    let reference = site.publish_plain(&image, "plain:1")?;
    let before = site.relay.delivered();
    site.node.pull(&reference, SOCI)?;
    let said = site
        .node
        .run(&reference, SOCI, "one", &["/bin/sh", "-c", "ls /d"])?;
    ensure!(said.stdout == "second\n", "{said:?}");
    let came = site.relay.delivered() - before;
    let blobs: u64 = image.layers.iter().map(|it| it.blob.len() as u64).sum();
    // Documents and what TLS adds.
    let most = blobs + blobs / 20 + 100_000;
    ensure!((blobs..most).contains(&came), "{came} of {blobs}");
    ensure!(verdict(&site, &reference)? == "parallel no_index");
    // As with lazy layers, containerd's content store does not have the blobs.
    let archive = site.folder().join("archive.tar");
    let export = ["images".as_ref(), "export".as_ref(), archive.as_os_str()];
    let export = site.node.ctr(export)?.args([&reference]).finish()?;
    ensure!(export.code != Some(0), "{export:?}");
    ensure!(export.stderr.contains("not found"), "{export:?}");
    compare(&site, &reference, start)
}

#[test]
fn an_indexed_image_is_downloaded_whole_if_the_mode_is_switched_on() -> Result<()> {
    let start = walk::now();
    let site = Site::new(
        "[pull_modes.parallel_pull_unpack]\nenable = true\ndiscard_unpacked_layers = true\n",
    )?;
    let image = image(Compressor::Gzip)?;
    let reference = site.publish(&image, "indexed:1")?;
    site.node.pull(&reference, SOCI)?;
    ensure!(verdict(&site, &reference)? == "parallel configured");
    let log = site.node.snapshotter_log();
    let message = "preparing snapshot with parallel pull/unpack";
    for layer in &image.layers {
        let digest = layer.digest();
        let says = |line: &str| line.contains(message) && line.contains(&digest);
        ensure!(log.lines().any(says), "{digest}: {log}");
    }
    compare(&site, &reference, start)
}

#[test]
fn a_pull_of_whole_layers_survives_resets_of_its_connections() -> Result<()> {
    let start = walk::now();
    let site = slow_site("")?;
    let reference = site.publish_plain(&image(Compressor::Gzip)?, "plain:1")?;
    let mut pulling = begun(&site, &reference)?;
    for _ in 0..2 {
        site.relay.cut();
        std::thread::sleep(Duration::from_millis(100));
        site.relay.restore();
        std::thread::sleep(Duration::from_millis(300));
    }
    site.relay.limit(FAST);
    let ended = pulling.wait_for_end(LIMIT)?;
    ensure!(ended == Some(0), "{}", pulling.log());
    ensure!(verdict(&site, &reference)? == "parallel no_index");
    compare(&site, &reference, start)
}

#[test]
fn a_cancelled_pull_of_whole_layers_soon_downloads_nothing_and_leaves_nothing() -> Result<()> {
    let start = walk::now();
    let site = slow_site("")?;
    let reference = site.publish_plain(&image(Compressor::Gzip)?, "plain:1")?;
    let mut pulling = begun(&site, &reference)?;
    ensure!(drafts(&site)? > 0);
    pulling.kill(LIMIT)?;
    until("nothing is left", || Ok(drafts(&site)? == 0))?;
    let (mut came, mut since) = (site.relay.delivered(), Instant::now());
    until("the downloads end", || {
        let now = site.relay.delivered();
        if now != came {
            (came, since) = (now, Instant::now());
        }
        Ok(since.elapsed() > Duration::from_secs(1))
    })?;
    site.relay.limit(FAST);
    site.node.pull(&reference, SOCI)?;
    compare(&site, &reference, start)
}

#[test]
fn a_daemon_that_is_killed_while_it_pulls_leaves_nothing_and_pulls_again() -> Result<()> {
    let start = walk::now();
    let mut site = slow_site("")?;
    let reference = site.publish_plain(&image(Compressor::Gzip)?, "plain:1")?;
    let mut pulling = begun(&site, &reference)?;
    site.node.snapshotter()?.kill_all(LIMIT)?;
    let ended = pulling.wait_for_end(LIMIT)?;
    ensure!(ended != Some(0), "the pull fails: {}", pulling.log());
    site.relay.limit(FAST);
    site.node.start_snapshotter()?;
    // containerd can take some seconds to reconnect.
    until("the pull works", || {
        Ok(site.node.pull(&reference, SOCI).is_ok())
    })?;
    until("drafts are removed", || Ok(drafts(&site)? == 0))?;
    compare(&site, &reference, start)
}
