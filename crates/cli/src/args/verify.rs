//! `soci verify`: its flags and its help.

use clap::{ArgMatches, Command};
use soci_flags::{list, switch};

use super::groups::{RegistryAccess, follow_links_flag, registry_flags};
use super::{Values, json_flag, positional};

const LONG: &str = "\
Checks an image and its index against each other and says in one line each what is wrong: digests and
sizes, that every zTOC fits its layer, that its files lie one behind the other, and with --deep that
every span of every layer has its digest and every file its tar header. Exit code 1 if anything is.

The image is docker://registry/repository:tag, a path or one of the other transports of
`soci convert --standalone`, or else the name of an image in containerd. Version 1 indexes are checked,
too: those that refer to the image in the registry, or were recorded on this machine.";

const EXAMPLES: &str = "\
Examples:
  soci verify docker://registry.example/app:1-soci
  soci verify --deep app-soci.tar";

pub(super) fn command() -> Command {
    Command::new("verify")
        .about("Check an image and its index against each other")
        .long_about(LONG)
        .after_help(EXAMPLES)
        .arg(positional("image").help("The image"))
        .arg(
            positional("more")
                .num_args(0..)
                .hide(true)
                .help("Images that would not be checked"),
        )
        .arg(switch("deep").help("Read every layer"))
        .arg(follow_links_flag())
        .arg(json_flag(
            "Print one JSON object at the end instead of lines",
        ))
        .arg(
            list("platform")
                .short('p')
                .value_name("PLATFORM")
                .help("Only this platform; may be repeated (default: all that are there)"),
        )
        .args(registry_flags())
}

/// Values of `verify`.
#[derive(Debug, Clone)]
pub(crate) struct Verify {
    pub(crate) image: std::path::PathBuf,
    /// Whether more than one image was given.
    pub(crate) has_more: bool,
    pub(crate) deep: bool,
    pub(crate) follow_links: bool,
    pub(crate) json: bool,
    pub(crate) platforms: Vec<String>,
    pub(crate) registry: RegistryAccess,
}

impl Verify {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            image: values.path("image"),
            has_more: matches.contains_id("more"),
            deep: values.is("deep"),
            follow_links: values.is("follow-links"),
            json: values.is("json"),
            platforms: values.texts("platform"),
            registry: RegistryAccess::of(matches),
        }
    }
}
