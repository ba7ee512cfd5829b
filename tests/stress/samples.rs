//! Samples of memory, descriptors and loop devices, and the check that they do not grow.

use std::fs;
use std::time::{Duration, Instant};

use soci_tests::Node;
use soci_tests::unit::Keeping;

use crate::world::{World, lock};

/// One sample.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) second: u64,
    pub(crate) main_kilobytes: u64,
    pub(crate) main_descriptors: u64,
    pub(crate) worker_kilobytes: u64,
    pub(crate) worker_descriptors: u64,
    pub(crate) loops: u64,
    /// Loop devices on the FUSE mount, that is, of incomplete layers.
    pub(crate) lazy: u64,
    pub(crate) kept: u64,
}

/// Takes a sample at this interval until the end of the test.
pub(crate) fn go_on(world: &World, every: Duration) -> Vec<Sample> {
    let start = Instant::now();
    let mut samples = Vec::new();
    while !world.is_over() {
        world.sleep(every);
        samples.push(look(world, start));
    }
    samples
}

fn look(world: &World, start: Instant) -> Sample {
    let (main, worker, kept) = {
        let service = lock(&world.service);
        // A daemon without a keeper is its own worker and needs as much memory as one.
        let main = service
            .main()
            .filter(|_| service.keeping() != Keeping::Alone);
        (main, service.worker(), service.kept().len())
    };
    let (loops, lazy) = loops(&world.node);
    let memory = |process: Option<u32>| process.map_or(0, resident);
    let open = |process: Option<u32>| process.map_or(0, descriptors);
    Sample {
        second: start.elapsed().as_secs(),
        main_kilobytes: memory(main),
        main_descriptors: open(main),
        worker_kilobytes: memory(worker),
        worker_descriptors: open(worker),
        loops,
        lazy,
        kept: kept as u64,
    }
}

fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

fn descriptors(process: u32) -> u64 {
    let open = fs::read_dir(format!("/proc/{process}/fd"));
    open.map_or(0, |open| open.count() as u64)
}

/// Number of loop devices on files of the node's store, and of those on its FUSE mount.
pub(crate) fn loops(node: &Node) -> (u64, u64) {
    let root = format!("{}/", node.root().display());
    let served: Vec<String> = node
        .mounts()
        .unwrap_or_default()
        .iter()
        .filter(|line| line.contains(" - fuse"))
        .filter_map(|line| Some(format!("{}/", line.split(' ').nth(4)?)))
        .collect();
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let files = devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    let ours: Vec<String> = files.filter(|file| file.starts_with(&root)).collect();
    let lazy = ours
        .iter()
        .filter(|file| served.iter().any(|mount| file.starts_with(mount)));
    (ours.len() as u64, lazy.count() as u64)
}

/// The values that grew from the second quarter to the second half by more than their tolerance.
/// The first quarter contains the first pulls. Runs of less than two minutes are not checked.
pub(crate) fn grown(samples: &[Sample]) -> Vec<String> {
    const ENOUGH: usize = 60;
    if samples.len() < ENOUGH {
        return Vec::new();
    }
    type Of = fn(&Sample) -> u64;
    // A name, the value, and the tolerance.
    let values: [(&str, Of, u64); 6] = [
        ("memory of the main process, kB", |s| s.main_kilobytes, 8192),
        ("descriptors of the main process", |s| s.main_descriptors, 8),
        ("memory of the worker, kB", |s| s.worker_kilobytes, 65_536),
        ("descriptors of the worker", |s| s.worker_descriptors, 64),
        ("loop devices", |s| s.loops, 24),
        ("descriptors kept by systemd", |s| s.kept, 2),
    ];
    let (first, last) = samples.split_at(samples.len() / 2);
    let first = &first[first.len() / 2..];
    values
        .into_iter()
        .filter_map(|(name, of, chance)| {
            let (before, after) = (middle(first, of), middle(last, of));
            (after > before + before / 4 + chance)
                .then(|| format!("{name}: {before}, later {after}"))
        })
        .collect()
}

/// The median, or 0 for an empty list.
fn middle(samples: &[Sample], of: fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
