//! `soci create`: its flags and its help.

use std::path::PathBuf;

use clap::{ArgMatches, Command};
use soci_flags::switch;

use super::groups::{Platforms, PrefetchFiles, RegistryAccess, Ztocs};
use super::groups::{platform_flags, prefetch_flags, registry_flags, reuse_flag, ztoc_flags};
use super::{Values, json_flag, positional};

const LONG: &str = "\
Builds a version 1 index of an image: an artifact beside the image that refers to it. The image itself
stays as it is. The index is kept with the image in containerd; `soci push` sends it to the registry.

Version 1 indexes are found by asking the registry for what refers to an image, which must be switched
on in the snapshotter. `soci convert` makes images that carry their index, and is the better choice.

With --standalone, <image> is docker://registry/repository:tag; the index is pushed to the same
repository. containerd and root rights are not needed. --reuse-from copies zTOCs without comparing them with
the layers: someone who can push to that image can make nodes show wrong or missing files.";

const EXAMPLES: &str = "\
Examples:
  soci create registry.example/app:1 && soci push registry.example/app:1
  soci create --standalone docker://registry.example/app:1";

pub(super) fn command() -> Command {
    Command::new("create")
        .about("Build an index beside an image")
        .long_about(LONG)
        .after_help(EXAMPLES)
        .arg(
            positional("image")
                .help("The image: a name in containerd, or with --standalone docker://..."),
        )
        .arg(switch("standalone").help("Work on a registry, without containerd"))
        .arg(reuse_flag())
        .arg(switch("strict").help("Exit with code 4 if a layer that should have a zTOC has none"))
        .arg(json_flag(
            "Print one JSON object at the end instead of lines",
        ))
        .args(platform_flags())
        .args(ztoc_flags())
        .args(prefetch_flags())
        .args(registry_flags())
}

/// Values of `create`.
#[derive(Debug, Clone)]
pub(crate) struct Create {
    pub(crate) image: PathBuf,
    pub(crate) standalone: bool,
    pub(crate) reuse_from: Vec<String>,
    pub(crate) strict: bool,
    pub(crate) json: bool,
    pub(crate) platforms: Platforms,
    pub(crate) ztocs: Ztocs,
    pub(crate) prefetch: PrefetchFiles,
    pub(crate) registry: RegistryAccess,
}

impl Create {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            image: values.path("image"),
            standalone: values.is("standalone"),
            reuse_from: values.texts("reuse-from"),
            strict: values.is("strict"),
            json: values.is("json"),
            platforms: Platforms::of(matches),
            ztocs: Ztocs::of(matches),
            prefetch: PrefetchFiles::of(matches),
            registry: RegistryAccess::of(matches),
        }
    }
}
