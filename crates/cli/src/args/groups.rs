//! Groups of flags that several commands share.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, ValueHint};
use soci_flags::{integer, list, switch};

use super::Values;

/// Flags that select platforms of an image.
pub(super) fn platform_flags() -> [Arg; 2] {
    [
        switch("all-platforms").help("Select all platforms of the image"),
        list("platform").short('p').value_name("PLATFORM").help(
            "Select this platform, for example linux/arm64; may be repeated (default: the host's)",
        ),
    ]
}

/// The values of [`platform_flags`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Platforms {
    pub(crate) all: bool,
    pub(crate) listed: Vec<String>,
}

impl Platforms {
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            all: values.is("all-platforms"),
            listed: values.texts("platform"),
        }
    }
}

/// Flags that control how zTOCs are built and which are reused.
pub(super) fn ztoc_flags() -> [Arg; 4] {
    let number = |name| {
        Arg::new(name)
            .long(name)
            .value_parser(integer())
            .value_name("BYTES")
    };
    [
        number("span-size").default_value("4194304").help(
            "Size of a span in uncompressed bytes. Smaller spans make reads smaller and zTOCs larger",
        ),
        number("min-layer-size")
            .default_value("10485760")
            .help("Do not index layers that are smaller than this"),
        list("optimizations")
            .value_name("NAME")
            .value_parser(soci_flags::known(&["xattr"], soci_flags::trimmed()))
            .help("Optional optimization; may be repeated (known: xattr)"),
        switch("force")
            .short('f')
            .help("Build every zTOC, even if this machine has already built it"),
    ]
}

/// The flag that names the status socket of the daemon.
pub(super) fn socket_flag() -> Arg {
    Arg::new("socket")
        .long("socket")
        .value_parser(clap::value_parser!(std::ffi::OsString))
        .value_name("SOCKET")
        .value_hint(ValueHint::FilePath)
        .default_value(soci_status::DEFAULT_SOCKET)
        .help("Status socket of the daemon: status.sock in the directory of its --address")
}

/// The flag that allows links out of a layout.
pub(super) fn follow_links_flag() -> Arg {
    switch("follow-links")
        .help("Follow links from a layout to files outside of it, as Bazel creates them")
}

/// The flag that names the images whose zTOCs are reused.
pub(super) fn reuse_flag() -> Arg {
    list("reuse-from").value_name("IMAGE").help(
        "With --standalone: copy the zTOCs of this image in a registry instead of reading the layers. They are not \
         verified, so use only images that you trust; may be repeated",
    )
}

/// The values of [`ztoc_flags`], unchecked.
#[derive(Debug, Clone)]
pub(crate) struct Ztocs {
    pub(crate) span_size: i64,
    pub(crate) min_layer_size: i64,
    pub(crate) optimizations: Vec<String>,
    pub(crate) force: bool,
}

impl Ztocs {
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        Self {
            span_size: values.number("span-size"),
            min_layer_size: values.number("min-layer-size"),
            optimizations: values.texts("optimizations"),
            force: values.is("force"),
        }
    }
}

/// Flags that select the files to prefetch.
pub(super) fn prefetch_flags() -> [Arg; 3] {
    [
        list("prefetch-file")
            .value_name("PATH")
            .help("File of the image that nodes download first; may be repeated"),
        Arg::new("prefetch-files-json")
            .long("prefetch-files-json")
            .value_parser(clap::value_parser!(PathBuf))
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help("Read more such files from this JSON file, an array of paths"),
        Arg::new("prefetch-record")
            .long("prefetch-record")
            .value_parser(clap::value_parser!(PathBuf))
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help("Have nodes download first what this record of a start names; see `soci prefetch record`"),
    ]
}

/// The values of [`prefetch_flags`].
#[derive(Debug, Clone, Default)]
pub(crate) struct PrefetchFiles {
    pub(crate) files: Vec<String>,
    /// A file that contains an array of paths.
    pub(crate) json: Option<PathBuf>,
    /// A record of a start.
    pub(crate) record: Option<PathBuf>,
}

impl PrefetchFiles {
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let json = matches.get_one::<PathBuf>("prefetch-files-json");
        let record = matches.get_one::<PathBuf>("prefetch-record");
        Self {
            files: Values(matches).texts("prefetch-file"),
            json: json.filter(|path| !path.as_os_str().is_empty()).cloned(),
            record: record.filter(|path| !path.as_os_str().is_empty()).cloned(),
        }
    }
}

/// Flags for registry access, the same as for `push`.
pub(super) fn registry_flags() -> [Arg; 9] {
    use soci_flags::text;
    [
        text("user")
            .short('u')
            .value_name("NAME")
            .help(
                "User name for the registry (default: from Docker's configuration). NAME:PASSWORD also works, but \
                 is visible to other users of the machine; use --password-stdin",
            ),
        switch("password-stdin").help("Read the password of --user from standard input"),
        switch("plain-http").help("Use HTTP without TLS"),
        switch("skip-verify")
            .short('k')
            .help("Do not verify the registry's TLS certificate"),
        text("hosts-dir")
            .value_name("FOLDERS")
            .value_hint(ValueHint::DirPath)
            .default_value("/etc/containerd/certs.d,/etc/docker/certs.d")
            .help("Folders that contain <host>/hosts.toml, as for containerd; separated by commas"),
        text("tlscacert")
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help("File with additional certificate authorities"),
        text("tlscert")
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help("Client certificate for the registry"),
        text("tlskey")
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help("Private key of --tlscert"),
        text("refresh")
            .value_name("TOKEN")
            .help("Refresh token for the registry's token server"),
    ]
}

/// The values of [`registry_flags`].
#[derive(Debug, Clone, Default)]
pub(crate) struct RegistryAccess {
    pub(crate) user: String,
    pub(crate) password_stdin: bool,
    pub(crate) plain_http: bool,
    pub(crate) skip_verify: bool,
    pub(crate) hosts_dirs: Vec<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) refresh: String,
}

impl RegistryAccess {
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let values = Values(matches);
        let file = |name| {
            Some(PathBuf::from(values.text(name))).filter(|path| !path.as_os_str().is_empty())
        };
        let folders = values.text("hosts-dir");
        let folders = folders.split(',').filter(|folder| !folder.is_empty());
        Self {
            user: values.text("user"),
            password_stdin: values.is("password-stdin"),
            plain_http: values.is("plain-http"),
            skip_verify: values.is("skip-verify"),
            hosts_dirs: folders.map(PathBuf::from).collect(),
            ca: file("tlscacert"),
            cert: file("tlscert"),
            key: file("tlskey"),
            refresh: values.text("refresh"),
        }
    }
}
