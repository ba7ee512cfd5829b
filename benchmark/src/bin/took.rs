//! Runs a command with its standard output discarded, and prints wall-clock seconds, CPU seconds,
//! and peak RSS in MiB.

use std::process::Command;

use anyhow::{Context, Result};
use soci_benchmark::sample;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().context("usage: took COMMAND...")?;
    let taken = sample(Command::new(program).args(args), &[])?;
    println!(
        "{:.3} {:.3} {:.1}",
        taken.wall.as_secs_f64(),
        taken.cpu.as_secs_f64(),
        taken.peak_rss_kib as f64 / 1024.0
    );
    Ok(())
}
