//! Pods, started like by a kubelet: lazily, across a restart of the snapshotter, and with broken
//! state.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use soci_tests::cri::Container;
use soci_tests::image::{digest, noise};
use soci_tests::node::{NodeOptions, SOCI};
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Site, stored};

const SIZE: usize = 2 << 20;
const LIMIT: Duration = Duration::from_secs(15);
const SLEEP: [&str; 2] = ["/bin/sleep", "3600"];

/// A node for pods and a lazy image with files `/d/f0` to `/d/f3`, which has been pulled.
fn pulled(config: &str) -> Result<(Site, String)> {
    let site = Site::for_pods(&format!("{NOTHING_BEHIND}{config}"))?;
    let mut entries = vec![directory("d")];
    entries.extend((0..4).map(|n| file(format!("d/f{n}"), noise(n + 1, SIZE))));
    let reference = site.publish(&Image::runnable(&[&entries])?, "pod:1")?;
    site.node.pull(&reference, SOCI)?;
    Ok((site, reference))
}

/// Reads file `n` in the container and compares.
fn assert_reads(container: &Container<'_>, n: u64) -> Result<()> {
    let path = format!("/d/f{n}");
    let said = container.exec(&["/bin/busybox", "sha256sum", &path])?;
    let want = digest(&noise(n + 1, SIZE));
    let want = want.trim_start_matches("sha256:");
    ensure!(
        said.code == Some(0) && said.stdout.starts_with(want),
        "{path}: {said:?}"
    );
    Ok(())
}

#[test]
fn a_pod_reads_files_of_a_lazy_image() -> Result<()> {
    let (site, reference) = pulled("")?;
    let log = site.node.snapshotter_log();
    let lazy = log.matches("remote snapshot successfully prepared.");
    assert_eq!(lazy.count(), 2, "every layer is lazy:\n{log}");
    let cri = site.node.cri()?;
    let pod = cri.run_pod("reader")?;
    let before = site.relay.delivered();
    let container = pod.start("main", &reference, &SLEEP)?;
    assert_reads(&container, 2)?;
    let came = site.relay.delivered() - before;
    assert!(
        came < 2 * SIZE as u64 + SIZE as u64 / 2,
        "{came} bytes came, and one file of four was read"
    );
    for n in 0..4 {
        assert_reads(&container, n)?;
    }
    pod.remove()
}

#[test]
fn a_pod_reads_on_while_the_snapshotter_is_killed_and_started_again() -> Result<()> {
    let (mut site, reference) = pulled("")?;
    let cri = site.node.cri()?;
    let pod = cri.run_pod("survivor")?;
    let container = pod.start("main", &reference, &SLEEP)?;
    assert_reads(&container, 0)?;
    for n in 1..4 {
        site.node.snapshotter()?.kill_all(LIMIT)?;
        site.node.start_snapshotter()?;
        assert_reads(&container, n)?;
    }
    pod.remove()
}

#[test]
fn a_pod_starts_while_the_registry_is_down_and_a_reader_waits_for_it() -> Result<()> {
    let (site, reference) = pulled("")?;
    let cri = site.node.cri()?;
    // The sandbox image was pulled with it.
    let pod = cri.run_pod("waiting")?;
    let container = pod.start("main", &reference, &SLEEP)?;
    assert_reads(&container, 0)?;
    site.relay.cut();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| assert_reads(&container, 1));
        let started = assert_starts_pods(&site, "beside");
        let waits = !reader.is_finished();
        site.relay.restore();
        reader.join().expect("no panic")?;
        ensure!(waits, "the reader waits for the registry");
        started
    })?;
    pod.remove()
}

#[test]
fn a_pod_starts_when_the_layer_store_cannot_be_used() -> Result<()> {
    // The sandbox image is unpacked by containerd, so that it does not need the store.
    let left = "[pull_modes.parallel_pull_unpack]\nenable = false\n";
    starts_pods_after("no-store", left, |root| {
        let layers = stored::folder(root);
        fs::rename(&layers, root.join("layers-before"))?;
        Ok(fs::write(layers, "not a directory")?)
    })
}

