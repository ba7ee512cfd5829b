//! Conversion of images in containerd, through its content store.

use anyhow::{Context, Result, ensure};
use soci_tests::image::{Layer, noise};
use soci_tests::node::SOCI;
use soci_tests::process::Finished;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Site};

/// The digest under a name in containerd.
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
fn an_image_in_containerd_is_converted_like_a_layout_and_survives_garbage_collection() -> Result<()>
{
    let site = Site::new(NOTHING_BEHIND)?;
    let image = Image::runnable(&[
        &[directory("data"), file("data/big", noise(11, 1 << 20))],
        &[file("data/small", "small\n")],
    ])?;
    let spans = ["--min-layer-size", "0", "--span-size", "65536"];
    let source = site.publish_plain(&image, "source:1")?;
    let converted = site.reference("source:soci");
    site.node.pull(&source, "overlayfs")?;
    site.node
        .soci(["convert"])?
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

    // Only labels keep the zTOCs now. The pull below fails if one is missing.
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

fn convert(site: &Site, words: &[&str]) -> Result<Finished> {
    let flags = ["--min-layer-size", "0", "--span-size", "65536"];
    site.node
        .soci(["convert"])?
        .args(flags)
        .args(words)
        .finish()
}

#[test]
fn a_second_conversion_reuses_everything_and_gives_the_same_image() -> Result<()> {
    let site = Site::oracle_only()?;
    let layer = |seed| Layer::of(&[file("data", noise(seed, 200_000)), file("etc/app", "x")]);
    let images = [Image::new(vec![layer(21)?]), Image::new(vec![layer(22)?])];
    let (source, once) = ("registry.example/app:1", "registry.example/app:soci");
    site.import(source, &[("amd64", &images[0]), ("arm64", &images[1])])?;
    let files = ["--prefetch-file=/etc/app", "--all-platforms"];
    let first = convert(&site, &[&files[..], &[source, once]].concat())?;
    ensure!(
        first.code == Some(0) && first.stderr.is_empty(),
        "{first:?}"
    );
    let digest = target(&site, once)?;
    for (words, destination) in [
        (&files[..], "registry.example/app:again"),
        (
            &["--prefetch-file=/etc/app", "--platform=linux/amd64"],
            "registry.example/app:some",
        ),
        (&["--prefetch-file=/etc/app", "--all-platforms"], once),
    ] {
        let again = convert(&site, &[words, &[once, destination]].concat())?;
        ensure!(
            again.code == Some(0) && again.stderr.is_empty(),
            "{again:?}"
        );
        let of_layers = again
            .stdout
            .lines()
            .filter(|line| line.starts_with("layer "));
        for line in of_layers {
            ensure!(line.ends_with("(already exists)"), "{line}");
        }
        assert_eq!(target(&site, destination)?, digest, "{words:?}");
    }

    // Source and leases are gone. The image keeps what it refers to, including prefetch artifacts.
    for name in [
        source,
        "registry.example/app:again",
        "registry.example/app:some",
    ] {
        site.node.remove_image(name)?;
    }
    site.node
        .ctr(["content", "prune", "references"])?
        .succeed()?;
    let there = site.node.ctr(["content", "ls", "-q"])?.succeed()?;
    let lines = first
        .stdout
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    let made: Vec<&str> = lines.collect();
    ensure!(made.len() == 4, "two ztocs and two artifacts: {made:?}");
    for digest in made {
        ensure!(there.contains(digest), "{digest} is not in:\n{there}");
    }
    Ok(())
}

#[test]
fn images_stay_in_containerd_whatever_the_content_store() -> Result<()> {
    let site = Site::oracle_only()?;
    let (source, converted) = ("registry.example/app:1", "registry.example/app:soci");
    let image = Image::of(&[&[file("data", noise(23, 100_000))]])?;
    site.import(source, &[("amd64", &image)])?;
    let ran = site
        .node
        .soci(["--content-store", "soci", "convert", "--min-layer-size=0"])?
        .args([source, converted])
        .finish()?;
    ensure!(ran.code == Some(0), "{ran:?}");
    ensure!(
        ran.stderr.contains("--content-store soci has no effect"),
        "{ran:?}"
    );
    let digest = target(&site, converted)?;
    let there = site.node.ctr(["content", "ls", "-q"])?.succeed()?;
    ensure!(there.contains(&digest), "{digest} is not in:\n{there}");

    let missing = convert(&site, &["none:1", converted])?;
    let expected = "soci: image \"none:1\": not found\n";
    assert_eq!((missing.code, missing.stderr.as_str()), (Some(1), expected));
    Ok(())
}
