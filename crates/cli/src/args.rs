//! The grammar of the program: commands, flags, defaults, help.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::StringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use soci_flags::{known, switch, text};

mod convert;
mod create;
mod groups;
mod index;
mod maintain;
mod prefetch;
mod push;
mod status;
mod verify;
mod ztoc;

pub(crate) use convert::{Convert, Format};
pub(crate) use create::Create;
pub(crate) use groups::{Platforms, PrefetchFiles, RegistryAccess, Ztocs};
pub(crate) use index::{IndexInfo, IndexList, IndexRemove};
pub(crate) use maintain::{Completion, Man};
pub(crate) use prefetch::{PrefetchInfo, PrefetchList, PrefetchRecord};
pub(crate) use push::Push;
pub(crate) use status::Status;
pub(crate) use verify::Verify;
pub(crate) use ztoc::{ZtocGetFile, ZtocInfo, ZtocList};

/// The output of `git describe` at build time; release builds set it.
pub(crate) const VERSION: &str = match option_env!("SOCI_VERSION") {
    Some(version) => version,
    None => concat!("v", env!("CARGO_PKG_VERSION")),
};
/// The commit of the build; release builds set it.
const REVISION: &str = match option_env!("SOCI_REVISION") {
    Some(revision) => revision,
    None => "<unknown>",
};

const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
const DEFAULT_NAMESPACE: &str = "default";
const DEFAULT_ROOT: &str = "/var/lib/soci-snapshotter-grpc/";

const ABOUT: &str = "Builds indexes that let containers start before their image is downloaded";
const EXAMPLES: &str = "\
Examples:
  Convert an image in containerd and push it. Nodes with the SOCI snapshotter then load it lazily:
    nerdctl pull registry.example/app:1
    soci convert registry.example/app:1 registry.example/app:1-soci
    nerdctl push registry.example/app:1-soci

  Convert an image in a registry or in files, without containerd:
    soci convert --standalone docker://registry.example/app:1 docker://registry.example/app:1-soci
    soci convert --standalone app.tar app-soci.tar

  Check that an image and its index are consistent:
    soci verify docker://registry.example/app:1-soci

Run `soci help <command>` for the help of a command.";

/// The grammar of the program.
pub(crate) fn grammar() -> Command {
    let version: &'static str = Box::leak(format!("{VERSION} {REVISION}").into_boxed_str());
    let version_flag = Arg::new("version")
        .long("version")
        .short('v')
        .action(ArgAction::Version);
    let grammar = Command::new("soci")
        .about(ABOUT)
        .after_help(EXAMPLES)
        .version(version)
        .disable_version_flag(true)
        .subcommand_required(true)
        .subcommand_value_name("command")
        .arg(version_flag.help("Print the version"))
        .args(global_flags().map(|arg| arg.global(true).help_heading("Global options")))
        .subcommands([
            create::command(),
            convert::command(),
            push::command(),
            index::command(),
            ztoc::command(),
            prefetch::command(),
            verify::command(),
            status::command(),
            maintain::rebuild_db_command(),
            maintain::completion_command(),
            maintain::man_command(),
        ]);
    accept_surplus(grammar)
}

/// The hidden argument that collects operands that no argument of the command takes.
const SURPLUS: &str = "surplus";

/// Adds [`SURPLUS`] to every command with a fixed number of operands. The parser ignores surplus
/// operands, like the reference's; [`check_operands`] rejects them.
fn accept_surplus(command: Command) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .map(|inner| inner.get_name().to_owned())
        .collect();
    if names.is_empty() {
        let takes_any = |arg: &Arg| arg.get_num_args().is_some();
        return if command.get_positionals().any(takes_any) {
            command
        } else {
            command.arg(positional(SURPLUS).num_args(0..).hide(true))
        };
    }
    let mut command = command;
    for name in names {
        command = command.mut_subcommand(name, accept_surplus);
    }
    command
}

/// A command was given more operands than it takes.
#[derive(Debug, thiserror::Error)]
#[error("unexpected argument {:?}: {command} takes {takes}; see `soci {command} --help`", .surplus.to_string_lossy())]
pub(crate) struct TooManyOperands {
    command: String,
    takes: String,
    surplus: OsString,
}

/// Rejects operands that the command does not take. `path` is the name of the command.
pub(crate) fn check_operands(path: &str, matches: &ArgMatches) -> Result<(), TooManyOperands> {
    let surplus = matches.try_get_one::<OsString>(SURPLUS).ok().flatten();
    let Some(surplus) = surplus else {
        return Ok(());
    };
    let mut command = &grammar();
    for name in path.split(' ') {
        command = command.find_subcommand(name).unwrap_or(command);
    }
    let shown = command.get_positionals().filter(|arg| !arg.is_hide_set());
    let names: Vec<String> = shown.map(|arg| format!("<{}>", arg.get_id())).collect();
    let takes = match names.as_slice() {
        [] => "no arguments".to_owned(),
        names => format!("only {}", names.join(" ")),
    };
    Err(TooManyOperands {
        command: path.to_owned(),
        takes,
        surplus: surplus.clone(),
    })
}

