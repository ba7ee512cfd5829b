//! `soci convert`: its flags and its help.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use soci_flags::switch;

use super::groups::{Platforms, PrefetchFiles, RegistryAccess, Ztocs};
use super::groups::{
    follow_links_flag, platform_flags, prefetch_flags, registry_flags, reuse_flag, ztoc_flags,
};
use super::{Values, json_flag, positional};

const CONVERT_LONG: &str = "\
Copies an image and adds a SOCI index to the copy. Nodes with the SOCI snapshotter can start containers
from the copy before its layers are downloaded.

The copy has the same layers. For each platform, the index lists the files of each layer and where they
are in the compressed layer. Only manifests are rewritten, so the copy also runs on nodes without the
snapshotter. The same image and flags always give the same digests.

With containerd (the default), <image> is the name of an image in containerd and <destination> is the
name of the copy. It needs a tag, and both names may be the same. Nothing is pulled or pushed.

With --standalone, neither containerd nor root is needed. Between registries, layers are read once and
not stored on this machine. <image> and <destination> are one of

  docker://registry/repository:tag        an image in a registry; @digest may follow
  oci:PATH[:tag], oci-archive:PATH[:tag]  an OCI image layout, as a folder or as a tar
  docker-archive:PATH[:name]              an archive of `docker save`; only as <image>
  -                                       an archive on standard input or output
  PATH                                    a layout as a folder or tar; --format selects which one to write

The command reads every layer and builds its zTOC. It skips layers whose zTOC was built and recorded on
this machine before (with containerd), or is copied from an image that --reuse-from names. Copied zTOCs
are not compared with the layers: someone who can push to that image can make nodes show wrong or missing
files, also in the new image.";

const CONVERT_EXAMPLES: &str = "\
Examples:
  soci convert docker.io/library/python:3.13 registry.example/python:3.13-soci
  soci convert --all-platforms registry.example/app:1 registry.example/app:1
  soci convert --standalone docker://registry.example/app:1 docker://registry.example/app:1-soci
  soci convert --standalone --reuse-from docker://registry.example/base:1-soci docker://registry.example/app:2 docker://registry.example/app:2-soci
  soci convert --standalone --format oci-dir --platform linux/amd64,linux/arm64 app/ app-soci/
  docker save app | soci convert --standalone - oci-archive:app-soci.tar

Layers smaller than --min-layer-size are not indexed; nodes download them whole, which is faster for small
layers. Layers that cannot be indexed (zstd, encrypted, unusual entries) are also downloaded whole. A line
names each of them, and with --strict the exit code is then 4.";

pub(super) fn command() -> Command {
    let format = Arg::new("format")
        .long("format")
        .value_parser(soci_flags::known(&["oci-archive", "oci-dir"], parse_format))
        .value_name("FORMAT")
        .default_value("oci-archive")
        .help("With --standalone, if <destination> is a PATH: write a tar (oci-archive) or a folder (oci-dir)");
    let image = positional("image")
        .help("Image to copy: a name in containerd; with --standalone a transport or PATH");
    let destination = positional("destination")
        .help("The copy: a name with a tag; with --standalone a transport or PATH");
    Command::new("convert")
        .about("Copy an image and add a SOCI index to the copy")
        .long_about(CONVERT_LONG)
        .after_help(CONVERT_EXAMPLES)
        .arg(image)
        .arg(destination)
        .arg(switch("standalone").help("Use registries and files instead of containerd"))
        .arg(format)
        .arg(switch("allow-empty").help(
            "With --standalone: if no layer is indexed, copy the image unchanged instead of failing",
        ))
        .arg(follow_links_flag())
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

/// The output format of `convert` without containerd.
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

/// Values of `convert`.
#[derive(Debug, Clone)]
pub(crate) struct Convert {
    pub(crate) image: PathBuf,
    pub(crate) destination: PathBuf,
    pub(crate) standalone: bool,
    /// `None` if not specified.
    pub(crate) format: Option<Format>,
    pub(crate) allow_empty: bool,
    pub(crate) follow_links: bool,
    pub(crate) reuse_from: Vec<String>,
    pub(crate) strict: bool,
    pub(crate) json: bool,
    pub(crate) platforms: Platforms,
    pub(crate) ztocs: Ztocs,
    pub(crate) prefetch: PrefetchFiles,
    pub(crate) registry: RegistryAccess,
}

impl Convert {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            image: values.path("image"),
            destination: values.path("destination"),
            standalone: values.is("standalone"),
            format: (matches.value_source("format") == Some(ValueSource::CommandLine))
                .then(|| matches.get_one("format").copied())
                .flatten(),
            allow_empty: values.is("allow-empty"),
            follow_links: values.is("follow-links"),
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
