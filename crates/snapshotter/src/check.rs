//! `soci-snapshotter-grpc check`: whether this node can load layers lazily, and what to change if
//! it cannot.
//!
//! Each part looks at one thing and returns rows: what was found, and a remedy if something is
//! wrong. Parts separate facts (read from the machine) from the judgement on them (a pure function).
//! A check changes nothing, except that it mounts a tiny image for a moment in the state directory,
//! and that [`Change`](crate::args::Change) edits containerd's configuration on request.

mod containerd;
mod disk;
mod image;
mod kernel;
mod mounting;
mod row;
mod settings;
mod socket;

use std::io::{self, Write};

use tokio::signal::unix::{SignalKind, signal};

pub use self::row::{Level, Report, Row};

use crate::args::{CheckArgs, Part};
use crate::config::Config;

/// Checks and prints the result. Returns whether nothing is a problem.
pub fn run(options: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let Some(pause) = options.watch else {
        let report = runtime.block_on(check(options));
        print(&report, options.json, out)?;
        return Ok(report.is_ok());
    };
    let mut end = runtime.block_on(async { signal(SignalKind::terminate()) })?;
    let mut shown: Option<Report> = None;
    loop {
        let report = runtime.block_on(check(options));
        // Only changes are printed, so that the log of a pod stays readable.
        if !shown.as_ref().is_some_and(|shown| shown.agrees(&report)) {
            print(&report, options.json, out)?;
        }
        shown = Some(report);
        let ended = runtime.block_on(async { tokio::time::timeout(pause, end.recv()).await });
        if ended.is_ok() {
            return Ok(true);
        }
    }
}

fn print(report: &Report, json: bool, out: &mut dyn Write) -> io::Result<()> {
    match json {
        true => writeln!(out, "{}", report.json())?,
        false => write!(out, "{report}")?,
    }
    out.flush()
}

/// Runs the parts that are asked for.
pub async fn check(options: &CheckArgs) -> Report {
    let mut rows = Vec::new();
    let loaded = Config::load(&options.daemon.config);
    let config = loaded.as_ref().cloned().unwrap_or_default();
    if options.wants(Part::Kernel) {
        rows.extend(kernel::rows(&kernel::Facts::read()));
    }
    if options.wants(Part::Config) {
        rows.extend(settings::rows(&options.daemon.config, &loaded));
    }
    if options.wants(Part::Disk) {
        rows.push(disk::row(&options.daemon.root));
    }
    if options.wants(Part::Mount) {
        rows.extend(mounting::rows(&options.daemon.root, config.snapshotter.mount).await);
    }
    if options.wants(Part::Containerd) {
        let node = containerd::Node {
            config: &options.containerd,
            socket: options.socket(),
            root: &options.daemon.root,
        };
        rows.extend(containerd::rows(&node, options.change));
    }
    if options.wants(Part::Socket) {
        rows.push(socket::row(options.socket()).await);
    }
    if let Some(name) = options
        .image
        .as_deref()
        .filter(|_| options.wants(Part::Image))
    {
        rows.extend(image::rows(name, &config).await);
    }
    Report { rows }
}
