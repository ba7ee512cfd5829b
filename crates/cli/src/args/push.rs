//! `soci push`: its flags and its help.

use clap::builder::StringValueParser;
use clap::{Arg, ArgMatches, Command};
use soci_flags::{known, switch, text};
use soci_index::push::Existing;

use super::groups::{Platforms, RegistryAccess, platform_flags, registry_flags};
use super::{Values, json_flag, positional};

const LONG: &str = "\
Pushes the newest version 1 index of an image, which `soci create` built, to the registry in the image's
name. Blobs that the registry already has are not sent.";

const EXAMPLES: &str = "\
Examples:
  soci push registry.example/app:1
  aws ecr get-login-password | soci push --user AWS --password-stdin 123.dkr.ecr.eu-west-1.amazonaws.com/app:1
  soci push --existing-index skip --all-platforms registry.example/app:1";

pub(super) fn command() -> Command {
    Command::new("push")
        .about("Push the version 1 index of an image to its registry")
        .long_about(LONG)
        .after_help(EXAMPLES)
        .arg(positional("image").help("Image: a name in containerd"))
        .args(platform_flags())
        .arg(
            text("existing-index")
                .value_parser(known(&["warn", "skip", "allow"], StringValueParser::new()))
                .value_name("WHAT")
                .default_value("warn")
                .help("If the registry already has an index of the image: warn (push and warn), skip (do not push) or allow (push)"),
        )
        .arg(
            Arg::new("max-concurrent-uploads")
                .long("max-concurrent-uploads")
                .value_parser(soci_flags::unsigned())
                .value_name("NUMBER")
                .default_value("3")
                .help("Maximum number of concurrent uploads"),
        )
        .arg(switch("quiet").short('q').help("Print digests only"))
        .arg(json_flag(
            "Print one JSON object at the end instead of lines",
        ))
        .args(registry_flags())
        .arg(
            text("snapshotter")
                .env("CONTAINERD_SNAPSHOTTER")
                .value_name("NAME")
                .help("Has no effect; accepted for compatibility"),
        )
        .arg(switch("http-dump").help("Same as --debug"))
        .arg(switch("http-trace").help("Same as --debug"))
}

/// An invalid value of `--existing-index`.
#[derive(Debug, thiserror::Error)]
#[error("unexpected value for flag existing-index: {0}, expected types [warn skip allow]")]
pub(crate) struct UnknownExisting(String);

/// Values of `push`.
#[derive(Debug, Clone)]
pub(crate) struct Push {
    pub(crate) reference: String,
    pub(crate) platforms: Platforms,
    existing_index: String,
    pub(crate) max_concurrent_uploads: u64,
    pub(crate) quiet: bool,
    pub(crate) json: bool,
    pub(crate) registry: RegistryAccess,
    /// `--http-dump` or `--http-trace`; the global `--debug` has the same effect.
    pub(crate) trace: bool,
}

impl Push {
    /// How to handle an index that already exists in the registry.
    pub(crate) fn existing_index(&self) -> Result<Existing, UnknownExisting> {
        match self.existing_index.as_str() {
            "warn" => Ok(Existing::Warn),
            "skip" => Ok(Existing::Skip),
            "allow" => Ok(Existing::Allow),
            other => Err(UnknownExisting(other.to_owned())),
        }
    }

    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            reference: values.word("image"),
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
