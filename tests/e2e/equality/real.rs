//! The image of `make demo`.

use anyhow::{Context, Result};
use soci_tests::node::{OVERLAYFS, SOCI};
use soci_tests::{Site, image, process, walk};

#[test]
fn the_demo_image_is_the_same_path_by_path_under_both_snapshotters() -> Result<()> {
    let layout = process::repository().join("target/image/demo");
    anyhow::ensure!(
        layout.join("index.json").exists(),
        "no demo image\nrun `scripts/image` first"
    );
    let start = walk::now();
    let site = Site::new("")?;
    let converted = site.folder().join("converted");
    image::convert(&layout, &converted, &["--min-layer-size", "0"]).context("convert")?;
    let reference = site.publish_layout(&converted, "demo:1")?;
    site.node.pull(&reference, SOCI)?;
    site.node.pull(&reference, OVERLAYFS)?;
    let views = (
        site.node.view(&reference, OVERLAYFS)?,
        site.node.view(&reference, SOCI)?,
    );
    let different = walk::differences(views.0.path(), views.1.path(), start)?;
    assert!(
        different.is_empty(),
        "{} differences:\n{}",
        different.len(),
        different.join("\n")
    );
    Ok(())
}
