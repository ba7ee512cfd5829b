//! The worker is killed again and again while containers read missing bytes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use soci_tests::image::{filter, noise};
use soci_tests::node::{NodeOptions, SOCI};
use soci_tests::relay::Shape;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{Entry, file};
use soci_tests::{Image, Site};

const FILES: u64 = 32;
const SIZE: usize = 1 << 20;
const KILLS: usize = 10;
const LIMIT: Duration = Duration::from_secs(30);

/// A node on a slow link, with an image whose container needs seconds to read its files.
fn slow_site(name: &str) -> Result<(Site, String)> {
    let options = NodeOptions {
        config: NOTHING_BEHIND.to_owned(),
        ..NodeOptions::default()
    };
    let shape = Shape {
        round_trip: Duration::from_millis(10),
        rate: Some(4 << 20),
        ..Shape::default()
    };
    let site = Site::with(options, shape)?;
    let entries: Vec<Entry> = (0..FILES)
        .map(|n| file(format!("f{n:02}"), noise(n + 1, SIZE)))
        .collect();
    let reference = site.publish(&Image::runnable(&[&entries])?, name)?;
    Ok((site, reference))
}

/// The expected output of `md5sum` for all files.
fn sums() -> Result<Vec<String>> {
    (0..FILES)
        .map(|n| {
            let said = filter("md5sum", &[], &noise(n + 1, SIZE))?;
            let said = String::from_utf8(said)?;
            let sum = said.split_whitespace().next().context("a sum")?;
            Ok(format!("{sum}  /f{n:02}"))
        })
        .collect()
}

/// The worker of a keeper, once it differs from `before`.
fn worker(keeper: u32, before: Option<u32>) -> Result<u32> {
    let start = Instant::now();
    loop {
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
        let workers: Vec<u32> = children
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        if let [worker] = workers[..]
            && Some(worker) != before
        {
            return Ok(worker);
        }
        ensure!(start.elapsed() < LIMIT, "workers: {workers:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills one worker after another while a container reads.
fn read_while_workers_die(site: &mut Site, reference: &str, id: &str) -> Result<()> {
    let keeper = site.node.snapshotter()?.pid();
    let (node, relay) = (&site.node, &site.relay);
    let before = relay.delivered();
    let said = std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let script = "md5sum /f[0-9][0-9]";
            node.run(reference, SOCI, id, &["/bin/sh", "-c", script])
        });
        // A call of containerd fails if its worker is killed, so wait until the container has
        // started.
        let start = Instant::now();
        while relay.delivered() < before + 2 * SIZE as u64 {
            ensure!(start.elapsed() < LIMIT, "the container does not read");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut before = None;
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_millis(300));
            let now = worker(keeper, before)?;
            let pid = i32::try_from(now).ok().and_then(Pid::from_raw);
            kill_process(pid.context("a process id")?, Signal::KILL)?;
            before = Some(now);
        }
        reading.join().expect("no panic")
    })?;
    let log = site.node.snapshotter_log();
    ensure!(
        said.code == Some(0),
        "{:?} {}\n{log}",
        said.code,
        said.stderr
    );
    let said: Vec<&str> = said.stdout.lines().collect();
    ensure!(said == sums()?, "{said:#?}\n{log}");
    Ok(())
}

#[test]
fn a_container_reads_on_while_the_worker_is_killed_ten_times() -> Result<()> {
    let (mut site, reference) = slow_site("killed:1")?;
    site.node.pull(&reference, SOCI)?;
    read_while_workers_die(&mut site, &reference, "reads")?;
    // containerd's calls are still answered.
    let again = site.node.run(&reference, SOCI, "after", &["/bin/true"])?;
    ensure!(again.code == Some(0), "{}", again.stderr);
    Ok(())
}

#[test]
fn a_worker_that_is_killed_while_it_mounts_leaves_a_state_that_works() -> Result<()> {
    let mut site = Site::new(NOTHING_BEHIND)?;
    let layers: Vec<Vec<Entry>> = (0..6)
        .map(|n| vec![file(format!("f{n}"), noise(n, 200_000))])
        .collect();
    let lists: Vec<&[Entry]> = layers.iter().map(Vec::as_slice).collect();
    let reference = site.publish(&Image::of(&lists)?, "mounts:1")?;
    let keeper = site.node.snapshotter()?.pid();
    let asked = |site: &Site| site.node.snapshotter_log().matches("prepar").count();
    for delay in [0, 3, 8, 15, 30, 50, 80, 120] {
        let before = asked(&site);
        let arguments = ["images", "pull", "--snapshotter", SOCI, &reference];
        let mut pull = site
            .node
            .ctr(arguments)?
            .spawn(&site.folder().join("pull.log"))?;
        // The time starts with the first layer that the daemon is asked for.
        let start = Instant::now();
        while asked(&site) == before && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(delay));
        let killed = worker(keeper, None)?;
        let pid = i32::try_from(killed).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id")?, Signal::KILL)?;
        worker(keeper, Some(killed))?;
        // Wait for its end, whether it fails or not. Its results must not make the next round
        // shorter.
        pull.wait_for_end(LIMIT)?;
        drop(site.node.remove_image(&reference));
    }
    let start = Instant::now();
    while let Err(error) = site.node.pull(&reference, SOCI) {
        ensure!(start.elapsed() < LIMIT, "{error:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let view = site.node.view(&reference, SOCI)?;
    for n in 0..6 {
        ensure!(
            fs::read(view.join(format!("f{n}")))? == noise(n, 200_000),
            "file {n}"
        );
    }
    Ok(())
}

#[test]
fn a_container_reads_on_with_a_journal_while_workers_are_killed() -> Result<()> {
    let (mut site, reference) = slow_site("journal:1")?;
    site.node.snapshotter()?.terminate(LIMIT)?;
    site.node
        .start_snapshotter_with(&[("SOCI_DEVICE_JOURNAL", "1")])?;
    let start = Instant::now();
    while let Err(error) = site.node.pull(&reference, SOCI) {
        ensure!(start.elapsed() < LIMIT, "{error:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
    read_while_workers_die(&mut site, &reference, "reads")
}
