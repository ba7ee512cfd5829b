//! Unused layers are deleted with a lower priority than everything else.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{Entry, file};
use soci_tests::{Image, Site, stored};

const LAYERS: u64 = 6;
/// Additional files in each directory, so that its deletion takes some tenths of a second.
const STRAY: usize = 30_000;
const PREPARES: usize = 3;

#[test]
fn a_prepare_does_not_wait_for_the_deletion_of_many_layers() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let root = site.node.root().to_path_buf();
    let base = Image::of(&[&[file("base", noise(50, 50_000))]])?;
    let parent = base.layers[0].diff_id();
    let base = site.publish(&base, "base:1")?;
    let layers: Vec<Vec<Entry>> = (0..LAYERS)
        .map(|n| vec![file(format!("f{n}"), noise(n, 50_000))])
        .collect();
    let lists: Vec<&[Entry]> = layers.iter().map(Vec::as_slice).collect();
    let many = site.publish(&Image::of(&lists)?, "many:1")?;
    site.node.pull(&base, SOCI)?;
    let kept = stored::layers(&root)?;
    site.node.pull(&many, SOCI)?;
    let mut doomed = stored::layers(&root)?;
    doomed.retain(|folder| !kept.contains(folder));
    ensure!(doomed.len() as u64 == LAYERS, "{doomed:?}");
    for folder in &doomed {
        for n in 0..STRAY {
            File::create(folder.join(format!("stray-{n}")))?;
        }
    }
    let left = || doomed.iter().filter(|folder| folder.exists()).count();
    let remove = ["images", "rm", "--sync", &many];
    let removing = site
        .node
        .ctr(remove)?
        .spawn(&site.folder().join("rm.log"))?;
    wait_begun(&doomed)?;
    for n in 0..PREPARES {
        let key = format!("beside-{n}");
        let prepare = ["snapshots", "--snapshotter", SOCI, "prepare", &key, &parent];
        let start = Instant::now();
        site.node.ctr(prepare)?.succeed()?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(1), "a Prepare took {took:?}");
    }
    ensure!(left() > 0, "all was deleted before the Prepares");
    // Another pull for layers that are being removed: those not deleted yet are used again.
    site.node.pull(&many, SOCI)?;
    let view = site.node.view(&many, SOCI)?;
    for n in 0..LAYERS {
        let name = format!("f{n}");
        ensure!(fs::read(view.join(&name))? == noise(n, 50_000), "{name}");
    }
    view.close()?;
    drop(removing);
    Ok(())
}

/// Waits until the deletion of the first directory has started.
fn wait_begun(folders: &[PathBuf]) -> Result<()> {
    let start = Instant::now();
    while folders
        .iter()
        .all(|folder| folder.join("stray-0").exists() && folder.join("data").exists())
    {
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "the deletion does not start"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
