//! `soci status`: its flags and its help.

use std::path::PathBuf;

use clap::{ArgMatches, Command};
use soci_flags::switch;

use super::groups::socket_flag;
use super::{Values, json_flag, positional};

const LONG: &str = "\
Shows what became of each image that the snapshotter provides on this machine: loaded lazily, downloaded
by the daemon (local, parallel), left to containerd, or refused; why; how much is on disk; and how often
containers waited for a download. Counts begin when the daemon starts.

With <image>, shows its layers too. <image> is a reference as containerd has it, its end after a slash
(app:1 for registry.example/app:1), or the digest of the manifest.

Images of all namespaces are shown. An image of which another image already had every layer is shown
under the reference that was pulled first.";

const EXAMPLES: &str = "\
Examples:
  soci status
  soci status registry.example/app:1
  soci status --json --watch";

pub(super) fn command() -> Command {
    Command::new("status")
        .about("Show how the snapshotter on this machine provides each image, and why")
        .long_about(LONG)
        .after_help(EXAMPLES)
        .arg(positional("image").help("Image to describe (default: all, one line each)"))
        .arg(json_flag(
            "Print a JSON object (with --watch: one line each time)",
        ))
        .arg(switch("watch").help("Repeat every two seconds until interrupted"))
        .arg(socket_flag())
}

/// Values of `status`.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    /// Empty means all images.
    pub(crate) image: String,
    pub(crate) json: bool,
    pub(crate) watch: bool,
    pub(crate) socket: PathBuf,
}

impl Status {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            image: values.word("image"),
            json: values.is("json"),
            watch: values.is("watch"),
            socket: values.path("socket"),
        }
    }
}
