//! The configuration file: one struct for each table, with the reference's keys and defaults.
//!
//! Unknown keys and tables are ignored, because files written for other versions and for the reference must
//! load; a key of the wrong type is fatal. A key is also found where only its upper and lower case differ.
//! Defaults are filled in before the file and again after it, so that for most numbers `0` means "the default",
//! as users of the reference know it. The parts of the daemon do not see these structs: `daemon` turns them
//! into the options of each part.

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

pub use self::fs::{BackgroundFetch, Cache, Fuse};
pub use self::http::{Blob, Http};
pub use self::pull_modes::{Mode, PullModes};
pub use self::resolver::{Host, Mirror, Resolver};
pub use self::service::{
    ContentStore, ContentStoreKind, MountChoice, Service, SnapshotterTable, Trust,
};

/// The file that is read when none is named. It alone may be missing.
pub const DEFAULT_PATH: &str = "/etc/soci-snapshotter-grpc/config.toml";

/// Everything the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Keys that stand before any table. Read apart: a flattened struct loses the keys of its errors.
    #[serde(skip)]
    pub service: Service,
    /// Requests to registries.
    pub http: Http,
    /// Fetching of the bytes of layers.
    pub blob: Blob,
    /// Accepted; nothing here depends on it.
    pub fuse: Fuse,
    /// Fetching of what nobody asked for yet.
    pub background_fetch: BackgroundFetch,
    /// The space that layers may take.
    pub cache: Cache,
    /// Where indexes and zTOCs are kept.
    pub content_store: ContentStore,
    /// Where an index is looked for.
    pub pull_modes: PullModes,
    /// Hosts of registries.
    pub resolver: Resolver,
    /// Snapshots.
    pub snapshotter: SnapshotterTable,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or cannot be read.
    #[error("failed to open config file {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or a key has the wrong type.
    #[error("failed to load config file {path:?}")]
    Load {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is outside what its key allows.
    #[error("failed to load config file {path:?}: {source}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which.
        source: ValueError,
    },
}

/// A value that its key does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// `[content_store] type` names no store.
    #[error("unknown content store type {0:?}")]
    ContentStore(String),
}

impl Config {
    /// Reads the file, or takes the defaults where the default file does not exist.
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

    /// The second round of defaults, and the checks of values.
    fn fill(&mut self) -> Result<(), ValueError> {
        self.service.fill();
        self.http.fill();
        self.blob.fill();
        self.content_store.fill()
    }
}

/// Gives the keys of every table that we read their canonical case. An exact key wins.
fn fold_keys(table: &mut Table) {
    fold_table(table, &[service::KEYS, TABLES].concat());
    for (name, keys) in [
        ("http", http::HTTP_KEYS),
        ("blob", http::BLOB_KEYS),
        ("fuse", fs::FUSE_KEYS),
        ("background_fetch", fs::BACKGROUND_KEYS),
        ("cache", fs::CACHE_KEYS),
        ("content_store", service::CONTENT_STORE_KEYS),
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

/// `0` means the default.
fn or_default(value: &mut i64, default: i64) {
    if *value == 0 {
        *value = default;
    }
}

#[cfg(test)]
mod tests;
