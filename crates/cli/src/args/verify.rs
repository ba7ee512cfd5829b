//! `soci verify`: its flags and its help.

use clap::{ArgMatches, Command};
use soci_flags::{list, switch};

use super::groups::{RegistryAccess, follow_links_flag, registry_flags};
use super::{Values, json_flag, positional};

const LONG: &str = "\
Checks that an image and its SOCI indexes are consistent, and prints one line per problem. It checks
digests and sizes, the links between manifests and indexes, and each zTOC against its layer. With --deep
it reads every layer and also checks each span, each checkpoint, the tar header of each file, and the
diff-IDs. The exit code is 1 if there are problems.

<image> is docker://registry/repository:tag, another transport or a PATH (see `soci convert --help`), or
the name of an image in containerd. Version 1 indexes are checked too: those that refer to the image in
the registry, or that are recorded on this machine.";

const EXAMPLES: &str = "\
Examples:
  soci verify docker://registry.example/app:1-soci
  soci verify --deep app-soci.tar";

pub(super) fn command() -> Command {
    Command::new("verify")
        .about("Check that an image and its index are consistent")
        .long_about(LONG)
        .after_help(EXAMPLES)
        .arg(positional("image").help("Image to check: a transport, a PATH, or a name in containerd"))
        .arg(
            positional("more")
                .num_args(0..)
                .hide(true)
                .help("Surplus images, which are rejected"),
        )
        .arg(switch("deep").help("Read every layer and compare it with its zTOC and diff-ID"))
        .arg(follow_links_flag())
        .arg(json_flag(
            "Print one JSON object at the end instead of lines",
        ))
        .arg(
            list("platform")
                .short('p')
                .value_name("PLATFORM")
                .help("Check only this platform, for example linux/arm64; may be repeated (default: all that are present)"),
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
