//! `soci create`: its flags and its help.

use std::path::PathBuf;

use clap::{ArgMatches, Command};
use soci_flags::switch;

use super::groups::{Platforms, PrefetchFiles, RegistryAccess, Ztocs};
use super::groups::{platform_flags, prefetch_flags, registry_flags, reuse_flag, ztoc_flags};
use super::{Values, json_flag, positional};

const LONG: &str = "\
Builds a version 1 index of an image: a separate artifact that refers to the image. The image does not
change. The index is stored in containerd with the image; `soci push` pushes it to the registry.

To find a version 1 index, a node asks the registry for artifacts that refer to the image. The
snapshotter does this only if it is enabled in its configuration. Prefer `soci convert`: its images
contain their index.

With --standalone, <image> is docker://registry/repository:tag, and the index is pushed to the same
repository. Neither containerd nor root is needed. zTOCs that --reuse-from copies are not compared with
the layers: someone who can push to that image can make nodes show wrong or missing files.";

const EXAMPLES: &str = "\
Examples:
  soci create registry.example/app:1 && soci push registry.example/app:1
  soci create --standalone docker://registry.example/app:1";

pub(super) fn command() -> Command {
    Command::new("create")
        .about("Build a version 1 index of an image")
        .long_about(LONG)
        .after_help(EXAMPLES)
        .arg(
            positional("image")
                .help("Image to index: a name in containerd; with --standalone docker://registry/repository:tag"),
        )
        .arg(switch("standalone").help("Use a registry instead of containerd"))
        .arg(reuse_flag())
        .arg(switch("strict").help("Exit with code 4 if a layer of at least --min-layer-size has no zTOC"))
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
