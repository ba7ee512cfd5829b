//! `soci index`: its commands, their flags and help.

use clap::{ArgMatches, Command};
use soci_flags::{list, switch, text};

use super::{Values, json_flag, positional};

const EXAMPLES: &str = "\
Examples:
  soci index list --ref registry.example/app:1
  soci index info sha256:...
  soci index remove --ref registry.example/app:1";

pub(super) fn command() -> Command {
    Command::new("index")
        .about("List, print and remove indexes")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .subcommand_value_name("command")
        .subcommands([list_command(), info_command(), remove_command()])
}

fn list_command() -> Command {
    Command::new("list")
        .visible_alias("ls")
        .about("List the indexes that were built on this machine, newest first")
        .after_help("Examples:\n  soci index list\n  soci index list --ref registry.example/app:1 --platform linux/arm64\n  soci index list -q")
        .arg(text("ref").value_name("IMAGE").help("List only indexes of this image in containerd"))
        .arg(switch("quiet").short('q').help("Print digests only"))
        .arg(json_flag("Print one JSON object instead of a table"))
        .arg(
            list("platform")
                .short('p')
                .value_name("PLATFORM")
                .help("List only indexes for this platform, for example linux/arm64; may be repeated"),
        )
}

fn info_command() -> Command {
    Command::new("info")
        .about("Print an index as JSON")
        .after_help("Example:\n  soci index info sha256:...")
        .arg(positional("digest").help("Digest of the index"))
        .arg(json_flag("Print the JSON on one line"))
}

fn remove_command() -> Command {
    Command::new("remove")
        .visible_alias("rm")
        .about("Remove indexes")
        .after_help("Examples:\n  soci index remove sha256:... sha256:...\n  soci index remove --ref registry.example/app:1")
        .arg(positional("digest").num_args(0..).help("Digests of the indexes"))
        .arg(text("ref").value_name("IMAGE").help("Remove all indexes of this image in containerd"))
}

/// Values of `index list`.
#[derive(Debug, Clone)]
pub(crate) struct IndexList {
    pub(crate) reference: String,
    pub(crate) quiet: bool,
    pub(crate) json: bool,
    pub(crate) platforms: Vec<String>,
}

impl IndexList {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            reference: values.text("ref"),
            quiet: values.is("quiet"),
            json: values.is("json"),
            platforms: values.texts("platform"),
        }
    }
}

/// Values of `index info`.
#[derive(Debug, Clone)]
pub(crate) struct IndexInfo {
    pub(crate) digest: String,
    pub(crate) json: bool,
}

impl IndexInfo {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self {
            digest: Values(matches).word("digest"),
            json: Values(matches).is("json"),
        }
    }
}

/// Values of `index remove`.
#[derive(Debug, Clone)]
pub(crate) struct IndexRemove {
    pub(crate) digests: Vec<String>,
    pub(crate) reference: String,
}

impl IndexRemove {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self {
            digests: Values(matches).words("digest"),
            reference: Values(matches).text("ref"),
        }
    }
}
