//! The whole grammar: commands, flags, defaults, help.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use soci_flags::{integer, list, switch, text};

/// What `git describe` said when this was built; release builds set it.
const VERSION: &str = match option_env!("SOCI_VERSION") {
    Some(version) => version,
    None => concat!("v", env!("CARGO_PKG_VERSION")),
};
/// The commit it was built from; release builds set it.
const REVISION: &str = match option_env!("SOCI_REVISION") {
    Some(revision) => revision,
    None => "<unknown>",
};

const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
const DEFAULT_NAMESPACE: &str = "default";
const DEFAULT_ROOT: &str = "/var/lib/soci-snapshotter-grpc/";

const ABOUT: &str = "Makes container images start before they are pulled";
const EXAMPLES: &str = "\
Examples:
  Convert an image in containerd and push it; nodes with the SOCI snapshotter then start it lazily:
    nerdctl pull registry.example/app:1
    soci convert registry.example/app:1 registry.example/app:1-soci
    nerdctl push registry.example/app:1-soci

  The same without containerd, from and to files:
    soci convert --standalone app.tar app-soci.tar

`soci help <command>` explains a command.";

const CONVERT_LONG: &str = "\
Makes a copy of an image that nodes with the SOCI snapshotter can start at once.

The copy has the same layers and, for each platform, an index of them: what files they hold and where
in the compressed layer each can be read. Only manifests are rewritten, so the copy runs everywhere the
original does. The same image and flags always give the same digests.

With containerd (the default), <image_ref> is the name of an image in containerd and <dest_ref> the name
to give to the copy; it needs a tag and may be the same name. Nothing is pulled or pushed.

With --standalone, <image_ref> is an OCI image layout, a folder or an uncompressed tar of one, and
<dest_ref> the file or folder to write. containerd and root rights are not needed.";

const CONVERT_EXAMPLES: &str = "\
Examples:
  soci convert docker.io/library/python:3.13 registry.example/python:3.13-soci
  soci convert --all-platforms registry.example/app:1 registry.example/app:1
  soci convert --standalone --format oci-dir --platform linux/amd64,linux/arm64 app/ app-soci/

Layers below --min-layer-size are not indexed: they are pulled whole, which is quicker for small ones.";

/// The grammar of the program.
pub(crate) fn grammar() -> Command {
    let version: &'static str = Box::leak(format!("{VERSION} {REVISION}").into_boxed_str());
    let version_flag = Arg::new("version")
        .long("version")
        .short('v')
        .action(ArgAction::Version);
    Command::new("soci")
        .about(ABOUT)
        .after_help(EXAMPLES)
        .version(version)
        .disable_version_flag(true)
        .subcommand_required(true)
        .subcommand_value_name("command")
        .arg(version_flag.help("Print the version"))
        .args(global_flags().map(|arg| arg.global(true).help_heading("Global options")))
        .subcommand(convert_command())
}

fn global_flags() -> [Arg; 6] {
    [
        text("address")
            .short('a')
            .env("CONTAINERD_ADDRESS")
            .value_name("SOCKET")
            .default_value(DEFAULT_ADDRESS)
            .help("Socket of containerd"),
        text("namespace")
            .short('n')
            .env("CONTAINERD_NAMESPACE")
            .value_name("NAME")
            .default_value(DEFAULT_NAMESPACE)
            .help("Namespace of containerd to work in"),
        Arg::new("timeout")
            .long("timeout")
            .value_parser(soci_flags::duration())
            .value_name("DURATION")
            .default_value("0s")
            .help("Give up after this time, for instance 90s or 5m; 0s: never"),
        switch("debug").help("Say more"),
        text("content-store")
            .value_name("STORE")
            .default_value("containerd")
            .help("Where artifacts are kept: containerd or soci"),
        Arg::new("root")
            .long("root")
            .value_parser(clap::value_parser!(OsString))
            .value_name("FOLDER")
            .default_value(DEFAULT_ROOT)
            .help("Folder for the state of soci"),
    ]
}

