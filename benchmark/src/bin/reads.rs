//! Runs one access pattern on one tree. The driver runs it on both trees and compares the results.
//!
//! usage: reads sequential FILE | random FILE | small DIR | fgets FILE | every DIR
//!
//! Prints one number: operations per second (random, small) or bytes per second (the others).

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

fn sequential(path: &Path) -> Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let mut file = File::open(path)?;
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            n => total += n as u64,
        }
    }
}

/// Reads 4 KiB at offsets in a fixed pseudorandom order.
fn random(path: &Path) -> Result<u64> {
    let file = File::open(path)?;
    let pages = file.metadata()?.len() / 4096;
    ensure!(pages > 0, "{}: shorter than a page", path.display());
    let (mut state, mut buffer) = (0x9e37_79b9_7f4a_7c15_u64, [0; 4096]);
    let count = 200_000.min(pages * 4);
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(&mut buffer, state % pages * 4096)?;
    }
    Ok(count)
}

/// Regular files of at most `most` bytes below `dir`, in listing order.
fn small_files(dir: &Path, most: u64) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(folder) = left.pop() {
        let mut entries = std::fs::read_dir(&folder)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() && entry.metadata()?.len() <= most {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn read_all(files: &[PathBuf]) -> Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    for path in files {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => total += n as u64,
            }
        }
    }
    Ok(total)
}

/// Reads lines through stdio, whose buffer size is the file's st_blksize.
fn fgets(path: &Path) -> Result<u64> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings end with NUL.
    let stream = unsafe { libc::fopen(name.as_ptr(), c"r".as_ptr()) };
    ensure!(!stream.is_null(), "open {}", path.display());
    let mut line = vec![0_i8; 64 << 10];
    let mut lines = 0_u64;
    // SAFETY: the stream is open and the buffer has the given length.
    while !unsafe { libc::fgets(line.as_mut_ptr(), 64 << 10, stream) }.is_null() {
        lines += 1;
    }
    // SAFETY: the stream is open and is not used again.
    unsafe { libc::fclose(stream) };
    ensure!(lines > 0, "{}: no line", path.display());
    Ok(std::fs::metadata(path)?.len())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pattern, path] = args.as_slice() else {
        bail!("usage: reads PATTERN PATH");
    };
    let path = Path::new(path);
    // Finding the files is not part of the measurement.
    let files = match pattern.as_str() {
        "small" => small_files(path, 64 << 10)?,
        "every" => small_files(path, u64::MAX)?,
        _ => Vec::new(),
    };
    let start = Instant::now();
    let amount = match pattern.as_str() {
        "sequential" => sequential(path),
        "random" => random(path),
        "small" => read_all(&files).map(|_| files.len() as u64),
        "fgets" => fgets(path),
        "every" => read_all(&files),
        other => bail!("no pattern {other}"),
    }
    .with_context(|| format!("{pattern} {}", path.display()))?;
    println!("{:.0}", amount as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
