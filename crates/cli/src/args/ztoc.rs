//! `soci ztoc`: its commands, their flags and help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, ValueHint};
use soci_flags::{switch, text};

use super::{Values, json_flag, positional};

const EXAMPLES: &str = "\
Examples:
  soci ztoc list --image-ref registry.example/app:1
  soci ztoc info sha256:...
  soci ztoc get-file sha256:... etc/os-release";

pub(super) fn command() -> Command {
    Command::new("ztoc")
        .about("List and print zTOCs, and read files with them")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .subcommand_value_name("command")
        .subcommands([list_command(), info_command(), get_file_command()])
}

fn list_command() -> Command {
    Command::new("list")
        .visible_alias("ls")
        .about("List the zTOCs that were built on this machine")
        .after_help(
            "Examples:\n  soci ztoc list\n  soci ztoc list --image-ref registry.example/app:1 -q",
        )
        .arg(
            text("ztoc-digest")
                .value_name("DIGEST")
                .help("List only this zTOC"),
        )
        .arg(
            text("image-ref")
                .value_name("IMAGE")
                .help("List only zTOCs of this image in containerd"),
        )
        .arg(switch("quiet").short('q').help("Print digests only"))
        .arg(json_flag("Print one JSON object instead of a table"))
}

fn info_command() -> Command {
    Command::new("info")
        .about("Print the spans and files of a layer as JSON")
        .after_help("Example:\n  soci ztoc info sha256:... | jq '.files[].filename'")
        .arg(positional("digest").help("Digest of the zTOC"))
        .arg(json_flag("Print the JSON on one line"))
}

fn get_file_command() -> Command {
    Command::new("get-file")
        .about("Print one file of a layer")
        .after_help("Examples:\n  soci ztoc get-file sha256:... etc/os-release\n  soci ztoc get-file -o sh sha256:... bin/sh")
        .arg(positional("digest").help("Digest of the zTOC"))
        .arg(positional("file").help("Name of the file, as `soci ztoc info` prints it"))
        // This command rejects surplus arguments itself, with the reference's message.
        .arg(positional("extra").num_args(0..).hide(true))
        .arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .value_parser(clap::value_parser!(OsString))
                .value_name("FILE")
                .value_hint(ValueHint::FilePath)
                .help("Write to this file (default: standard output, followed by a newline)"),
        )
}

/// Values of `ztoc list`.
#[derive(Debug, Clone)]
pub(crate) struct ZtocList {
    pub(crate) digest: String,
    pub(crate) image: String,
    pub(crate) quiet: bool,
    pub(crate) json: bool,
}

impl ZtocList {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            digest: values.text("ztoc-digest"),
            image: values.text("image-ref"),
            quiet: values.is("quiet"),
            json: values.is("json"),
        }
    }
}

/// Values of `ztoc info`.
#[derive(Debug, Clone)]
pub(crate) struct ZtocInfo {
    pub(crate) digest: String,
    pub(crate) json: bool,
}

impl ZtocInfo {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self {
            digest: Values(matches).word("digest"),
            json: Values(matches).is("json"),
        }
    }
}

/// Values of `ztoc get-file`.
#[derive(Debug, Clone)]
pub(crate) struct ZtocGetFile {
    pub(crate) digest: String,
    /// The name in the layer, as arbitrary bytes.
    pub(crate) file: PathBuf,
    pub(crate) output: Option<PathBuf>,
    /// Whether exactly the required operands were given.
    pub(crate) is_complete: bool,
}

impl ZtocGetFile {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let output = matches.get_one::<OsString>("output").map(PathBuf::from);
        Self {
            digest: Values(matches).word("digest"),
            file: Values(matches).path("file"),
            is_complete: matches.contains_id("file") && !matches.contains_id("extra"),
            output: output.filter(|path| !path.as_os_str().is_empty()),
        }
    }
}
