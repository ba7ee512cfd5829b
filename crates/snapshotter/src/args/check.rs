//! Command line of `check`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::ValueParser;
use clap::{ArgMatches, Command};
use serde::Serialize;

use super::{Args, DEFAULT_ADDRESS};

/// Name of the command.
pub(super) const NAME: &str = "check";
/// containerd's default configuration file.
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
/// Shortest pause between two checks.
const SHORTEST: Duration = Duration::from_secs(1);

/// What to check.
#[derive(Clone, Debug)]
pub struct CheckArgs {
    /// The flags of the daemon: address, configuration and state directory.
    pub daemon: Args,
    /// containerd's configuration file.
    pub containerd: PathBuf,
    /// An image to look up, if any.
    pub image: Option<String>,
    /// Parts to run; empty means all.
    pub only: BTreeSet<Part>,
    /// What to change in containerd's configuration first.
    pub change: Change,
    /// Print JSON.
    pub json: bool,
    /// Repeat with this pause until the process is ended.
    pub watch: Option<Duration>,
}

/// A part of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Kernel version and features.
    Kernel,
    /// The daemon's configuration file.
    Config,
    /// The file system of the state directory.
    Disk,
    /// A mount of a tiny image.
    Mount,
    /// containerd's configuration.
    Containerd,
    /// The daemon's socket.
    Socket,
    /// The image given with `--image`.
    Image,
}

impl Part {
    /// All parts with their names, in the order of their rows.
    pub const ALL: [(&'static str, Self); 7] = [
        ("kernel", Self::Kernel),
        ("config", Self::Config),
        ("disk", Self::Disk),
        ("mount", Self::Mount),
        ("containerd", Self::Containerd),
        ("socket", Self::Socket),
        ("image", Self::Image),
    ];

    fn named(name: &str) -> Result<Self, &'static str> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name.trim());
        found.map(|(_, part)| *part).ok_or("unknown part")
    }
}

/// What to change in containerd's configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    #[default]
    Nothing,
    /// Add the missing settings.
    Fix,
    /// Remove what `Fix` added.
    Undo,
}

impl CheckArgs {
    pub(super) fn of(daemon: Args, matches: &ArgMatches) -> Self {
        let switch = |name| matches.get_one::<bool>(name).copied().unwrap_or_default();
        let text = |name| matches.get_one::<String>(name).cloned();
        let change = match (switch("undo"), switch("fix")) {
            (true, _) => Change::Undo,
            (false, true) => Change::Fix,
            (false, false) => Change::Nothing,
        };
        let watch = matches.get_one::<Duration>("watch");
        Self {
            daemon,
            containerd: text("containerd-config").unwrap_or_default().into(),
            image: text("image"),
            only: matches
                .get_many::<Part>("only")
                .into_iter()
                .flatten()
                .copied()
                .collect(),
            change,
            json: switch("json"),
            watch: watch.map(|pause| *pause.max(&SHORTEST)),
        }
    }

    /// Whether to run this part.
    #[must_use]
    pub fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// The path of the daemon's socket. A socket of systemd is expected at the default path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        let address = self.daemon.address.as_str();
        match address.split_once("://") {
            Some(("unix", path)) => Path::new(path),
            Some(_) => Path::new(DEFAULT_ADDRESS),
            None => Path::new(address),
        }
    }
}

/// The grammar.
pub(super) fn command() -> Command {
    let text = soci_flags::text;
    let switch = soci_flags::switch;
    Command::new(NAME)
        .about("Check whether this node can load layers lazily, and say what to change. Exits with 1 if there is a problem")
        .arg(
            text("containerd-config")
                .default_value(CONTAINERD_CONFIG)
                .help("path to containerd's configuration file"),
        )
        .arg(text("image").help(
            "also look up this image, with the daemon's registry settings and credentials",
        ))
        .arg(
            soci_flags::list("only")
                .value_parser(ValueParser::new(Part::named))
                .help("run only these parts [kernel, config, disk, mount, containerd, socket, image]"),
        )
        .arg(switch("fix").help(
            "write the settings that containerd lacks to a file that its configuration imports",
        ))
        .arg(switch("undo").help("take back what --fix did"))
        .arg(switch("json").help("print one line of JSON"))
        .arg(
            text("watch")
                .value_parser(soci_flags::duration())
                .help("repeat with this pause, print what changes, and do not exit"),
        )
}

#[cfg(test)]
mod tests {
    use super::super::{Asked, NAME, parse};
    use super::*;

    fn parsed(arguments: &[&str]) -> CheckArgs {
        match parse([&[NAME, "check"], arguments].concat()) {
            Asked::Check(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_is_checked_and_nothing_changed_by_default() {
        let args = parsed(&[]);
        assert!(Part::ALL.iter().all(|(_, part)| args.wants(*part)));
        assert_eq!(args.change, Change::Nothing);
        assert_eq!(args.containerd, Path::new("/etc/containerd/config.toml"));
        assert_eq!(args.socket(), Path::new(DEFAULT_ADDRESS));
        assert!(args.watch.is_none() && args.image.is_none() && !args.json);
    }

    #[test]
    fn parts_a_pause_and_the_flags_of_the_daemon_are_accepted() {
        let args = parsed(&[
            "--only",
            "socket, disk",
            "--watch",
            "30s",
            "--address",
            "unix:///s",
            "--config",
            "/c",
            "--root=/r",
            "--fix",
        ]);
        assert_eq!(args.only, BTreeSet::from([Part::Socket, Part::Disk]));
        assert!(!args.wants(Part::Kernel));
        assert_eq!(args.watch, Some(Duration::from_secs(30)));
        assert_eq!(args.socket(), Path::new("/s"));
        assert_eq!(args.daemon.config, Path::new("/c"));
        assert_eq!(args.daemon.root, Path::new("/r"));
        assert_eq!(args.change, Change::Fix);
        assert_eq!(
            parsed(&["--address", "fd://"]).socket(),
            Path::new(DEFAULT_ADDRESS)
        );
        assert_eq!(parsed(&["--watch", "1ms"]).watch, Some(SHORTEST));
    }

    #[test]
    fn an_unknown_part_is_refused() {
        let asked = parse([NAME, "check", "--only", "wheels"]);
        assert!(matches!(asked, Asked::Refused(_)), "{asked:?}");
    }

    #[test]
    fn every_part_has_the_name_of_its_json() {
        for (name, part) in Part::ALL {
            assert_eq!(serde_json::to_value(part).unwrap(), name);
        }
    }
}
