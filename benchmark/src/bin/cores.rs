//! Compares building the zTOC of a layer, including the layer's digest, with one and several
//! threads. Each measurement runs in its own process; the thread counts take turns.
//!
//! Measures three forms of each layer: as given, with gzip members of 1 MiB, and in eStargz form,
//! where the content of each file, and the bytes between files, form members.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libz_sys as z;
use sha2::{Digest, Sha256};
use soci_benchmark::{Sample, median, sample};
use soci_ztoc::{
    BuildOptions, Builder, Compression, Entry, LayerInflate, Policy, TarScanner, TarSink,
};

/// Maximum content of a member of an eStargz layer, in bytes.
const CHUNK: u64 = 4 << 20;

/// Reads a layer and hashes it, as indexing an image does.
struct Hashed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(into)?;
        self.hasher.update(&into[..len]);
        Ok(len)
    }
}

fn build(threads: usize, path: &Path) -> Result<()> {
    let options = BuildOptions {
        threads: NonZeroUsize::new(threads).context("no threads")?,
        ..BuildOptions::default()
    };
    let mut layer = Hashed {
        inner: File::open(path)?,
        hasher: Sha256::new(),
    };
    let mut built = Builder::new(options).build(&mut layer, Compression::Gzip)?;
    std::hint::black_box(layer.hasher.finalize());
    built.encode(&mut io::sink())?;
    Ok(())
}

/// Start offsets of the members of an eStargz layer.
#[derive(Default)]
struct Cuts(Vec<u64>);

impl TarSink for Cuts {
    fn entry(&mut self, entry: &Entry<'_>) {
        let content = entry.content();
        if !content.is_empty() {
            let chunks = content.clone().step_by(CHUNK as usize);
            self.0.extend(chunks);
            self.0.push(content.end.next_multiple_of(512));
        }
    }
}

/// Compresses the archive as gzip members that start at these offsets.
fn write_members(tar: &[u8], cuts: &[u64], path: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut from = 0;
    for until in cuts.iter().map(|&cut| cut as usize).chain([tar.len()]) {
        if until > from {
            out.write_all(&member(&tar[from..until])?)?;
            from = until;
        }
    }
    Ok(out.flush()?)
}

fn member(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = Box::new(std::mem::MaybeUninit::<z::z_stream>::zeroed());
    let size = size_of::<z::z_stream>() as i32;
    // SAFETY: zlib requires null pointers before deflateInit2 and sets them. The stream is boxed,
    // so zlib's pointer to it stays valid. 31 selects gzip with a 32 KiB window.
    let code = unsafe {
        z::deflateInit2_(
            stream.as_mut_ptr(),
            6,
            z::Z_DEFLATED,
            31,
            8,
            0,
            z::zlibVersion(),
            size,
        )
    };
    ensure!(code == z::Z_OK, "deflateInit2: {code}");
    // SAFETY: deflateInit2 succeeded, so every field is initialized.
    let stream = unsafe { stream.assume_init_mut() };
    // SAFETY: the stream was initialized above.
    let bound = unsafe { z::deflateBound(stream, bytes.len() as _) };
    let mut out = vec![0; bound as usize];
    stream.next_in = bytes.as_ptr().cast_mut();
    stream.avail_in = u32::try_from(bytes.len())?;
    stream.next_out = out.as_mut_ptr();
    stream.avail_out = u32::try_from(out.len())?;
    // SAFETY: the input and output buffers are live and have the lengths set in the stream.
    let code = unsafe { z::deflate(stream, z::Z_FINISH) };
    out.truncate(out.len() - stream.avail_out as usize);
    // SAFETY: the stream was initialized above and is not used again.
    unsafe { z::deflateEnd(stream) };
    ensure!(code == z::Z_STREAM_END, "deflate: {code}");
    Ok(out)
}

fn measure(name: &str, path: &Path, bytes: usize, threads: usize, runs: usize) -> Result<()> {
    let own = std::env::current_exe()?;
    let mut samples: [Vec<Sample>; 2] = Default::default();
    for _ in 0..runs {
        for (threads, taken) in [1, threads].iter().zip(&mut samples) {
            let mut command = Command::new(&own);
            command.arg("--one").arg(threads.to_string()).arg(path);
            taken.push(sample(&mut command, &[])?);
        }
    }
    let rate = |s: &Sample| bytes as f64 / 1e6 / s.wall.as_secs_f64();
    let rates = samples
        .each_ref()
        .map(|taken| taken.iter().map(rate).collect::<Vec<_>>());
    for ((threads, taken), rates) in [1, threads].iter().zip(&samples).zip(&rates) {
        let raw: Vec<String> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
        let over = |of: fn(&Sample) -> f64| median(&taken.iter().map(of).collect::<Vec<_>>());
        println!(
            "  {name:9} {threads} threads {:5.0} MB/s  cpu {:.2} s  peak {:5.1} MiB  raw {}",
            median(rates),
            over(|s| s.cpu.as_secs_f64()),
            over(|s| s.peak_rss_kib as f64) / 1024.0,
            raw.join(" ")
        );
    }
    println!(
        "  {name:9} ratio {:.2}",
        median(&rates[1]) / median(&rates[0])
    );
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, threads, path] = args.as_slice()
        && flag == "--one"
    {
        return build(threads.parse()?, Path::new(path));
    }
    let [layer, folder, runs] = args.as_slice() else {
        anyhow::bail!("usage: cores LAYER.tar.gz FOLDER RUNS");
    };
    let (layer, folder, runs) = (PathBuf::from(layer), PathBuf::from(folder), runs.parse()?);
    let (mut tar, mut compressed) = (Vec::new(), Vec::new());
    File::open(&layer)?.read_to_end(&mut compressed)?;
    LayerInflate::new(Compression::Gzip)?
        .push(&compressed, |bytes| tar.extend_from_slice(bytes))?;
    drop(compressed);
    let mut cuts = Cuts::default();
    TarScanner::new(Policy::Ztoc).feed(&tar, &mut cuts)?;
    let (equal, estargz) = (folder.join("equal.gz"), folder.join("estargz.gz"));
    let every: Vec<u64> = (0..tar.len() as u64).step_by(1 << 20).skip(1).collect();
    write_members(&tar, &every, &equal)?;
    write_members(&tar, &cuts.0, &estargz)?;
    let bytes = tar.len();
    drop(tar);
    let threads = std::thread::available_parallelism()?.get().max(2);
    println!(
        "{}: {:.0} MB, {runs} runs",
        layer.display(),
        bytes as f64 / 1e6
    );
    measure("one", &layer, bytes, threads, runs)?;
    measure("1 MiB", &equal, bytes, threads, runs)?;
    measure("eStargz", &estargz, bytes, threads, runs)
}
