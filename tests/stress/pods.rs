//! The stress test for pods: sandboxes and containers are created through the CRI, like by a
//! kubelet, and commands run in them, while workers are killed.
//!
//! A call of containerd fails if its worker is killed, and like a kubelet, the test repeats it.
//! Running containers must not be affected: no command may fail or read a wrong byte.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use soci_tests::cri::{Container, Cri, Pod};
use soci_tests::image::{digest, noise};
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::unit::children;
use soci_tests::{Image, Site, walk};

const FILES: u64 = 24;
const SIZE: usize = 1 << 20;
const SLEEP: [&str; 2] = ["/bin/sleep", "3600"];
/// Duration: a fifth of that of the other stress test.
const LENGTH: Duration = Duration::from_secs(36);
/// How long a call is repeated before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Counters.
#[derive(Debug, Default)]
struct Counts {
    kills: AtomicU64,
    reads: AtomicU64,
    pods: AtomicU64,
    again: AtomicU64,
}

fn one_more(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Kills one worker after another, every 0.1 to 2 s.
fn kill_on(keeper: u32, over: &AtomicBool, counts: &Counts) {
    for step in 0_u64.. {
        let pause = 100 + step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1900;
        let until = Instant::now() + Duration::from_millis(pause);
        while Instant::now() < until {
            if over.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let worker = children(keeper).first().copied();
        let worker = worker.and_then(|worker| Pid::from_raw(i32::try_from(worker).ok()?));
        if worker.is_some_and(|worker| kill_process(worker, Signal::KILL).is_ok()) {
            one_more(&counts.kills);
        }
    }
}

/// Reads a file in a running container. It must not fail, whatever happens to the worker.
fn read(container: &Container<'_>, n: u64, counts: &Counts) -> Result<()> {
    let path = format!("/d/f{n}");
    let said = container.exec(&["/bin/busybox", "sha256sum", &path])?;
    let want = digest(&noise(n + 1, SIZE));
    let want = want.trim_start_matches("sha256:");
    let right = said.code == Some(0) && said.stdout.starts_with(want);
    ensure!(right, "{path}: {said:?}");
    one_more(&counts.reads);
    Ok(())
}

/// Creates a pod with a container, with as many attempts as necessary. Each attempt is a new pod.
fn start<'a>(
    cri: &'a Cri,
    reference: &str,
    number: &mut u64,
    counts: &Counts,
) -> Result<(Pod<'a>, Container<'a>)> {
    let begin = Instant::now();
    loop {
        *number += 1;
        let made = cri.run_pod(&format!("pod-{number}")).and_then(|pod| {
            let container = pod.start("main", reference, &SLEEP)?;
            Ok((pod, container))
        });
        match made {
            Ok(made) => {
                one_more(&counts.pods);
                return Ok(made);
            }
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(error.context("the pod does not start"));
            }
            Err(_) => one_more(&counts.again),
        }
    }
}

fn live_on(cri: &Cri, reference: &str, counts: &Counts) -> Result<()> {
    let mut number = 0;
    let (steady_pod, steady) = start(cri, reference, &mut number, counts)?;
    let end = Instant::now() + LENGTH;
    let mut n = 0;
    while Instant::now() < end {
        // Data that was read before is read from disk again, not from the page cache.
        walk::drop_caches()?;
        let (pod, container) = start(cri, reference, &mut number, counts)?;
        for _ in 0..3 {
            n = (n + 7) % FILES;
            read(&steady, n, counts)?;
            read(&container, (n + 1) % FILES, counts)?;
        }
        // If a kill interrupts the removal, the sandbox is removed with the node.
        if pod.remove().is_err() {
            one_more(&counts.again);
        }
    }
    drop(steady_pod);
    Ok(())
}

#[test]
fn pods_start_and_read_on_while_workers_are_killed() -> Result<()> {
    let mut site = Site::for_pods(NOTHING_BEHIND)?;
    let mut entries = vec![directory("d")];
    entries.extend((0..FILES).map(|n| file(format!("d/f{n}"), noise(n + 1, SIZE))));
    let reference = site.publish(&Image::runnable(&[&entries])?, "pods:1")?;
    site.node.pull(&reference, SOCI)?;
    let keeper = site.node.snapshotter()?.pid();
    let cri = site.node.cri()?;
    let (over, counts) = (AtomicBool::new(false), Counts::default());
    let lived = std::thread::scope(|scope| {
        scope.spawn(|| kill_on(keeper, &over, &counts));
        let lived = live_on(&cri, &reference, &counts);
        over.store(true, Ordering::SeqCst);
        lived
    });
    lived.with_context(|| format!("{counts:?}\n{}", site.node.snapshotter_log()))?;
    let kills = counts.kills.load(Ordering::Relaxed);
    ensure!(kills > 10, "{counts:?}: the worker was hardly killed");
    ensure!(counts.reads.load(Ordering::Relaxed) > 0, "{counts:?}");
    Ok(())
}