#[test]
fn a_pod_starts_when_the_records_of_snapshots_are_damaged() -> Result<()> {
    starts_pods_after("no-records", "", |root| {
        let records = root.join("snapshotter/snapshots.redb");
        ensure!(records.exists(), "the records are elsewhere");
        Ok(fs::write(records, vec![0x5a; 1 << 16])?)
    })
}

#[test]
fn a_pod_starts_where_nothing_can_be_mounted_lazily() -> Result<()> {
    let site = Site::for_pods("[snapshotter]\nmount = \"none\"\n")?;
    let cri = site.node.cri()?;
    cri.run_pod("first")?.remove()?;
    assert_starts_pods(&site, "none")
}

/// Stops the snapshotter, breaks its state directory and starts it again. Pods must still start.
fn starts_pods_after(name: &str, config: &str, damage: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let mut site = Site::for_pods(&format!("{NOTHING_BEHIND}{config}"))?;
    let cri = site.node.cri()?;
    cri.run_pod("before")?.remove()?;
    site.node.snapshotter()?.kill(LIMIT)?;
    damage(site.node.root()).context("damage")?;
    site.node.start_snapshotter()?;
    wait_connected(&site)?;
    assert_starts_pods(&site, name)
}

/// containerd can take some seconds to reconnect to a restarted snapshotter.
fn wait_connected(site: &Site) -> Result<()> {
    let start = Instant::now();
    while let Err(error) = site
        .node
        .ctr(["snapshots", "--snapshotter", SOCI, "usage", "nobody"])?
        .succeed()
        && !error.to_string().contains("not found")
    {
        ensure!(start.elapsed() < Duration::from_secs(30), "{error:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A pod starts, and a snapshot on the sandbox image is prepared within a second.
fn assert_starts_pods(site: &Site, name: &str) -> Result<()> {
    let log = || site.node.snapshotter_log();
    let cri = site.node.cri()?;
    let pod = cri
        .run_pod(name)
        .with_context(|| format!("no pod starts:\n{}", log()))?;
    let layer = Image::pause()?.layers[0].diff_id();
    let prepare = ["snapshots", "--snapshotter", SOCI, "prepare", name, &layer];
    let start = Instant::now();
    site.node.ctr(prepare)?.succeed()?;
    let took = start.elapsed();
    ensure!(
        took < Duration::from_secs(1),
        "Prepare took {took:?}:\n{}",
        log()
    );
    pod.remove()
}

/// IDs of the node that the pod's IDs from 0 on become.
const FIRST_ID: u32 = 300_000;

#[test]
fn a_pod_in_a_user_namespace_has_the_owners_of_the_image() -> Result<()> {
    let site = Site::for_pods_with(NodeOptions {
        config: NOTHING_BEHIND.to_owned(),
        remaps: true,
        ..NodeOptions::default()
    })?;
    let entries = [
        directory("d"),
        file("d/root", noise(1, SIZE)),
        file("d/other", "other\n").owner(5, 7),
    ];
    let reference = site.publish(&Image::runnable(&[&entries])?, "mapped:1")?;
    let cri = site.node.cri()?;
    cri.pull(&reference)?;
    let pod = cri.run_pod_mapped("mapped", FIRST_ID)?;
    let container = pod.start("main", &reference, &SLEEP)?;
    let shell = "cat /proc/self/uid_map && id -u && stat -c '%u:%g %n' /d/root /d/other && \
                 echo new >/d/new && stat -c '%u:%g %n' /d/new";
    let said = container.exec(&["/bin/sh", "-c", shell])?;
    let words: Vec<_> = said.stdout.split_ascii_whitespace().collect();
    let want = [
        "0", "300000", "65536", "0", "0:0", "/d/root", "5:7", "/d/other", "0:0", "/d/new",
    ];
    ensure!(words == want, "{said:?}");
    // The host sees other owners, and the layers are shown, not copied.
    let root = site.node.root_of(container.id())?;
    let owner = |name: &str| Ok::<_, anyhow::Error>(root.join(name).metadata()?.uid());
    ensure!(owner("d/other")? == FIRST_ID + 5 && owner("d/new")? == FIRST_ID);
    let mounts = site.node.mounts()?;
    let mapped = mounts.iter().filter(|line| line.contains("idmapped"));
    ensure!(mapped.count() >= 2, "{mounts:#?}");
    pod.remove()
}
