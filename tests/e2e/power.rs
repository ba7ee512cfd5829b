//! The machine loses power: the daemon is killed, and what it had not synced is lost or garbage.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{Entry, file};
use soci_tests::{Image, Site, View, stored, walk};

const SIZE: usize = 600_000;
const LIMIT: Duration = Duration::from_secs(15);

fn pulled(name: &str) -> Result<(Site, String)> {
    let site = Site::new(NOTHING_BEHIND)?;
    let entries: Vec<Entry> = (0..4)
        .map(|n| file(format!("f{n}"), noise(n + 1, SIZE)))
        .collect();
    let reference = site.publish(&Image::of(&[&entries])?, name)?;
    site.node.pull(&reference, SOCI)?;
    Ok((site, reference))
}

fn assert_right(view: &View, files: impl IntoIterator<Item = u64>) -> Result<()> {
    for n in files {
        assert!(
            fs::read(view.join(format!("f{n}")))? == noise(n + 1, SIZE),
            "file {n}"
        );
    }
    Ok(())
}

/// Kills the daemon, changes its store, restarts it and returns a new view of the image.
fn after_power_loss(
    site: &mut Site,
    reference: &str,
    change: impl Fn(&std::path::Path) -> Result<()>,
) -> Result<View> {
    site.node.snapshotter()?.kill(LIMIT)?;
    for layer in stored::layers(site.node.root())? {
        stored::reboot(&layer)?;
        change(&layer)?;
    }
    walk::drop_caches()?;
    site.node.start_snapshotter()?;
    site.view_when_connected(reference)
}

#[test]
fn volatile_data_is_downloaded_again_after_a_power_failure() -> Result<()> {
    let (mut site, reference) = pulled("volatile:1")?;
    let view = site.node.view(&reference, SOCI)?;
    assert_right(&view, 0..4)?;
    view.close()?;
    let before = site.relay.delivered();
    let view = after_power_loss(&mut site, &reference, stored::lose_everything_volatile)?;
    assert_right(&view, 0..4)?;
    let again = site.relay.delivered() - before;
    assert!(again > 4 * SIZE as u64, "only {again} bytes came again");
    Ok(())
}

#[test]
fn durable_data_is_kept_after_a_power_failure() -> Result<()> {
    let (mut site, reference) = pulled("durable:1")?;
    let view = site.node.view(&reference, SOCI)?;
    assert_right(&view, [1])?;
    let start = Instant::now();
    loop {
        let marks: Vec<u8> = stored::layers(site.node.root())?
            .iter()
            .map(|layer| stored::marks(layer))
            .collect::<Result<Vec<_>>>()?
            .concat();
        if marks.contains(&2) && !marks.contains(&1) {
            break;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "never durable: {marks:?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    view.close()?;
    site.relay.cut();
    let view = after_power_loss(&mut site, &reference, |_| Ok(()))?;
    assert_right(&view, [1])
}

#[test]
fn a_torn_metadata_image_is_built_again() -> Result<()> {
    let (mut site, reference) = pulled("torn:1")?;
    let torn = std::cell::Cell::new(0);
    let view = after_power_loss(&mut site, &reference, |layer| {
        torn.set(torn.get() + stored::tear_metas(layer)?);
        Ok(())
    })?;
    assert!(torn.get() > 0, "there is an image to tear");
    assert_right(&view, 0..4)
}
