//! `soci prefetch`: its commands, their flags and help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, ValueHint};

use soci_flags::switch;

use super::groups::socket_flag;
use super::{Values, json_flag, positional};

const RECORD_LONG: &str = "\
Prints which parts of an image's layers were read first on this machine, in order, as a JSON document.
`soci convert` and `soci create` make prefetch artifacts of it with --prefetch-record. Nodes then download
these parts first, before a container asks for them.

The snapshotter notes what is read while an image is loaded lazily. Start a container of the image on a
machine that does not have the image yet, wait until it is ready, and run this command. What is read after a
layer has been downloaded completely is not noted.

With --run, no cluster is needed: the command starts containerd and soci-snapshotter-grpc from the PATH with
a temporary state, pulls the image, runs a container of it for the time of --within at most, prints the
record, and removes everything again. It needs root. Registries are reached as /etc/containerd/certs.d says.";

const RECORD_EXAMPLES: &str = "\
Examples:
  soci prefetch record registry.example/app:1 -o start.json
  soci convert --prefetch-record start.json registry.example/app:1 registry.example/app:1
  soci prefetch record --run -o start.json -- registry.example/app:1 python3 -c 'import pandas'";

pub(super) fn command() -> Command {
    Command::new("prefetch")
        .about("Record what containers read first, and list and print prefetch artifacts")
        .after_help("Examples:\n  soci prefetch record registry.example/app:1\n  soci prefetch list\n  soci prefetch info sha256:...")
        .subcommand_required(true)
        .subcommand_value_name("command")
        .subcommands([list_command(), info_command(), record_command()])
}

fn list_command() -> Command {
    Command::new("list")
        .visible_alias("ls")
        .about("List the prefetch artifacts that were built on this machine")
        .after_help("Example:\n  soci prefetch list --json")
        .arg(json_flag("Print a JSON array instead of a table"))
}

fn info_command() -> Command {
    Command::new("info")
        .about("Print the spans of a prefetch artifact")
        .after_help("Example:\n  soci prefetch info sha256:...")
        .arg(positional("digest").help("Digest of the prefetch artifact"))
        .arg(json_flag(
            "After the summary, also print the artifact, which is JSON",
        ))
}

fn record_command() -> Command {
    let file = Arg::new("output")
        .long("output")
        .short('o')
        .value_parser(clap::value_parser!(std::ffi::OsString))
        .value_name("FILE")
        .value_hint(ValueHint::FilePath)
        .help("Write the record to this file (default: standard output)");
    let within = Arg::new("within")
        .long("within")
        .value_parser(soci_flags::duration())
        .value_name("DURATION")
        .default_value("60s")
        .help("Leave out what was first read later than this after the first read of the image (at most 10m)");
    Command::new("record")
        .about("Print what containers of an image read first on this machine")
        .long_about(RECORD_LONG)
        .after_help(RECORD_EXAMPLES)
        .arg(positional("image").help("Image, as for `soci status`; with --run, its reference"))
        .arg(positional("command").num_args(0..).help("With --run: command of the container, after -- (default: the image's)"))
        .arg(switch("run").help("Start a container of the image with a containerd and a snapshotter of its own, and record that"))
        .arg(within)
        .arg(file)
        .arg(socket_flag())
}

/// Values of `prefetch record`.
#[derive(Debug, Clone)]
pub(crate) struct PrefetchRecord {
    pub(crate) image: String,
    /// The command of a container.
    pub(crate) command: Vec<String>,
    pub(crate) run: bool,
    pub(crate) within: Duration,
    /// Empty means standard output.
    pub(crate) output: PathBuf,
    pub(crate) socket: PathBuf,
}

impl PrefetchRecord {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            image: values.word("image"),
            command: values.words("command"),
            run: values.is("run"),
            within: matches.get_one("within").copied().unwrap_or_default(),
            output: values.path("output"),
            socket: values.path("socket"),
        }
    }
}

/// Values of `prefetch list`.
#[derive(Debug, Clone)]
pub(crate) struct PrefetchList {
    pub(crate) json: bool,
}

impl PrefetchList {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self {
            json: Values(matches).is("json"),
        }
    }
}

/// Values of `prefetch info`.
#[derive(Debug, Clone)]
pub(crate) struct PrefetchInfo {
    pub(crate) digest: String,
    pub(crate) json: bool,
}

impl PrefetchInfo {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self {
            digest: Values(matches).word("digest"),
            json: Values(matches).is("json"),
        }
    }
}
