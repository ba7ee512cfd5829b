//! Layers that were pulled whole without an index, and that the daemon indexed in passing.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::tar::file;
use soci_tests::{Image, NodeOptions, Shape, Site, stored, walk};

const LIMIT: Duration = Duration::from_secs(60);
/// The spans of our own zTOCs have 4 MiB, so this makes four.
const SIZE: usize = 14 << 20;
const CONFIG: &str = "
[background_fetch]
disable = true
[pull_modes]
build_index = true
[cache]
max_bytes = 3000000
min_free_bytes = -1
";

/// Waits until spans of the only layer were evicted.
fn evicted(site: &Site) -> Result<Vec<u8>> {
    let start = Instant::now();
    loop {
        let layers = stored::layers(site.node.root())?;
        let layer = layers.first().context("a layer")?;
        let marks = stored::marks(layer)?;
        ensure!(!marks.is_empty(), "the layer is not indexed");
        if marks.contains(&0) {
            return Ok(marks);
        }
        ensure!(start.elapsed() < LIMIT, "nothing is evicted: {marks:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_unused_layer_gives_back_its_space_and_is_read_again_after_a_restart() -> Result<()> {
    let options = NodeOptions {
        config: CONFIG.to_owned(),
        ..NodeOptions::default()
    };
    let mut site = Site::with(options, Shape::default())?;
    let image = Image::of(&[&[file("f", noise(1, SIZE))]])?;
    let reference = site.publish_plain(&image, "indexed:1")?;
    site.node.pull(&reference, SOCI)?;
    evicted(&site)?;
    site.node.snapshotter()?.kill(Duration::from_secs(15))?;
    let marks = evicted(&site)?;
    let absent = marks.iter().filter(|mark| **mark == 0).count() as u64;
    site.node.start_snapshotter()?;
    let before = site.relay.delivered();
    let view = site.node.view(&reference, SOCI)?;
    walk::drop_caches()?;
    ensure!(fs::read(view.join("f"))? == noise(1, SIZE), "other bytes");
    let came = site.relay.delivered() - before;
    // Not the whole layer, unless all of it was evicted. The last 1 MiB are documents and headers.
    let most = (absent * 4 + 1) << 20;
    ensure!(
        (1 << 20..most).contains(&came),
        "{came} bytes came for {absent} spans"
    );
    Ok(())
}
