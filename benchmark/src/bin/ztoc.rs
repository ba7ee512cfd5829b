//! Compares building a zTOC with the reference implementation's loop over C zlib and with plain
//! inflation.
//!
//! usage: ztoc LAYER.tar.gz... [--runs N]
//!
//! Each measurement runs in its own process on one CPU and reads the layer from the page cache. The
//! contenders take turns. Rates count uncompressed bytes.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use soci_benchmark::{Sample, median, sample};

const CONTENDERS: [&str; 3] = ["c-loop", "inflate", "build"];
/// The span size of the index. The reference stops at every block, regardless of its value.
const SPAN: i64 = 4 << 20;

/// The loop of the reference: 16 KiB of input, the 32 KiB window as a circular output buffer, and a
/// stop at every block. Covers only the index pass; the reference reads the layer twice more, for
/// its files and its digests.
fn c_loop(path: &Path) -> Result<u64> {
    use libz_sys as z;
    const WINDOW: usize = 32 << 10;
    let mut file = File::open(path)?;
    let (mut input, mut window) = (vec![0u8; 16 << 10], vec![0u8; WINDOW]);
    let mut checkpoints: Vec<Vec<u8>> = Vec::new();
    let (mut out, mut last) = (0u64, 0u64);
    let mut stream = Box::new(std::mem::MaybeUninit::<z::z_stream>::zeroed());
    // SAFETY: zlib requires null pointers before inflateInit2 and sets them. The stream is boxed,
    // so zlib's pointer to it stays valid. 47 selects gzip or zlib with a 32 KiB window.
    let code = unsafe {
        z::inflateInit2_(
            stream.as_mut_ptr(),
            47,
            z::zlibVersion(),
            size_of::<z::z_stream>() as i32,
        )
    };
    ensure!(code == z::Z_OK, "inflateInit2: {code}");
    // SAFETY: inflateInit2 succeeded, so every field is initialized.
    let stream = unsafe { stream.assume_init_mut() };
    'file: loop {
        let n = file.read(&mut input)?;
        if n == 0 {
            bail!("{}: truncated", path.display());
        }
        stream.avail_in = n as u32;
        stream.next_in = input.as_mut_ptr();
        while stream.avail_in > 0 {
            if stream.avail_out == 0 {
                stream.avail_out = WINDOW as u32;
                stream.next_out = window.as_mut_ptr();
            }
            let before = stream.avail_out;
            // SAFETY: next_in and next_out point into live buffers with avail_in and avail_out
            // bytes left.
            let code = unsafe { z::inflate(stream, z::Z_BLOCK) };
            out += u64::from(before - stream.avail_out);
            ensure!(
                code == z::Z_OK || code == z::Z_STREAM_END || code == z::Z_BUF_ERROR,
                "inflate: {code}"
            );
            if code == z::Z_STREAM_END {
                break 'file;
            }
            let at_block = stream.data_type & 128 != 0 && stream.data_type & 64 == 0;
            if at_block && (out == 0 || out - last > SPAN as u64) {
                let left = stream.avail_out as usize;
                let mut copy = Vec::with_capacity(WINDOW);
                copy.extend_from_slice(&window[WINDOW - left..]);
                copy.extend_from_slice(&window[..WINDOW - left]);
                checkpoints.push(copy);
                last = out;
            }
        }
    }
    // SAFETY: the stream was initialized above and is not used again.
    unsafe { z::inflateEnd(stream) };
    Ok(out)
}