fn global_flags() -> [Arg; 8] {
    [
        text("address")
            .short('a')
            .env("CONTAINERD_ADDRESS")
            .value_name("SOCKET")
            .value_hint(ValueHint::FilePath)
            .default_value(DEFAULT_ADDRESS)
            .help("containerd socket"),
        text("namespace")
            .short('n')
            .env("CONTAINERD_NAMESPACE")
            .value_name("NAME")
            .default_value(DEFAULT_NAMESPACE)
            .help("containerd namespace"),
        Arg::new("timeout")
            .long("timeout")
            .value_parser(soci_flags::duration())
            .value_name("DURATION")
            .default_value("0s")
            .help("Stop after this time, for example 90s or 5m; 0s means no limit"),
        switch("debug").help("Print the requests to registries (push: on standard output, other commands: on standard error)"),
        switch("verbose").help("Print on standard error what is tried and what fails"),
        text("content-store")
            .value_name("STORE")
            .value_parser(known(&["containerd", "soci"], StringValueParser::new()))
            .default_value("containerd")
            .help("Content store for artifacts: containerd, or soci (a folder below --root)"),
        Arg::new("root")
            .long("root")
            .value_parser(clap::value_parser!(OsString))
            .value_name("FOLDER")
            .value_hint(ValueHint::DirPath)
            .default_value(DEFAULT_ROOT)
            .help("State folder of soci"),
        text("progress")
            .value_parser(known(&["auto", "plain", "none"], parse_progress))
            .value_name("KIND")
            .default_value("auto")
            .help("Progress display: auto (bars if standard error is a terminal), plain (lines) or none"),
    ]
}

/// How to report the progress of long work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressKind {
    /// Bars if standard error is a terminal.
    Auto,
    /// A line on standard error every few seconds.
    Plain,
    /// Nothing.
    None,
}

fn parse_progress(text: &str) -> Result<ProgressKind, String> {
    match text {
        "auto" => Ok(ProgressKind::Auto),
        "plain" => Ok(ProgressKind::Plain),
        "none" => Ok(ProgressKind::None),
        _ => Err("must be one of [auto plain none]".to_owned()),
    }
}

/// A positional argument. It is optional for clap: the commands report missing ones with the
/// reference's messages.
fn positional(name: &'static str) -> Arg {
    Arg::new(name)
        .value_name(name)
        .value_parser(clap::value_parser!(OsString))
}

/// The `--json` flag with a description of its output.
fn json_flag(help: &'static str) -> Arg {
    switch("json").help(help)
}

/// Reads values of a command. The command must have the flags that are read.
#[derive(Debug, Clone, Copy)]
struct Values<'a>(&'a ArgMatches);

impl Values<'_> {
    fn is(self, name: &str) -> bool {
        self.0.get_one::<bool>(name).copied().unwrap_or_default()
    }

    fn number(self, name: &str) -> i64 {
        self.0.get_one::<i64>(name).copied().unwrap_or_default()
    }

    fn text(self, name: &str) -> String {
        self.0.get_one::<String>(name).cloned().unwrap_or_default()
    }

    fn texts(self, name: &str) -> Vec<String> {
        let values = self.0.get_many::<String>(name).unwrap_or_default();
        values.cloned().collect()
    }

    fn path(self, name: &str) -> PathBuf {
        let value = self.0.get_one::<OsString>(name);
        value.map(PathBuf::from).unwrap_or_default()
    }

    /// A positional argument that is not a path (a reference or a digest). Invalid UTF-8 becomes
    /// U+FFFD.
    fn word(self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn words(self, name: &str) -> Vec<String> {
        let values = self.0.get_many::<OsString>(name).unwrap_or_default();
        values
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }
}

/// The values of the flags that all commands share.
#[derive(Debug, Clone)]
pub(crate) struct Global {
    pub(crate) address: String,
    pub(crate) namespace: String,
    /// `None` means no limit.
    pub(crate) timeout: Option<Duration>,
    pub(crate) content_store: String,
    pub(crate) root: PathBuf,
    pub(crate) debug: bool,
    pub(crate) verbose: bool,
    pub(crate) progress: ProgressKind,
}

impl Global {
    /// Reads the values. An empty value means the default.
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let or = |name, default: &str| {
            let value = matches
                .get_one::<String>(name)
                .filter(|value| !value.is_empty());
            value.cloned().unwrap_or_else(|| default.to_owned())
        };
        let root = matches
            .get_one::<OsString>("root")
            .filter(|root| !root.is_empty());
        Self {
            address: or("address", DEFAULT_ADDRESS),
            namespace: or("namespace", DEFAULT_NAMESPACE),
            timeout: matches
                .get_one("timeout")
                .copied()
                .filter(|timeout| *timeout != Duration::ZERO),
            content_store: or("content-store", "containerd"),
            root: root.map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from),
            debug: Values(matches).is("debug"),
            verbose: Values(matches).is("verbose"),
            progress: matches
                .get_one("progress")
                .copied()
                .unwrap_or(ProgressKind::Auto),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar_is_sound() {
        grammar().debug_assert();
    }
}