fn convert_command() -> Command {
    let format = Arg::new("format")
        .long("format")
        .value_parser(parse_format)
        .value_name("FORMAT")
        .default_value("oci-archive")
        .help("With --standalone: write a tar (oci-archive) or a folder (oci-dir)");
    let image = Arg::new("image_ref")
        .value_name("image_ref")
        .value_parser(clap::value_parser!(OsString))
        .help("The image: a name in containerd, or a path");
    let destination = Arg::new("dest_ref")
        .value_name("dest_ref")
        .value_parser(clap::value_parser!(OsString))
        .help("The copy: a name with a tag, or a path");
    Command::new("convert")
        .about("Make a copy of an image that starts lazily")
        .long_about(CONVERT_LONG)
        .after_help(CONVERT_EXAMPLES)
        .arg(image)
        .arg(destination)
        .arg(switch("standalone").help("Work on files, without containerd"))
        .arg(format)
        .args(platform_flags())
        .args(ztoc_flags())
}

fn platform_flags() -> [Arg; 2] {
    [
        switch("all-platforms").help("Index every platform of the image"),
        list("platform").short('p').value_name("PLATFORM").help(
            "Index this platform, for instance linux/arm64; may be repeated (default: the host's)",
        ),
    ]
}

fn ztoc_flags() -> [Arg; 4] {
    let number = |name| {
        Arg::new(name)
            .long(name)
            .value_parser(integer())
            .value_name("BYTES")
    };
    [
        number("span-size").default_value("4194304").help(
            "Uncompressed bytes that can be read on their own; smaller is finer and costs more",
        ),
        number("min-layer-size")
            .default_value("10485760")
            .help("Do not index layers of fewer bytes"),
        list("optimizations")
            .value_name("NAME")
            .help("Optional optimization; may be repeated (known: xattr)"),
        switch("force")
            .short('f')
            .help("Build again what was built before"),
    ]
}

/// What `convert` writes without containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// An uncompressed tar.
    Archive,
    /// A folder.
    Folder,
}

fn parse_format(text: &str) -> Result<Format, String> {
    match text {
        "oci-archive" => Ok(Format::Archive),
        "oci-dir" => Ok(Format::Folder),
        _ => Err(format!(
            "unsupported output format \"{text}\": must be \"oci-archive\" or \"oci-dir\""
        )),
    }
}

/// Values of the flags that all commands have.
#[derive(Debug, Clone)]
pub(crate) struct Global {
    pub(crate) address: String,
    pub(crate) namespace: String,
    /// `None`: no limit.
    pub(crate) timeout: Option<Duration>,
    pub(crate) content_store: String,
    pub(crate) root: PathBuf,
}

impl Global {
    /// Reads the values; an empty one means the default.
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
        }
    }
}

/// Values of `convert`.
#[derive(Debug, Clone)]
pub(crate) struct Convert {
    pub(crate) image: PathBuf,
    pub(crate) destination: PathBuf,
    pub(crate) standalone: bool,
    pub(crate) format: Format,
    pub(crate) all_platforms: bool,
    pub(crate) platforms: Vec<String>,
    pub(crate) span_size: i64,
    pub(crate) min_layer_size: i64,
    pub(crate) optimizations: Vec<String>,
}

impl Convert {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let path = |name| {
            matches
                .get_one::<OsString>(name)
                .map(PathBuf::from)
                .unwrap_or_default()
        };
        let is = |name| matches.get_one::<bool>(name).copied().unwrap_or_default();
        let number = |name| matches.get_one::<i64>(name).copied().unwrap_or_default();
        let texts = |name| {
            matches
                .get_many::<String>(name)
                .unwrap_or_default()
                .cloned()
                .collect::<Vec<_>>()
        };
        Self {
            image: path("image_ref"),
            destination: path("dest_ref"),
            standalone: is("standalone"),
            format: matches
                .get_one("format")
                .copied()
                .unwrap_or(Format::Archive),
            all_platforms: is("all-platforms"),
            platforms: texts("platform"),
            span_size: number("span-size"),
            min_layer_size: number("min-layer-size"),
            optimizations: texts("optimizations"),
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
