//! Command line of the daemon. A flag overrides its environment variable, which overrides the
//! default.

mod check;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};
use soci_flags::{Parsed, Refusal};

pub use self::check::{Change, CheckArgs, Part};
use crate::config;

/// Flag for a process that a keeper starts.
pub(crate) const WORKER: &str = "worker";
/// Name of the program.
pub const NAME: &str = "soci-snapshotter-grpc";
/// Socket path at which containerd expects the daemon.
pub const DEFAULT_ADDRESS: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
const SCRUB: &str = "scrub";
const READS: &str = "reads";
const CONFIG: &str = "config";
const DUMP: &str = "dump";
const DEFAULT_ROOT: &str = "/var/lib/soci-snapshotter-grpc/";
/// The output of `git describe` at build time; set for release builds.
pub const VERSION: &str = match option_env!("SOCI_VERSION") {
    Some(version) => version,
    None => concat!("v", env!("CARGO_PKG_VERSION")),
};
/// The commit this was built from; set for release builds.
pub const REVISION: &str = match option_env!("SOCI_REVISION") {
    Some(revision) => revision,
    None => "<unknown>",
};

/// The parsed flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// Address to listen on.
    pub address: String,
    /// The configuration file.
    pub config: PathBuf,
    /// Minimum level of log lines.
    pub log_level: String,
    /// The state directory.
    pub root: PathBuf,
    /// Run as one process, without a keeper.
    pub no_keeper: bool,
    /// This process was started by a keeper.
    pub worker: bool,
}

/// The requested command.
#[derive(Debug)]
pub enum Asked {
    /// Run the daemon.
    Serve(Args),
    /// Have the daemon of this state directory scrub its store; true for JSON output.
    Scrub(PathBuf, bool),
    /// Print recent reads that waited for bytes in the daemon of this state directory; true for
    /// JSON output.
    Reads(PathBuf, bool),
    /// Print the configuration that this file gives.
    Dump(PathBuf),
    /// Print the configuration without a file.
    Default,
    /// Check whether this node can load layers lazily.
    Check(Box<CheckArgs>),
    /// Print this text on standard output and succeed.
    Show(String),
    /// Print the message of the refusal and exit with its code.
    Refused(Refusal),
}

/// Parses a command line that starts with the program's name.
pub fn parse<I>(arguments: I) -> Asked
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    match soci_flags::parse(grammar(), arguments) {
        Parsed::Run(matches) => match matches.subcommand() {
            Some((SCRUB, scrub)) => {
                Asked::Scrub(resolve(&matches).root, scrub.get_one("json") == Some(&true))
            }
            Some((READS, reads)) => {
                Asked::Reads(resolve(&matches).root, reads.get_one("json") == Some(&true))
            }
            Some((CONFIG, config)) => match config.subcommand_name() {
                Some(DUMP) => Asked::Dump(resolve(&matches).config),
                _ => Asked::Default,
            },
            Some((check::NAME, check)) => {
                Asked::Check(Box::new(CheckArgs::of(resolve(&matches), check)))
            }
            _ => Asked::Serve(resolve(&matches)),
        },
        Parsed::Show(text) => Asked::Show(text),
        Parsed::Refused(refusal) => Asked::Refused(refusal),
    }
}

fn grammar() -> Command {
    let flag = |name, environment, default: &'static str, help| {
        soci_flags::text(name)
            .env(environment)
            .default_value(default)
            .help(help)
    };
    let version = Arg::new("version")
        .long("version")
        .short('v')
        .action(ArgAction::Version);
    Command::new(NAME)
        .about("Starts containers before their image layers have finished downloading")
        .version(version_text())
        .disable_version_flag(true)
        .arg(version.help("print the version"))
        .subcommand(
            Command::new(SCRUB)
                .about("Have the running daemon check its layers on disk and download damaged data again")
                .arg(soci_flags::switch("json").help("print one line of JSON per layer")),
        )
        .subcommand(
            Command::new(READS)
                .about("Print the most recent container reads that waited for data, and what each one waited for")
                .arg(soci_flags::switch("json").help("print one line of JSON per read")),
        )
        .subcommand(
            Command::new(CONFIG)
                .about("Print the configuration")
                .subcommand_required(true)
                .subcommand_value_name("command")
                .subcommand(Command::new(DUMP).about(
                    "Print the configuration in effect: the file, the defaults, and what the daemon makes of them",
                ))
                .subcommand(Command::new("default").about("Print the defaults")),
        )
        .subcommand(check::command())
        .arg(flag(
            "address",
            "SOCI_SNAPSHOTTER_ADDRESS",
            DEFAULT_ADDRESS,
            "address for the GRPC server",
        ).global(true))
        .arg(
            flag(
                CONFIG,
                "SOCI_SNAPSHOTTER_CONFIG",
                config::DEFAULT_PATH,
                "path to the configuration file",
            )
            .global(true),
        )
        .arg(flag(
            "log-level",
            "SOCI_SNAPSHOTTER_LOG_LEVEL",
            "info",
            "set the logging level [trace, debug, info, warn, error, fatal, panic]",
        ))
        .arg(
            flag(
                "root",
                "SOCI_SNAPSHOTTER_ROOT",
                DEFAULT_ROOT,
                "path to the root directory for this snapshotter",
            )
            .global(true),
        )
        .arg(
            soci_flags::switch("no-keeper").help(
                "run as one process; without systemd, reads of data that is not on disk fail during a restart",
            ),
        )
        .arg(soci_flags::switch(WORKER).hide(true))
}

