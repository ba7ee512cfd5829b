//! Layers that are downloaded whole: their formats, and what remains of them.

use std::time::{Duration, Instant};

use anyhow::Result;
use soci_tests::image::{Compressor, noise};
use soci_tests::node::{OVERLAYFS, SOCI};
use soci_tests::tar::{self, directory, file};
use soci_tests::{Image, Layer, Site, walk};

/// No layer below it has a zTOC.
const LARGE: [&str; 2] = ["--min-layer-size", "1000000"];

/// A layer with a zTOC, and small ones without in every format, on top of each other.
fn mixed() -> Result<Image> {
    let mut layers = vec![Layer::of(&[file("large", noise(1, 3 << 20))])?];
    for (name, compressor) in [
        ("zstd", Compressor::Zstd),
        ("gzip", Compressor::Pigz),
        ("plain", Compressor::None),
    ] {
        let entries = [
            directory(name).mode(0o700),
            file(format!("{name}/noise"), noise(7, 300_000)),
            file(format!("{name}/zeros"), vec![0; 400_000]),
            file("last", name),
        ];
        layers.push(Layer::compressed(tar::write(&entries), compressor)?);
    }
    Ok(Image::new(layers))
}

#[test]
fn whole_layers_of_every_format_give_the_same_tree() -> Result<()> {
    let start = walk::now();
    let site = Site::new("")?;
    let reference = site.publish_with(&mixed()?, "mixed:1", &LARGE)?;
    site.node.pull(&reference, SOCI)?;
    let log = site.node.snapshotter_log();
    let whole = log.matches("local snapshot successfully prepared");
    assert_eq!(whole.count(), 3, "{log}");
    site.node.pull(&reference, OVERLAYFS)?;
    let views = (
        site.node.view(&reference, OVERLAYFS)?,
        site.node.view(&reference, SOCI)?,
    );
    let different = walk::differences(views.0.path(), views.1.path(), start)?;
    assert!(different.is_empty(), "{different:#?}");
    Ok(())
}

#[test]
fn a_whole_layer_is_kept_in_containerd() -> Result<()> {
    let image = mixed()?;
    for (discards, wanted) in [(false, 3), (true, 0)] {
        let site = Site::new(&format!(
            "[pull_modes.parallel_pull_unpack]\ndiscard_unpacked_layers = {discards}\n\
             [content_store]\ntype = \"containerd\"\n"
        ))?;
        let reference = site.publish_with(&image, "mixed:1", &LARGE)?;
        site.node.pull(&reference, SOCI)?;
        // A slow containerd commits after the pull.
        let until = Instant::now() + Duration::from_secs(20);
        let kept = loop {
            let listed = site.node.ctr(["content", "ls", "-q"])?.succeed()?;
            let is_kept = |layer: &&Layer| listed.contains(&layer.digest());
            let kept = image.layers.iter().filter(is_kept).count();
            if kept == wanted || Instant::now() > until {
                break kept;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let log = site.node.snapshotter_log();
        assert_eq!(kept, wanted, "{log}");
    }
    Ok(())
}
