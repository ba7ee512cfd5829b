//! The configuration file: one struct per table, with the keys and defaults of the reference.
//!
//! `declare` makes everything about a key from its declaration: parsing, default, `config dump`
//! and `docs/config.md`. `SECTIONS` lists the tables in the order of the reference's file.
//!
//! Unknown keys and tables are ignored with a warning, because files for other versions and for the
//! reference must load. A key with a wrong type is fatal. Defaults are applied before and after
//! parsing, so for most numbers `0` means "default", as in the reference. `daemon` converts these
//! structs into the options of each part of the daemon.

mod declare;
mod document;
mod dump;
mod fs;
mod http;
mod keychain;
mod pull_modes;
mod read;
mod registry;
mod remarks;
mod resolver;
mod service;

use std::fs::read_to_string;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Table;

use self::declare::{Declared, Key};
pub use self::document::document;
pub use self::dump::{defaults, dump};
pub use self::fs::{BackgroundFetch, Cache, DirectoryCache, FetchMode, Fuse, Prefetch};
pub use self::http::{Blob, Http};
pub use self::keychain::{CredentialProviders, CriKeychain, KubeconfigKeychain};
pub use self::pull_modes::{Parallel, ParallelError, PullModes, SociV1, SociV2, Stream};
pub use self::read::unknown_keys;
pub use self::registry::RegistryTable;
use self::remarks::Remarks;
pub use self::resolver::{Host, Mirror, Resolver};
pub use self::service::{
    ContentStore, ContentStoreKind, LazyUsage, MountChoice, Service, SnapshotterTable, Trust,
};

/// The default configuration file. Only this file may be missing.
pub const DEFAULT_PATH: &str = "/etc/soci-snapshotter-grpc/config.toml";

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Top-level keys. Parsed separately, because serde's `flatten` loses the key in error
    /// messages.
    #[serde(skip)]
    pub service: Service,
    /// Requests to registries.
    pub http: Http,
    /// Downloads of layers.
    pub blob: Blob,
    /// Accepted without effect.
    pub directory_cache: DirectoryCache,
    /// Accepted without effect.
    pub fuse: Fuse,
    /// Background downloads.
    pub background_fetch: BackgroundFetch,
    /// Where indexes and zTOCs are stored.
    pub content_store: ContentStore,
    /// Spans to download first.
    pub prefetch: Prefetch,
    /// Where to look for an index.
    pub pull_modes: PullModes,
    /// Credentials from Kubernetes.
    pub kubeconfig_keychain: KubeconfigKeychain,
    /// Credentials from the kubelet.
    pub cri_keychain: CriKeychain,
    /// Registry hosts.
    pub resolver: Resolver,
    /// Snapshots.
    pub snapshotter: SnapshotterTable,
    /// Disk space for layers.
    pub cache: Cache,
    /// Credentials from the kubelet's plugins.
    pub credential_providers: CredentialProviders,
    /// Registry settings that the node shares with containerd.
    pub registry: RegistryTable,
}

/// A table of the file.
struct Section {
    /// Steps separated by dots. `*` stands for any name; it also covers every table of a list.
    path: &'static str,
    about: &'static [&'static str],
    keys: &'static [Key],
    /// The values of the keys as they are printed. For a path with `*`, those of a new table.
    values: fn(&Config) -> Vec<String>,
    fill: fn(&mut Config),
}

/// A row of [`SECTIONS`]: a path with the field and type of its values, or only with the type.
macro_rules! section {
    ($path:literal, $table:ty, $($field:ident).+) => {
        Section {
            path: $path,
            about: <$table>::ABOUT,
            keys: <$table>::KEYS,
            values: |config| config.$($field).+.values(),
            fill: |config| config.$($field).+.fill(),
        }
    };
    ($path:literal, $table:ty) => {
        Section {
            path: $path,
            about: <$table>::ABOUT,
            keys: <$table>::KEYS,
            values: |_| <$table>::default().values(),
            fill: |_| {},
        }
    };
}

