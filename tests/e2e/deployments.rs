//! The ways in which nodes use the snapshotter: both series of containerd with pods, several
//! namespaces, imports, pulls that end early, and a snapshotter that starts after containerd.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::{NodeOptions, SOCI};
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{Entry, file};
use soci_tests::{Image, Series, Shape, Site, loops, process, stored};

const LIMIT: Duration = Duration::from_secs(20);
const REMOTE: &str = "remote snapshot successfully prepared.";

fn entries() -> Vec<Entry> {
    vec![file("big", noise(1, 2 << 20)), file("small", "small\n")]
}

/// A lazy image of two layers.
fn publish(site: &Site) -> Result<String> {
    site.publish(&Image::runnable(&[&entries()])?, "deployed:1")
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Two pods of one image run at once, on sandboxes of our snapshotter.
fn runs_two_pods(series: Series) -> Result<()> {
    let site = Site::for_pods_of(series, NOTHING_BEHIND)?;
    let reference = publish(&site)?;
    let cri = site.node.cri()?;
    cri.pull(&reference)?;
    let pods = [cri.run_pod("one")?, cri.run_pod("two")?];
    let log = site.node.snapshotter_log();
    let lazy = log.matches(REMOTE).count();
    ensure!(lazy == 2, "{lazy} layers are lazy, not 2:\n{log}");
    for pod in &pods {
        let container = pod.start("main", &reference, &["/bin/sleep", "3600"])?;
        let said = container.exec(&["/bin/cat", "/small"])?;
        ensure!(said.stdout == "small\n", "{said:?}");
        let said = container.exec(&["/bin/sh", "-c", "echo new > /new && cat /new"])?;
        ensure!(said.stdout == "new\n", "{said:?}");
    }
    let [one, two] = pods;
    one.remove()?;
    two.remove()
}

#[test]
fn two_pods_of_one_image_run_on_containerd_2() -> Result<()> {
    runs_two_pods(Series::Current)
}

#[test]
fn two_pods_of_one_image_run_on_containerd_1_7() -> Result<()> {
    runs_two_pods(Series::V1_7)
}

#[test]
fn an_image_in_two_namespaces_lives_until_both_remove_it() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let reference = publish(&site)?;
    let run = |namespace: &str| {
        let id = format!("in-{namespace}-{}", std::process::id());
        let arguments = ["run", "--rm", "--snapshotter", SOCI, &reference, &id];
        let said = site
            .node
            .ctr(["--namespace", namespace])?
            .args(arguments)
            .args(["/bin/cat", "/small"])
            .succeed()?;
        ensure!(said == "small\n", "{said}");
        Ok(())
    };
    let remove = |namespace: &str| {
        let rm = ["images", "rm", "--sync", &reference];
        site.node
            .ctr(["--namespace", namespace])?
            .args(rm)
            .succeed()
    };
    let mut received = Vec::new();
    for namespace in ["one", "two"] {
        let before = site.relay.delivered();
        let pull = ["images", "pull", "--snapshotter", SOCI, &reference];
        site.node
            .ctr(["--namespace", namespace])?
            .args(pull)
            .succeed()?;
        run(namespace)?;
        received.push(site.relay.delivered() - before);
    }
    ensure!(
        received[1] < received[0] / 4,
        "layers are shared: {received:?}"
    );
    remove("one")?;
    run("two")?;
    remove("two")?;
    until("the layers are removed", || {
        Ok(stored::layers(site.node.root())?.is_empty())
    })?;
    ensure!(loops::below(site.node.root())?.is_empty());
    Ok(())
}

