//! `soci prefetch`: its commands, their flags and help.

use clap::{ArgMatches, Command};

use super::{Values, json_flag, positional};

pub(super) fn command() -> Command {
    Command::new("prefetch")
        .about("List and print prefetch artifacts, which name what nodes download first")
        .after_help("Examples:\n  soci prefetch list\n  soci prefetch info sha256:...")
        .subcommand_required(true)
        .subcommand_value_name("command")
        .subcommands([list_command(), info_command()])
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
