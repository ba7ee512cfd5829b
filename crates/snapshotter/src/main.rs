//! `soci-snapshotter-grpc`: reads its arguments, runs the daemon (keeper, worker or both in one), turns the end into an
//! exit code.

#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the allocator reads its settings from an exported symbol; a program may print"
)]

use std::process::ExitCode;

use soci_snapshotter::args::{self, Asked, NAME};
use soci_snapshotter::daemon::Outside;
use soci_snapshotter::keeper::{self, Keeping};
use soci_snapshotter::{daemon, listen, logging};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings of the allocator, which it reads before `main`: freed pages go back at once. What is large and used
/// again soon is kept by who uses it (the pool's scratch memory); kept here as well, the tree of a layer of 100,000
/// files left 20 MB of pages behind at its peak, for no time gained. Threads that give pages back later have nothing
/// to do then: there are none.
// JUSTIFICATION: jemalloc has no other way to be configured by a program.
// SAFETY: the symbol is the one that the allocator's documentation names, it is defined once, and it points to
// a string that ends in a zero byte.
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
