//! `O_DIRECT` in a container gives the same bytes as the page cache, for lazy and complete layers.

use std::path::Path;

use anyhow::{Result, ensure};
use soci_tests::cri::Container;
use soci_tests::image::{digest, noise};
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::walk::{self, How};
use soci_tests::{Image, Site};

/// Not a multiple of the block size.
const SIZE: usize = (2 << 20) + 777;

fn pulled(config: &str) -> Result<(Site, String)> {
    let site = Site::for_pods(config)?;
    let mut entries = vec![directory("d")];
    entries.extend((0..3).map(|n| file(format!("d/f{n}"), noise(n + 1, SIZE))));
    let reference = site.publish(&Image::runnable(&[&entries])?, "direct:1")?;
    site.node.pull(&reference, SOCI)?;
    Ok((site, reference))
}

/// Reads a file in the container's root directory in each of these ways, and compares.
fn assert_reads(root: &Path, n: u64, ways: &[How]) -> Result<()> {
    let want = digest(&noise(n + 1, SIZE));
    for &how in ways {
        let have = walk::read_hash(&root.join(format!("d/f{n}")), how)?;
        let have: String = have.iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(want.ends_with(&have), "f{n} read {how:?}: {have}");
    }
    Ok(())
}

/// The same with a program inside the container.
fn assert_program_reads(container: &Container<'_>, n: u64) -> Result<()> {
    let script = format!("dd if=/d/f{n} iflag=direct bs=65536 2>/dev/null | busybox sha256sum");
    let said = container.exec(&["/bin/sh", "-c", &script])?;
    let want = digest(&noise(n + 1, SIZE));
    let sum = said.stdout.split(' ').next().unwrap_or_default();
    ensure!(!sum.is_empty() && want.ends_with(sum), "f{n}: {said:?}");
    Ok(())
}

#[test]
fn direct_reads_fetch_missing_bytes() -> Result<()> {
    let (site, reference) = pulled(NOTHING_BEHIND)?;
    let cri = site.node.cri()?;
    let pod = cri.run_pod("lazy")?;
    let container = pod.start("main", &reference, &["/bin/sleep", "3600"])?;
    let root = site.node.root_of(container.id())?;
    assert_reads(&root, 0, &[How::Direct, How::DirectLater, How::Cached])?;
    assert_reads(&root, 1, &[How::DirectLater, How::Cached, How::Direct])?;
    assert_program_reads(&container, 2)?;
    pod.remove()
}

#[test]
fn direct_reads_of_a_complete_layer_are_correct() -> Result<()> {
    let (site, reference) = pulled("")?;
    let cri = site.node.cri()?;
    let pod = cri.run_pod("complete")?;
    let container = pod.start("main", &reference, &["/bin/sleep", "3600"])?;
    site.node.wait_complete(2)?;
    let root = site.node.root_of(container.id())?;
    for n in 0..3 {
        walk::drop_caches()?;
        assert_reads(&root, n, &[How::Direct, How::DirectLater, How::Cached])?;
        assert_program_reads(&container, n)?;
    }
    pod.remove()
}
