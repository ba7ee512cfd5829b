//! Converting what containerd has, through its content store.

use anyhow::{Context, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::process::{Program, binary};
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Site};

/// The digest that containerd has under a name.
fn target(site: &Site, reference: &str) -> Result<String> {
    let filter = format!("name=={reference}");
    let listed = site.node.ctr(["images", "ls", &filter])?.succeed()?;
    let words = listed.split_whitespace();
    let digest = words.into_iter().find(|word| word.starts_with("sha256:"));
    digest
        .map(str::to_owned)
        .with_context(|| format!("{reference} is not in:\n{listed}"))
}

#[test]
fn an_image_in_containerd_is_converted_as_a_layout_is_and_outlives_a_garbage_collection()
-> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let image = Image::runnable(&[
        &[directory("data"), file("data/big", noise(11, 1 << 20))],
        &[file("data/small", "small\n")],
    ])?;
    let spans = ["--min-layer-size", "0", "--span-size", "65536"];
    let source = site.publish_plain(&image, "source:1")?;
    let converted = site.reference("source:soci");
    site.node.pull(&source, "overlayfs")?;
    Program::at(&binary("soci")?)
        .args(["--address"])
        .args([site.node.containerd_socket()])
        .args(["convert"])
        .args(spans)
        .args([&source, &converted])
        .succeed()?;

    let layout = site.converted(&image, "standalone:1", &spans)?;
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"]
        .as_str()
        .context("a digest")?;
    assert_eq!(target(&site, &converted)?, digest);

    // Only labels keep the zTOCs now. The pull below finds them gone if one is missing.
    site.node.remove_image(&source)?;
    site.node.ctr(["images", "push", &converted])?.succeed()?;
    site.node.remove_image(&converted)?;
    site.node.pull(&converted, SOCI)?;
    let said = site
        .node
        .run(&converted, SOCI, "one", &["/bin/cat", "/data/small"])?;
    ensure!(said.stdout == "small\n", "{}", said.stderr);
    let lazy = site.node.snapshotter_log();
    let lazy = lazy
        .matches("remote snapshot successfully prepared.")
        .count();
    assert_eq!(lazy, 3, "every layer is lazy");
    Ok(())
}