#[test]
fn a_pull_that_is_cancelled_stops_its_downloads() -> Result<()> {
    let options = NodeOptions {
        config: NOTHING_BEHIND.to_owned(),
        ..NodeOptions::default()
    };
    let shape = Shape {
        rate: Some(8 << 20),
        ..Shape::default()
    };
    let site = Site::with(options, shape)?;
    // Only the larger layer gets a zTOC. The other one is downloaded during the pull.
    let layers: [&[Entry]; 2] = [
        &[file("whole", noise(3, 32 << 20))],
        &[file("lazy", noise(4, 33 << 20))],
    ];
    let least = (65 << 19).to_string();
    let arguments = ["--min-layer-size", &least, "--span-size", "65536"];
    let reference = site.publish_with(&Image::of(&layers)?, "cancelled:1", &arguments)?;
    let before = site.relay.delivered();
    let pull = ["images", "pull", "--snapshotter", SOCI, &reference];
    let mut pulling = site
        .node
        .ctr(pull)?
        .spawn(&site.folder().join("pull.log"))?;
    until("the layer is being downloaded", || {
        Ok(site.relay.delivered() > before + (1 << 20))
    })?;
    pulling.kill(LIMIT)?;
    until("the download stops", || {
        let some = site.relay.delivered();
        std::thread::sleep(Duration::from_millis(500));
        Ok(site.relay.delivered() == some)
    })?;
    let received = site.relay.delivered() - before;
    ensure!(received < 24 << 20, "{received} bytes were downloaded");
    Ok(())
}

#[test]
fn an_import_is_unpacked_by_containerd() -> Result<()> {
    let site = Site::new("")?;
    let image = Image::runnable(&[&entries()])?;
    site.import("imported:1", &[("amd64", &image)])?;
    let archive = site.folder().join("layouts/imported-1.tar");
    site.node
        .ctr(["images", "import", "--local", "--snapshotter", SOCI])?
        .args([&archive])
        .succeed()?;
    let said = site
        .node
        .run("imported:1", SOCI, "imported", &["/bin/cat", "/small"])?;
    ensure!(said.stdout == "small\n", "{}", said.stderr);
    let mounts = site.node.mounts()?;
    ensure!(
        !mounts.iter().any(|line| line.contains(" - erofs")),
        "{mounts:#?}"
    );
    Ok(())
}

#[test]
fn containerd_may_start_before_the_snapshotter_and_run_without_it() -> Result<()> {
    let options = NodeOptions {
        config: NOTHING_BEHIND.to_owned(),
        service_apart: true,
        ..NodeOptions::default()
    };
    let mut site = Site::with(options, Shape::default())?;
    let reference = publish(&site)?;
    let Err(error) = site.node.pull(&reference, SOCI) else {
        anyhow::bail!("there is no snapshotter yet");
    };
    let error = format!("{error:#}");
    ensure!(error.contains("soci.sock"), "it names the socket: {error}");
    site.node.pull(&reference, "overlayfs")?;
    site.node.start_snapshotter()?;
    until("containerd connects", || {
        Ok(site.node.pull(&reference, SOCI).is_ok())
    })?;
    let said = site
        .node
        .run(&reference, SOCI, "late", &["/bin/cat", "/small"])?;
    ensure!(said.stdout == "small\n", "{}", said.stderr);
    Ok(())
}

/// Resident memory of the daemon and its children, in KiB, without pages of files.
fn anonymous(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for pid in process::descendants(pid)?.into_iter().chain([pid]) {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_ascii_whitespace().next());
        sum += number.context("RssAnon")?.parse::<u64>()?;
    }
    Ok(sum)
}

#[test]
fn twenty_pulls_and_removals_leave_nothing() -> Result<()> {
    const ROUNDS: usize = 20;
    const WARM: usize = 5;
    let mut site = Site::new("")?;
    let reference = publish(&site)?;
    let (mounts, pid) = (site.node.mounts()?, site.node.snapshotter()?.pid());
    let mut warm = 0;
    for round in 1..=ROUNDS {
        site.node.pull(&reference, SOCI)?;
        let id = format!("round-{round}");
        let said = site
            .node
            .run(&reference, SOCI, &id, &["/bin/cat", "/small"])?;
        ensure!(said.stdout == "small\n", "{}", said.stderr);
        site.node.remove_image(&reference)?;
        if round == WARM {
            warm = anonymous(pid)?;
        }
    }
    let root = site.node.root();
    until(
        "layers are removed",
        || Ok(stored::layers(root)?.is_empty()),
    )?;
    let left = fs::read_dir(root.join("snapshotter/snapshots"))?.count();
    ensure!(left == 0, "{left} directories are left");
    ensure!(site.node.mounts()? == mounts, "{:#?}", site.node.mounts()?);
    ensure!(loops::below(root)?.is_empty());
    let grown = anonymous(pid)?.saturating_sub(warm);
    ensure!(grown < 4 << 10, "{grown} KiB more than after {WARM} rounds");
    Ok(())
}
