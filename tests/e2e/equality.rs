//! The same image unpacked by containerd and mounted by us, path by path. One case for every rule of how containerd
//! applies an archive: on a base layer, on a layer with parents, and where it refuses.

mod attributes;
mod kinds;
mod markers;
mod names;
mod real;

use anyhow::{Context, Result};
use soci_tests::node::{OVERLAYFS, SOCI};
use soci_tests::tar::Entry;
use soci_tests::{Image, Site, walk};

/// A named image: the entries of its layers from the lowest up.
type Case = (&'static str, Vec<Vec<Entry>>);

/// Every image must show the same under both snapshotters, and all of it lazily.
fn assert_equal(cases: Vec<Case>) -> Result<()> {
    let start = walk::now();
    let site = Site::new("")?;
    let mut lines = Vec::new();
    for (name, layers) in cases {
        let before = site.node.snapshotter_log().len();
        match differences(&site, name, &layers, start) {
            Ok(different) => {
                lines.extend(different.into_iter().map(|line| format!("{name}: {line}")))
            }
            Err(error) => lines.push(format!("{name}: {error:#}")),
        }
        let log = site.node.snapshotter_log();
        let said = log.get(before..).unwrap_or_default();
        if said.contains("defer-snapshot-runtime") {
            lines.push(format!("{name}: was left to containerd:\n{said}"));
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

fn differences(site: &Site, name: &str, layers: &[Vec<Entry>], start: i64) -> Result<Vec<String>> {
    let lists: Vec<&[Entry]> = layers.iter().map(Vec::as_slice).collect();
    let reference = site
        .publish(&Image::of(&lists)?, &format!("{name}:1"))
        .context("publish")?;
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

/// Every image must be refused under both: what unpacking refuses is not served as if it were fine.
fn assert_refused(cases: Vec<Case>) -> Result<()> {
    let site = Site::new("")?;
    let mut lines = Vec::new();
    for (name, layers) in cases {
        let lists: Vec<&[Entry]> = layers.iter().map(Vec::as_slice).collect();
        let reference = site.publish(&Image::of(&lists)?, &format!("{name}:1"))?;
        if site.node.pull(&reference, OVERLAYFS).is_ok() {
            lines.push(format!("{name}: the oracle takes it"));
        }
        if site.node.pull(&reference, SOCI).is_ok() {
            lines.push(format!("{name}: was served"));
        }
    }
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}
