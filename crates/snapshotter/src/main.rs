//! `soci-snapshotter-grpc`: parses arguments, runs the daemon (keeper, worker or both in one
//! process) and returns the exit code.

#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the allocator reads its settings from an exported symbol; prints output of commands"
)]

use std::process::ExitCode;

use soci_snapshotter::args::{self, Asked, NAME};
use soci_snapshotter::config::{self, Config};
use soci_snapshotter::daemon::Outside;
use soci_snapshotter::keeper::{self, Keeping};
use soci_snapshotter::{check, daemon, listen, logging};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings of the allocator, read before `main`: freed pages are returned immediately. Large
/// buffers that are reused soon are kept by the pool. If the allocator kept them as well, the tree
/// of a layer with 100,000 files left 20 MB of pages at its peak, without saving time.
// JUSTIFICATION: a program cannot configure jemalloc in any other way.
// SAFETY: the symbol is the one in the allocator's documentation, it is defined once, and it points
// to a NUL-terminated string.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 34] = b"dirty_decay_ms:0,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Asked::Show(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Asked::Refused(refusal) => {
            print!("{}", refusal.stdout);
            eprint!("{}", refusal.stderr);
            ExitCode::from(refusal.code)
        }
        Asked::Scrub(root, json) => match daemon::scrub(&root, json, &mut std::io::stdout()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{NAME}: {error:#}");
                ExitCode::FAILURE
            }
        },
        Asked::Reads(root, json) => match daemon::reads(&root, json, &mut std::io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{NAME}: {error:#}");
                ExitCode::FAILURE
            }
        },
        Asked::Dump(path) => match Config::load(&path) {
            Ok(config) => {
                print!("{}", config::dump(&config));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{NAME}: {:#}", anyhow::Error::new(error));
                ExitCode::FAILURE
            }
        },
        Asked::Default => {
            print!("{}", config::defaults());
            ExitCode::SUCCESS
        }
        Asked::Check(args) => match check::run(&args, &mut std::io::stdout()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{NAME}: {error:#}");
                ExitCode::FAILURE
            }
        },
        Asked::Serve(args) => match serve(&args) {
            Ok(code) => {
                logging::finish();
                code
            }
            Err(error) => {
                let error = format!("{error:#}");
                logging::fatal("failed to run", &error);
                eprintln!("{NAME}: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn serve(args: &args::Args) -> anyhow::Result<ExitCode> {
    let level = args.log_level.parse()?;
    logging::start(level);
    if args.worker {
        daemon::run(args, Outside::Keeper(Keeping::of_this_process()?))?;
    } else {
        let inherited = listen::take_inherited()?;
        if !args.no_keeper {
            return keeper::run(args, inherited);
        }
        daemon::run(args, Outside::Nobody(inherited))?;
    }
    Ok(ExitCode::SUCCESS)
}
