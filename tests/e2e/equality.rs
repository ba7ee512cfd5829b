//! Compares an image unpacked by containerd with the same image mounted by us, path by path. One
//! case for each rule of how containerd applies an archive: on a base layer, on a layer with
//! parents, and for archives that it refuses.
//!
//! Every case runs twice: with a zTOC for each layer, and without, so that the tree is made once
//! from the table of contents and once from the stream.

mod attributes;
mod kinds;
mod markers;
mod names;
mod real;
mod writes;

use anyhow::{Context, Result};
use soci_tests::image::noise;
use soci_tests::node::{OVERLAYFS, SOCI};
use soci_tests::tar::{Entry, file};
use soci_tests::{Image, Layer, Site, walk};

/// A named image: the entries of its layers, lowest first.
type Case = (&'static str, Vec<Vec<Entry>>);

/// How the layers of a case are provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Each layer has a zTOC.
    Lazy,
    /// Without zTOCs, except for a large layer on top.
    Whole,
}

/// Smaller than the layer on top, larger than any layer of a case.
const WHOLE: [&str; 2] = ["--min-layer-size", "5000000"];

/// Every image must look the same under both snapshotters, and no layer may be left to containerd.
fn assert_equal(way: Way, cases: Vec<Case>) -> Result<()> {
    assert_as(way, cases, false)
}

/// Every image must look the same under both snapshotters. `left` says whether layers are left to
/// containerd.
fn assert_as(way: Way, cases: Vec<Case>, left: bool) -> Result<()> {
    let start = walk::now();
    let site = Site::new("")?;
    let mut lines = Vec::new();
    for (name, layers) in cases {
        let before = site.node.snapshotter_log().len();
        match differences(&site, way, name, &layers, start) {
            Ok(different) => {
                lines.extend(different.into_iter().map(|line| format!("{name}: {line}")))
            }
            Err(error) => lines.push(format!("{name}: {error:#}")),
        }
        let log = site.node.snapshotter_log();
        let said = log.get(before..).unwrap_or_default();
        if said.contains("defer-snapshot-runtime") != left {
            let not = if left { " not" } else { "" };
            lines.push(format!("{name}: was{not} left to containerd:\n{said}"));
        }
    }
    assert!(
        lines.is_empty(),
        "{} differences:\n{}",
        lines.len(),
        lines.join("\n")
    );
    Ok(())
}

fn differences(
    site: &Site,
    way: Way,
    name: &str,
    layers: &[Vec<Entry>],
    start: i64,
) -> Result<Vec<String>> {
    let reference = publish(site, way, name, layers).context("publish")?;
    site.node
        .pull(&reference, OVERLAYFS)
        .context("pull by the oracle")?;
    site.node.pull(&reference, SOCI).context("pull")?;
    let views = (
        site.node.view(&reference, OVERLAYFS)?,
        site.node.view(&reference, SOCI)?,
    );
    walk::differences(views.0.path(), views.1.path(), start)
}

fn publish(site: &Site, way: Way, name: &str, layers: &[Vec<Entry>]) -> Result<String> {
    let mut all = layers
        .iter()
        .map(|entries| Layer::of(entries))
        .collect::<Result<Vec<_>>>()?;
    let tag = format!("{name}:1");
    if way == Way::Lazy {
        return site.publish(&Image::new(all), &tag);
    }
    all.push(Layer::of(&[file("on-top", noise(99, 6_000_000))])?);
    site.publish_with(&Image::new(all), &tag, &WHOLE)
}

/// Both must refuse every image: we must not serve what unpacking refuses.
fn assert_refused(way: Way, cases: Vec<Case>) -> Result<()> {
    let site = Site::new("")?;
    let mut lines = Vec::new();
    for (name, layers) in cases {
        let reference = publish(&site, way, name, &layers)?;
        if site.node.pull(&reference, OVERLAYFS).is_ok() {
            lines.push(format!("{name}: the oracle accepts it"));
        }
        if site.node.pull(&reference, SOCI).is_ok() {
            lines.push(format!("{name}: was served"));
        }
    }
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}

#[test]
fn layers_without_a_ztoc_follow_the_same_rules_for_markers_and_names() -> Result<()> {
    assert_equal(
        Way::Whole,
        [
            markers::of_a_base_layer(),
            markers::of_a_layer_with_parents(),
            names::cleaned(),
            names::implied(),
            names::repeated(),
        ]
        .concat(),
    )
}

#[test]
fn layers_without_a_ztoc_follow_the_same_rules_for_kinds_and_attributes() -> Result<()> {
    assert_equal(
        Way::Whole,
        [
            kinds::sizes(),
            kinds::links_and_devices(),
            kinds::only_without_an_index(),
            attributes::plain(),
            attributes::extended(),
        ]
        .concat(),
    )
}

#[test]
fn global_headers_whose_names_have_an_effect_are_left_to_containerd() -> Result<()> {
    assert_as(Way::Whole, kinds::left_to_containerd(), true)
}

#[test]
fn layers_without_a_ztoc_that_unpacking_refuses_are_refused() -> Result<()> {
    assert_refused(
        Way::Whole,
        [
            markers::refused(),
            names::refused(),
            kinds::refused(),
            kinds::refused_by_convert_too(),
            attributes::refused(),
        ]
        .concat(),
    )
}