/// Plain inflation with the library that soci-rs uses, with large buffers.
fn inflate(path: &Path) -> Result<u64> {
    use libz_rs_sys as z;
    let mut file = File::open(path)?;
    let (mut input, mut output) = (vec![0u8; 256 << 10], vec![0u8; 256 << 10]);
    let mut stream = Box::new(z::z_stream::default());
    // SAFETY: inflateInit2 requires a default stream. 31 selects gzip with a 32 KiB window.
    let code = unsafe {
        z::inflateInit2_(
            &mut *stream,
            31,
            z::zlibVersion(),
            size_of::<z::z_stream>() as i32,
        )
    };
    ensure!(code == z::Z_OK, "inflateInit2: {code}");
    let mut out = 0;
    loop {
        if stream.avail_in == 0 {
            stream.avail_in = file.read(&mut input)? as u32;
            stream.next_in = input.as_mut_ptr();
        }
        stream.avail_out = output.len() as u32;
        stream.next_out = output.as_mut_ptr();
        // SAFETY: both pointers point into live buffers with avail_in and avail_out bytes.
        let code = unsafe { z::inflate(&mut *stream, z::Z_NO_FLUSH) };
        out += (output.len() - stream.avail_out as usize) as u64;
        match code {
            z::Z_OK => {}
            z::Z_STREAM_END => break,
            other => bail!("inflate: {other}"),
        }
    }
    // SAFETY: the stream was initialized above and is not used again.
    unsafe { z::inflateEnd(&mut *stream) };
    Ok(out)
}

/// soci-rs: table of contents, checkpoints, and digests of the spans and the archive in one pass.
fn build(path: &Path) -> Result<u64> {
    let builder = soci_ztoc::Builder::new(soci_ztoc::BuildOptions::default());
    let mut built = builder.build(File::open(path)?, soci_ztoc::Compression::Gzip)?;
    built.encode(&mut std::io::sink())?;
    Ok(built.archive_size())
}

fn contend(name: &str, path: &Path) -> Result<u64> {
    match name {
        "c-loop" => c_loop(path),
        "inflate" => inflate(path),
        "build" => build(path),
        other => bail!("no contender {other}"),
    }
}

fn measure(path: &str, bytes: u64, runs: usize) -> Result<()> {
    let own = std::env::current_exe()?;
    let mut samples: [Vec<Sample>; 3] = Default::default();
    for _ in 0..runs {
        for (contender, taken) in CONTENDERS.iter().zip(&mut samples) {
            taken.push(sample(
                Command::new(&own).args(["--one", contender, path]),
                &[0],
            )?);
        }
    }
    let rate = |s: &Sample| bytes as f64 / 1e6 / s.wall.as_secs_f64();
    let medians: Vec<f64> = samples
        .iter()
        .map(|taken| median(&taken.iter().map(rate).collect::<Vec<_>>()))
        .collect();
    println!(
        "{path}: {:.1} MB uncompressed, median of {runs}",
        bytes as f64 / 1e6
    );
    for ((contender, taken), middle) in CONTENDERS.iter().zip(&samples).zip(&medians) {
        let raw: Vec<String> = taken.iter().map(|s| format!("{:.0}", rate(s))).collect();
        let peak = median(&taken.iter().map(|s| s.peak_rss_kib).collect::<Vec<_>>());
        println!(
            "  {contender:8} {middle:6.0} MB/s  peak {:5.1} MiB  raw {}",
            peak as f64 / 1024.0,
            raw.join(" ")
        );
    }
    println!(
        "  build / c-loop {:.2}, build / inflate {:.2}",
        medians[2] / medians[0],
        medians[2] / medians[1]
    );
    std::io::stdout().flush()?;
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, contender, path] = args.as_slice()
        && flag == "--one"
    {
        contend(contender, Path::new(path))?;
        return Ok(());
    }
    let (mut runs, mut layers, mut rest) = (5, Vec::new(), args.into_iter());
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--runs" => runs = rest.next().context("--runs needs a number")?.parse()?,
            _ => layers.push(arg),
        }
    }
    ensure!(!layers.is_empty(), "usage: ztoc LAYER.tar.gz... [--runs N]");
    for layer in layers {
        let bytes = inflate(Path::new(&layer))?;
        measure(&layer, bytes, runs)?;
    }
    Ok(())
}
