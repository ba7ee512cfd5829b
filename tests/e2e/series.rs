//! The older containerd that many nodes still use.

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::{NodeOptions, SOCI};
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::file;
use soci_tests::{Image, Series, Shape, Site};

fn site() -> Result<Site> {
    let options = NodeOptions {
        config: NOTHING_BEHIND.to_owned(),
        series: Series::V1_7,
        ..NodeOptions::default()
    };
    Site::with(options, Shape::default())
}

#[test]
fn containerd_1_7_converts_pushes_and_runs_lazily() -> Result<()> {
    let site = site()?;
    let image = Image::runnable(&[&[file("big", noise(21, 4 << 20)), file("small", "small\n")]])?;
    let source = site.publish_plain(&image, "old:1")?;
    let converted = site.reference("old:soci");
    site.node.pull(&source, "overlayfs")?;
    let small = ["--min-layer-size", "0", "--span-size", "65536"];
    site.node
        .soci(["convert"])?
        .args(small)
        .args([&source, &converted])
        .succeed()?;
    site.node.ctr(["images", "push", &converted])?.succeed()?;
    site.node.remove_image(&source)?;
    site.node.remove_image(&converted)?;
    site.node.pull(&converted, SOCI)?;
    let before = site.relay.delivered();
    let said = site
        .node
        .run(&converted, SOCI, "one", &["/bin/cat", "/small"])?;
    ensure!(said.stdout == "small\n", "{}", said.stderr);
    let log = site.node.snapshotter_log();
    let lazy = log.matches("remote snapshot successfully prepared.");
    assert_eq!(lazy.count(), 2, "every layer is lazy:\n{log}");
    let read = site.relay.delivered() - before;
    assert!(
        read < 3 << 20,
        "{read} bytes came, nobody read the big file"
    );
    Ok(())
}
