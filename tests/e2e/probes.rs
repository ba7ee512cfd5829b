//! Programs that read every block device, or every file of the state directory, while a layer is
//! incomplete and its registry is down: they are served immediately, and no span is fetched for
//! them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::loops::{self, LoopDevice};
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::file;
use soci_tests::{Image, Program, Site, View, stored};

/// How much of a device programs read at most that look for file systems, volumes and arrays.
const HEAD: usize = 4 << 20;
const TAIL: usize = 2 << 20;
const AT_ONCE: Duration = Duration::from_secs(3);

/// A site without a registry, a view of an image that was not read, and the loop devices of the
/// node.
fn cut(name: &str) -> Result<(Site, View, Vec<LoopDevice>)> {
    let site = Site::new(NOTHING_BEHIND)?;
    let image = Image::of(&[
        &[file("lower", noise(1, 3 << 20))],
        &[file("upper", noise(2, 3 << 20))],
    ])?;
    let reference = site.publish(&image, name)?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    let devices = loops::below(site.node.root())?;
    site.relay.cut();
    Ok((site, view, devices))
}

/// Number of spans in the store.
fn present(site: &Site) -> Result<usize> {
    let layers = stored::layers(site.node.root())?;
    let marks: Vec<Vec<u8>> = layers
        .iter()
        .map(|layer| stored::marks(layer))
        .collect::<Result<_>>()?;
    Ok(marks.concat().iter().filter(|&&mark| mark != 0).count())
}

/// Runs something that must neither wait nor fetch anything.
fn assert_harmless<T>(site: &Site, what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = (present(site)?, site.relay.delivered());
    let made = site.within(AT_ONCE, what, act)?;
    let after = (present(site)?, site.relay.delivered());
    ensure!(before == after, "{what} brought {before:?} to {after:?}");
    Ok(made)
}

#[test]
fn probing_block_devices_of_incomplete_layers_does_not_wait() -> Result<()> {
    let (site, view, devices) = cut("probed:1")?;
    ensure!(devices.len() >= 3, "two layers have these: {devices:#?}");
    for device in &devices {
        for (program, words) in [
            ("blkid", &["-p"][..]),
            ("lsblk", &["-f"]),
            ("wipefs", &["-n"]),
        ] {
            let what = format!("{program} {words:?} of {device:?}");
            // They find nothing, and report that in their exit code.
            assert_harmless(&site, &what, || {
                let program = Program::at(Path::new(program));
                program.args(words).args([&device.path]).finish()
            })?;
        }
    }
    site.relay.restore();
    ensure!(fs::read(view.join("upper"))? == noise(2, 3 << 20));
    Ok(())
}

#[test]
fn both_ends_of_a_data_device_are_always_present() -> Result<()> {
    let (site, _view, devices) = cut("ends:1")?;
    let large = |device: &&LoopDevice| device.size > (HEAD + TAIL) as u64;
    let data: Vec<&LoopDevice> = devices.iter().filter(large).collect();
    ensure!(data.len() == 2, "one for each layer: {devices:#?}");
    for device in data {
        for (at, length) in [(0, HEAD), (device.size - TAIL as u64, TAIL)] {
            let what = format!("{} at {at}", device.path.display());
            let piece = assert_harmless(&site, &what, || device.read(at, length))?;
            ensure!(piece.iter().all(|&byte| byte == 0), "{what}: not empty");
        }
    }
    Ok(())
}

#[test]
fn the_state_folder_is_listed_without_an_error() -> Result<()> {
    let (site, _view, _) = cut("listed:1")?;
    let served = site.node.mounts()?;
    ensure!(
        served.iter().any(|line| line.contains(" - fuse")),
        "the FUSE mount lies below the state folder: {served:#?}"
    );
    for (program, words) in [("find", &[][..]), ("ls", &["-laR"]), ("du", &["-s"])] {
        assert_harmless(&site, program, || {
            Program::at(Path::new(program))
                .args(words)
                .args([site.node.root()])
                .succeed()
        })?;
    }
    Ok(())
}
