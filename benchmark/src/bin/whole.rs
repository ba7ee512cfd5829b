//! Measures the pass over whole layers: from compressed bytes in memory to the files of a layer,
//! without a network. Each sample is a process of its own.
//!
//! `whole LAYER... [--runs N]`: several layers are pulled at once.
//! Each of them without and with a zTOC that is made in passing (`build_index`).
//! Prints wall time, CPU time, and peak RSS beyond the bytes of the layers.

use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};
use soci_benchmark::{Sample, median, sample};
use soci_oci::{Descriptor, Digest};
use soci_registry::testing::MemoryBlob;
use soci_snapshotter::cpu::Cpu;
use soci_snapshotter::fetch::{self, Scheduler, Source};
use soci_snapshotter::layer::{Layers, Options, Whole, WholeOptions};
use soci_snapshotter::store::{LayerStore, sources::Origin};
use soci_ztoc::{LayerDecoder, LayerFormat};

/// The diff-ID of a layer.
fn diff_id(layer: &[u8]) -> Result<Digest> {
    let mut decoder = LayerDecoder::new(LayerFormat::sniff(layer))?;
    let (mut left, mut room) = (layer, vec![0; 1 << 20]);
    let mut digest = Sha256::new();
    loop {
        let filled = decoder.fill(&mut left, &mut room)?;
        digest.update(&room[..filled]);
        if filled < room.len() {
            return Ok(Digest::from_sha256(digest.finalize().into()));
        }
    }
}

fn pull(paths: &[String], diff_ids: &[String], indexes: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let root = tempfile::tempdir_in(".")?;
    runtime.block_on(async {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let handle = tokio::runtime::Handle::current();
        let layers = Layers::new(
            Arc::new(LayerStore::open(root.path(), None)?),
            Cpu::new(cores)?,
            Scheduler::start(fetch::Options::default(), &handle),
            Options {
                whole: WholeOptions {
                    indexes,
                    ..WholeOptions::default()
                },
                ..Options::default()
            },
            &handle,
        );
        let mut tasks = tokio::task::JoinSet::new();
        for (order, (path, diff_id)) in paths.iter().zip(diff_ids).enumerate() {
            let bytes = std::fs::read(path)?;
            let mut whole = Whole {
                layer: Descriptor::of("application/vnd.oci.image.layer.v1.tar", &bytes),
                diff_id: diff_id.parse()?,
                order: order as u64,
                origin: Origin {
                    reference: "registry.example/app:1".to_owned(),
                    manifest: String::new(),
                    index: None,
                    found: String::new(),
                },
                sources: Vec::new(),
                keep: None,
            };
            let blob = Arc::new(MemoryBlob::new(bytes));
            whole.sources = vec![Source::new("registry.example", "app", blob)];
            let layers = Arc::clone(&layers);
            tasks.spawn(async move { layers.stream_whole(whole).await.map(drop) });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    })
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(flag) = args.first().filter(|flag| flag.starts_with("--one")) {
        let (paths, diff_ids) = args[1..].split_at((args.len() - 1) / 2);
        return pull(paths, diff_ids, flag == "--one-indexed");
    }
    let (mut runs, mut layers, mut rest) = (5, Vec::new(), args.into_iter());
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--runs" => runs = rest.next().context("--runs needs a number")?.parse()?,
            _ => layers.push(arg),
        }
    }
    ensure!(!layers.is_empty(), "usage: whole LAYER... [--runs N]");
    let mut diff_ids = Vec::new();
    for layer in &layers {
        diff_ids.push(diff_id(&std::fs::read(layer)?)?.to_string());
    }
    for cpus in [&[0][..], &[]] {
        for indexes in [false, true] {
            compare(&layers, &diff_ids, cpus, indexes, runs)?;
        }
    }
    Ok(())
}

/// Measures one variant and prints it.
fn compare(
    layers: &[String],
    diff_ids: &[String],
    cpus: &[usize],
    indexes: bool,
    runs: usize,
) -> Result<()> {
    let own = std::env::current_exe()?;
    let (flag, how) = match indexes {
        true => ("--one-indexed", "indexed in passing"),
        false => ("--one", "not indexed"),
    };
    let mut samples: Vec<Sample> = Vec::new();
    for _ in 0..runs {
        let mut command = Command::new(&own);
        command.arg(flag).args(layers).args(diff_ids);
        samples.push(sample(&mut command, cpus)?);
    }
    let of = |figure: fn(&Sample) -> f64| median(&samples.iter().map(figure).collect::<Vec<_>>());
    println!(
        "{} layers on {} cores, {how}: wall {:.2} s, CPU {:.2} s, peak {:.0} MiB (with the layers in memory)",
        layers.len(),
        match cpus.len() {
            0 => "all".to_owned(),
            count => count.to_string(),
        },
        of(|s| s.wall.as_secs_f64()),
        of(|s| s.cpu.as_secs_f64()),
        of(|s| s.peak_rss_kib as f64) / 1024.0,
    );
    Ok(())
}