/// Version and revision. clap requires a static lifetime.
fn version_text() -> &'static str {
    match (option_env!("SOCI_VERSION"), option_env!("SOCI_REVISION")) {
        (None, None) => concat!("v", env!("CARGO_PKG_VERSION"), " <unknown>"),
        _ => Box::leak(format!("{VERSION} {REVISION}").into_boxed_str()),
    }
}

fn resolve(matches: &ArgMatches) -> Args {
    // Every flag has a default.
    let text = |name| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let switch = |name| matches.get_one::<bool>(name).copied().unwrap_or_default();
    Args {
        address: text("address"),
        config: text(CONFIG).into(),
        log_level: text("log-level"),
        root: text("root").into(),
        no_keeper: switch("no-keeper"),
        worker: switch(WORKER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(arguments: &[&str]) -> Args {
        match parse([&[NAME], arguments].concat()) {
            Asked::Serve(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_have_the_defaults_of_the_reference() {
        let args = serve(&[]);
        assert_eq!(args.address, DEFAULT_ADDRESS);
        assert_eq!(
            args.config,
            PathBuf::from("/etc/soci-snapshotter-grpc/config.toml")
        );
        assert_eq!(args.log_level, "info");
        assert_eq!(args.root, PathBuf::from("/var/lib/soci-snapshotter-grpc/"));
        assert!(!args.no_keeper && !args.worker);
    }

    #[test]
    fn flags_are_accepted_in_every_spelling() {
        let args = serve(&[
            "-address",
            "fd://",
            "--config=/c",
            "-log-level=debug",
            "--root",
            "/r",
            "--no-keeper",
        ]);
        let wanted = Args {
            address: "fd://".to_owned(),
            config: "/c".into(),
            log_level: "debug".to_owned(),
            root: "/r".into(),
            no_keeper: true,
            worker: false,
        };
        assert_eq!(args, wanted);
    }

    #[test]
    fn the_version_line_has_four_words() {
        for flag in ["--version", "-v"] {
            let Asked::Show(text) = parse([NAME, flag]) else {
                panic!("{flag}")
            };
            let words: Vec<_> = text.split_whitespace().collect();
            assert_eq!(words[..2], [NAME, "version"], "{text}");
            assert_eq!(words.len(), 4, "{text}");
        }
    }

    #[test]
    fn a_scrub_names_a_state_directory() {
        for line in [
            ["scrub", "--root", "/r", "--json"],
            ["--root", "/r", "scrub", "--json"],
        ] {
            let asked = parse([&[NAME], &line[..]].concat());
            assert!(
                matches!(&asked, Asked::Scrub(root, true) if root.as_os_str() == "/r"),
                "{asked:?}"
            );
        }
    }

    #[test]
    fn the_configuration_to_print_is_that_of_a_file() {
        for line in [
            ["--config=/c", "config", "dump"],
            ["config", "--config=/c", "dump"],
            ["config", "dump", "-config=/c"],
        ] {
            let asked = parse([&[NAME], &line[..]].concat());
            assert!(
                matches!(&asked, Asked::Dump(path) if path.as_os_str() == "/c"),
                "{asked:?}"
            );
        }
        let asked = parse([NAME, "config", "default"]);
        assert!(matches!(asked, Asked::Default), "{asked:?}");
        let Asked::Show(help) = parse([NAME, "config"]) else {
            panic!("help")
        };
        assert!(help.contains("dump") && help.contains("default"), "{help}");
        let asked = parse([NAME, "config", "other"]);
        assert!(
            matches!(&asked, Asked::Refused(refusal) if refusal.code != 0),
            "{asked:?}"
        );
    }

    #[test]
    fn the_help_names_every_flag_and_command() {
        let Asked::Show(help) = parse([NAME, "-h"]) else {
            panic!("help")
        };
        for word in [
            "--address",
            "SOCI_SNAPSHOTTER_ADDRESS",
            "--config",
            "SOCI_SNAPSHOTTER_CONFIG",
            "--log-level",
            "SOCI_SNAPSHOTTER_LOG_LEVEL",
            "--root",
            "SOCI_SNAPSHOTTER_ROOT",
            "--version",
            "-v",
            "scrub",
            "reads",
            "config",
        ] {
            assert!(help.contains(word), "{word}: {help}");
        }
        assert!(!help.contains("--worker"), "{help}");
    }

    #[test]
    fn an_unknown_flag_is_refused() {
        let Asked::Refused(refusal) = parse([NAME, "--nobody"]) else {
            panic!("refused")
        };
        assert_eq!(refusal.code, 1);
    }
}
