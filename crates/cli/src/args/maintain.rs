//! `soci rebuild-db`, `soci completion` and `soci man`.

use std::path::PathBuf;

use clap::builder::OsStringValueParser;
use clap::{ArgMatches, Command};
use soci_flags::known;

use super::{Values, positional};

const REBUILD_LONG: &str = "\
Updates the records of indexes from the content store. It removes the records of indexes that the store
no longer has, and adds records for indexes without one.";

pub(super) fn rebuild_db_command() -> Command {
    Command::new("rebuild-db")
        .about("Update the records of indexes from the content store")
        .long_about(REBUILD_LONG)
        .after_help("Example:\n  soci rebuild-db")
}

pub(super) fn completion_command() -> Command {
    Command::new("completion")
        .about("Print a completion script for a shell")
        .after_help("Examples:\n  source <(soci completion bash)\n  soci completion zsh > ~/.zfunc/_soci\n  soci completion fish > ~/.config/fish/completions/soci.fish")
        .arg(
            positional("shell")
                .value_parser(known(&["bash", "zsh", "fish"], OsStringValueParser::new()))
                .help("Name of the shell: bash, zsh or fish"),
        )
}

/// Used by `make man`. It is hidden, because users get the finished pages.
pub(super) fn man_command() -> Command {
    Command::new("man")
        .hide(true)
        .about("Write manual pages")
        .arg(positional("folder").help("Folder for the pages"))
}

/// Values of `man`.
#[derive(Debug, Clone)]
pub(crate) struct Man {
    pub(crate) folder: PathBuf,
}

impl Man {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self {
            folder: Values(matches).path("folder"),
        }
    }
}

/// Values of `completion`.
#[derive(Debug, Clone)]
pub(crate) struct Completion {
    pub(crate) shell: String,
}

impl Completion {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self {
            shell: Values(matches).word("shell"),
        }
    }
}
