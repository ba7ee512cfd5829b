//! `soci`: builds, converts and inspects indexes of container images.

#![forbid(unsafe_code)]

mod access;
mod args;
mod completion;
mod convert;
mod create;
mod index;
mod man;
mod output;
mod prefetch;
mod push;
mod rebuild_db;
mod record;
mod signals;
mod source;
mod standalone;
mod state;
mod status;
mod transport;
mod verify;
mod ztoc;

use std::fs::DirBuilder;
use std::future::Future;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::ArgMatches;
use soci_flags::Parsed;
use soci_store::errno;
use tokio::runtime::{Builder, Runtime};

use args::{
    Completion, Convert, Create, Global, IndexInfo, IndexList, IndexRemove, Man, PrefetchInfo,
    PrefetchList, PrefetchRecord, Push, Status, Verify, ZtocGetFile, ZtocInfo, ZtocList,
};
use signals::Interrupted;

/// Threads for network I/O; layers are read by other threads.
const RUNTIME_THREADS: usize = 2;

/// Exit code of `--strict` if a layer was left without a zTOC.
const NOT_STRICT: u8 = 4;

fn main() -> ExitCode {
    match soci_flags::parse(args::grammar(), std::env::args_os()) {
        Parsed::Show(text) => {
            output::print(&text);
            ExitCode::SUCCESS
        }
        Parsed::Refused(refusal) => {
            output::complain(&refusal.stderr);
            output::print(&refusal.stdout);
            ExitCode::from(refusal.code)
        }
        Parsed::Run(matches) => {
            let global = Global::of(&matches);
            output::start_log(global.verbose);
            match start(&global, &matches) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => refuse(&error),
            }
        }
    }
}

fn refuse(error: &anyhow::Error) -> ExitCode {
    output::refuse(&format!("{error:#}"));
    if let Some(Interrupted { signal }) = error.downcast_ref() {
        return ExitCode::from(signals::exit_code(*signal));
    }
    if error.downcast_ref::<output::NotStrict>().is_some() {
        return ExitCode::from(NOT_STRICT);
    }
    ExitCode::from(1)
}

fn start(global: &Global, matches: &ArgMatches) -> Result<()> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("soci-net")
        .enable_all()
        .build()?;
    let timeout = global.timeout.map(|timeout| timeout + grace(matches));
    let result = runtime.block_on(limited(timeout, dispatch(global, matches)));
    end(runtime);
    result
}

/// Gives file operations that were canceled a moment to stop and remove what they created.
fn end(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_secs(2));
}

async fn dispatch(global: &Global, matches: &ArgMatches) -> Result<()> {
    let (name, matches) = innermost(matches);
    args::check_operands(&name, matches)?;
    if needs_root(&name, matches) {
        make_root(&global.root)?;
    }
    match name.as_str() {
        "create" => create::run(global, &Create::of(matches)).await,
        "convert" => convert::run(global, &Convert::of(matches)).await,
        "push" => push::run(global, &Push::of(matches)).await,
        "index list" => index::list(global, &IndexList::of(matches)).await,
        "index info" => index::info(global, &IndexInfo::of(matches)).await,
        "index remove" => index::remove(global, &IndexRemove::of(matches)).await,
        "ztoc list" => ztoc::list(global, &ZtocList::of(matches)).await,
        "ztoc info" => ztoc::info(global, &ZtocInfo::of(matches)).await,
        "ztoc get-file" => ztoc::get_file(global, &ZtocGetFile::of(matches)).await,
        "prefetch list" => prefetch::list(global, &PrefetchList::of(matches)).await,
        "prefetch info" => prefetch::info(global, &PrefetchInfo::of(matches)).await,
        "prefetch record" => record::run(&PrefetchRecord::of(matches)).await,
        "verify" => verify::run(global, &Verify::of(matches)).await,
        "status" => status::run(&Status::of(matches)).await,
        "rebuild-db" => rebuild_db::run(global).await,
        "completion" => completion::run(&Completion::of(matches)),
        "man" => man::run(&Man::of(matches)),
        // The grammar has no other commands.
        _ => Ok(()),
    }
}

/// The requested command, as its names, and its values.
fn innermost(mut matches: &ArgMatches) -> (String, &ArgMatches) {
    let mut names = Vec::new();
    while let Some((name, inner)) = matches.subcommand() {
        names.push(name);
        matches = inner;
    }
    (names.join(" "), matches)
}

/// Whether the command stores anything in the root folder.
fn needs_root(name: &str, matches: &ArgMatches) -> bool {
    let standalone = || matches.get_one("standalone") == Some(&true);
    match name {
        "create" | "convert" => !standalone(),
        "verify" | "status" | "prefetch record" | "completion" | "man" => false,
        _ => true,
    }
}

/// Creates the root folder.
fn make_root(root: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(root)
        .map_err(|error| anyhow!("mkdir {}: {}", root.display(), errno(&error)))
}

/// Commands that hold a lease or upload enforce `--timeout` themselves. They get this much more
/// time to end the lease or cancel incomplete uploads.
fn grace(matches: &ArgMatches) -> Duration {
    let (name, matches) = innermost(matches);
    match name.as_str() {
        "create" | "convert" if matches.get_one("standalone") == Some(&true) => {
            Duration::from_secs(6)
        }
        "create" | "convert" => Duration::from_secs(2),
        "push" => Duration::from_secs(4),
        _ => Duration::ZERO,
    }
}

/// Runs work with a timeout; the work is dropped when the timeout expires.
pub(crate) async fn limited<T>(
    timeout: Option<Duration>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match timeout {
        None => work.await,
        Some(timeout) => tokio::time::timeout(timeout, work)
            .await
            .unwrap_or_else(|_| Err(anyhow!("context deadline exceeded"))),
    }
}
