//! The configuration file: one struct per table, with the keys and defaults of the reference.
//!
//! Unknown keys and tables are ignored, because files for other versions and for the reference must
//! load. A key with a wrong type is fatal. Keys are matched without regard to case if there is no
//! exact match. Defaults are applied before and after parsing, so for most numbers `0` means
//! "default", as in the reference. `daemon` converts these structs into the options of each part of
//! the daemon.

mod fs;
mod http;
mod pull_modes;
mod resolver;
mod service;

use std::fs::read_to_string;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

pub use self::fs::{BackgroundFetch, Cache, Fuse, Prefetch};
pub use self::http::{Blob, Http};
pub use self::pull_modes::{Mode, PullModes};
pub use self::resolver::{Host, Mirror, Resolver};
pub use self::service::{
    ContentStore, ContentStoreKind, MountChoice, Service, SnapshotterTable, Trust,
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
    pub fuse: Fuse,
    /// Background downloads.
    pub background_fetch: BackgroundFetch,
    /// Disk space for layers.
    pub cache: Cache,
    /// Where indexes and zTOCs are stored.
    pub content_store: ContentStore,
    /// Where to look for an index.
    pub pull_modes: PullModes,
    /// Spans to download first.
    pub prefetch: Prefetch,
    /// Registry hosts.
    pub resolver: Resolver,
    /// Snapshots.
    pub snapshotter: SnapshotterTable,
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
}

impl Config {
    /// Reads the file. A missing default file gives the defaults.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
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

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let load = |source| ConfigError::Load {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let mut table: Table = toml::from_str(text).map_err(load)?;
        fold_keys(&mut table);
        let service = table.clone().try_into().map_err(load)?;
        let mut config = Self {
            service,
            ..table.try_into().map_err(load)?
        };
        config.fill().map_err(|source| ConfigError::Value {
            path: path.to_owned(),
            source,
        })?;
        Ok(config)
    }

    /// Applies defaults again and checks values.
    fn fill(&mut self) -> Result<(), ValueError> {
        self.service.fill();
        self.http.fill();
        self.blob.fill();
        self.content_store.fill()
    }
}

/// Changes the known keys of every table to their canonical case. An exact match takes precedence.
fn fold_keys(table: &mut Table) {
    fold_table(table, &[service::KEYS, TABLES].concat());
    for (name, keys) in [
        ("http", http::HTTP_KEYS),
        ("blob", http::BLOB_KEYS),
        ("fuse", fs::FUSE_KEYS),
        ("background_fetch", fs::BACKGROUND_KEYS),
        ("cache", fs::CACHE_KEYS),
        ("content_store", service::CONTENT_STORE_KEYS),
        ("prefetch", fs::PREFETCH_KEYS),
        ("pull_modes", pull_modes::KEYS),
        ("resolver", resolver::KEYS),
        ("snapshotter", service::SNAPSHOTTER_KEYS),
    ] {
        let Some(Value::Table(table)) = table.get_mut(name) else {
            continue;
        };
        fold_table(table, keys);
        if name == "pull_modes" {
            for mode in pull_modes::KEYS {
                if let Some(Value::Table(mode)) = table.get_mut(*mode) {
                    fold_table(mode, pull_modes::MODE_KEYS);
                }
            }
        }
    }
}

const TABLES: &[&str] = &[
    "http",
    "blob",
    "fuse",
    "background_fetch",
    "cache",
    "content_store",
    "prefetch",
    "pull_modes",
    "resolver",
    "snapshotter",
];

fn fold_table(table: &mut Table, known: &[&str]) {
    for &key in known {
        if table.contains_key(key) {
            continue;
        }
        let other = table
            .keys()
            .find(|found| found.eq_ignore_ascii_case(key))
            .cloned();
        if let Some(value) = other.and_then(|other| table.remove(&other)) {
            table.insert(key.to_owned(), value);
        }
    }
}

/// Replaces `0` with the default.
fn or_default(value: &mut i64, default: i64) {
    if *value == 0 {
        *value = default;
    }
}

#[cfg(test)]
mod tests;