/// Every table, in the order of the reference's file. Tables of our own follow.
const SECTIONS: &[Section] = &[
    section!("", Service, service),
    section!("http", Http, http),
    section!("blob", Blob, blob),
    section!("directory_cache", DirectoryCache, directory_cache),
    section!("fuse", Fuse, fuse),
    section!("background_fetch", BackgroundFetch, background_fetch),
    section!("content_store", ContentStore, content_store),
    section!("prefetch", Prefetch, prefetch),
    section!("pull_modes", PullModes, pull_modes),
    section!("pull_modes.soci_v1", SociV1, pull_modes.soci_v1),
    section!("pull_modes.soci_v2", SociV2, pull_modes.soci_v2),
    section!(
        "pull_modes.parallel_pull_unpack",
        Parallel,
        pull_modes.parallel_pull_unpack
    ),
    section!(
        "pull_modes.parallel_pull_unpack.decompress_streams.*",
        Stream
    ),
    section!(
        "kubeconfig_keychain",
        KubeconfigKeychain,
        kubeconfig_keychain
    ),
    section!("cri_keychain", CriKeychain, cri_keychain),
    section!("resolver", Resolver, resolver),
    section!("resolver.host.*", Host),
    section!("resolver.host.*.mirrors", Mirror),
    section!("snapshotter", SnapshotterTable, snapshotter),
    section!("cache", Cache, cache),
    section!(
        "credential_providers",
        CredentialProviders,
        credential_providers
    ),
    section!("registry", RegistryTable, registry),
];

impl Section {
    /// Whether the path stands for any number of tables.
    fn is_pattern(&self) -> bool {
        self.path.contains('*')
    }

    /// The path of one of its keys.
    fn path_of(&self, key: &Key) -> String {
        match self.path {
            "" => key.name.to_owned(),
            path => format!("{path}.{}", key.name),
        }
    }
}

/// Why the configuration cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or cannot be read.
    #[error("failed to open config file {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or a key has the wrong type.
    #[error("failed to load config file {path:?}")]
    Load {
        /// The file.
        path: PathBuf,
        /// The position and the problem.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is not allowed for its key.
    #[error("failed to load config file {path:?}: {source}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The invalid value.
        source: ValueError,
    },
}

/// A value that is not allowed for its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// `[content_store] type` is unknown.
    #[error("unknown content store type {0:?}")]
    ContentStore(String),
    /// `metadata_store` is unknown.
    #[error("unknown metadata store type {0:?}: use \"db\" or \"db-multi\"")]
    MetadataStore(String),
    /// `[background_fetch] drop_policy` is unknown.
    #[error("unknown drop policy {0:?} of the background fetch: use \"newest\" or \"oldest\"")]
    DropPolicy(String),
    /// The parallel mode cannot keep the layers.
    #[error(
        "[pull_modes.parallel_pull_unpack] needs [content_store] type = \"containerd\", or discard_unpacked_layers = true"
    )]
    ParallelStore,
    /// A value of the parallel mode is not allowed.
    #[error("[pull_modes.parallel_pull_unpack]: {0}")]
    Parallel(#[from] ParallelError),
}

impl Config {
    /// Reads the file and logs what is odd about it. A missing default file gives the defaults.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match read_to_string(path) {
            Ok(text) => {
                let (config, remarks) = Self::parse(path, &text)?;
                remarks.log();
                Ok(config)
            }
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) =>
            {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Open {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<(Self, Remarks), ConfigError> {
        let load = |source| ConfigError::Load {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let mut table: Table = toml::from_str(text).map_err(load)?;
        let mut remarks = Remarks {
            unknown: read::fold(&mut table),
            ..Remarks::default()
        };
        remarks.moved = read::take_limits(&mut table);
        let service = table.clone().try_into().map_err(load)?;
        let mut config = Self {
            service,
            ..table.try_into().map_err(load)?
        };
        config.settle().map_err(|source| ConfigError::Value {
            path: path.to_owned(),
            source,
        })?;
        remarks.add_values(&config);
        Ok((config, remarks))
    }

    /// Applies defaults again, brings values into their effective form and checks them.
    fn settle(&mut self) -> Result<(), ValueError> {
        for section in SECTIONS {
            (section.fill)(self);
        }
        self.service.settle();
        self.blob.settle();
        self.prefetch.settle();
        self.content_store.settle();
        self.cri_keychain.settle();
        self.service.check()?;
        self.content_store.check()?;
        self.background_fetch.check()?;
        let parallel = &self.pull_modes.parallel_pull_unpack;
        parallel.check()?;
        let keeps = parallel.is_on() && !parallel.discard_unpacked_layers;
        match self.content_store.kind() {
            ContentStoreKind::Soci if keeps => Err(ValueError::ParallelStore),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
