//! `soci push`: its flags and its help.

use clap::builder::StringValueParser;
use clap::{Arg, ArgMatches, Command};
use soci_flags::{known, switch, text};

use super::groups::{Platforms, RegistryAccess, platform_flags, registry_flags};
use super::{Values, json_flag, positional};

const LONG: &str = "\
Sends the newest version 1 index of an image, made by `soci create`, to the registry that the image's
name says. What the registry has already is not sent again.";

const EXAMPLES: &str = "\
Examples:
  soci push registry.example/app:1
  soci push --user AWS:$(aws ecr get-login-password) 123.dkr.ecr.eu-west-1.amazonaws.com/app:1
  soci push --existing-index skip --all-platforms registry.example/app:1";

pub(super) fn command() -> Command {
    Command::new("push")
        .about("Send the index of an image to its registry")
        .long_about(LONG)
        .after_help(EXAMPLES)
        .arg(positional("ref").help("Name of the image in containerd"))
        .args(platform_flags())
        .arg(
            text("existing-index")
                .value_parser(known(&["warn", "skip", "allow"], StringValueParser::new()))
                .value_name("WHAT")
                .default_value("warn")
                .help("If the registry has an index of the image: warn, skip or allow"),
        )
        .arg(
            Arg::new("max-concurrent-uploads")
                .long("max-concurrent-uploads")
                .value_parser(soci_flags::unsigned())
                .value_name("NUMBER")
                .default_value("3")
                .help("Uploads at once"),
        )
        .arg(switch("quiet").short('q').help("Print digests only"))
        .arg(json_flag())
        .args(registry_flags())
        .arg(
            text("snapshotter")
                .env("CONTAINERD_SNAPSHOTTER")
                .value_name("NAME")
                .help("Without effect"),
        )
        .arg(switch("http-dump").help("Print HTTP requests and answers"))
        .arg(switch("http-trace").help("Print HTTP requests and answers"))
}

/// What to do about an index that the registry has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExistingIndex {
    Warn,
    Skip,
    Allow,
}

impl std::str::FromStr for ExistingIndex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "warn" => Ok(Self::Warn),
            "skip" => Ok(Self::Skip),
            "allow" => Ok(Self::Allow),
            _ => Err(format!(
                "unexpected value for flag existing-index: {text}, expected types [warn skip allow]"
            )),
        }
    }
}

/// Values of `push`.
#[derive(Debug, Clone)]
pub(crate) struct Push {
    pub(crate) reference: String,
    pub(crate) platforms: Platforms,
    /// Checked when it is needed, as the reference does.
    pub(crate) existing_index: String,
    pub(crate) max_concurrent_uploads: u64,
    pub(crate) quiet: bool,
    pub(crate) json: bool,
    pub(crate) registry: RegistryAccess,
    /// `--http-dump` or `--http-trace`; the global `--debug` means the same.
    pub(crate) trace: bool,
}

impl Push {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            reference: values.word("ref"),
            platforms: Platforms::of(matches),
            existing_index: values.text("existing-index"),
            max_concurrent_uploads: matches
                .get_one("max-concurrent-uploads")
                .copied()
                .unwrap_or_default(),
            quiet: values.is("quiet"),
            json: values.is("json"),
            registry: RegistryAccess::of(matches),
            trace: values.is("http-dump") || values.is("http-trace"),
        }
    }
}
