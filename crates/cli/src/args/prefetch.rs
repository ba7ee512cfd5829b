//! `soci prefetch`: its commands, their flags and help.

use clap::{ArgMatches, Command};

use super::{Values, json_flag, positional};

pub(super) fn command() -> Command {
    Command::new("prefetch")
        .about("List and show prefetch artifacts: what nodes fetch first")
        .after_help("Examples:\n  soci prefetch list\n  soci prefetch info sha256:...")
        .subcommand_required(true)
        .subcommand_value_name("command")
        .subcommands([list_command(), info_command()])
}

fn list_command() -> Command {
    Command::new("list")
        .visible_alias("ls")
        .about("List the prefetch artifacts that were made here")
        .after_help("Example:\n  soci prefetch list --json")
        .arg(json_flag("Print a JSON array instead of a table"))
}

fn info_command() -> Command {
    Command::new("info")
        .about("Print which spans a prefetch artifact asks for")
        .after_help("Example:\n  soci prefetch info sha256:...")
        .arg(positional("digest").help("Digest of the artifact"))
        .arg(json_flag(
            "Print the artifact itself, which is JSON, after the summary",
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
