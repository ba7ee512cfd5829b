//! Snapshot records and their transactions on disk.
//!
//! A redb file with three tables: `snapshots` (name to record, JSON), `children` (IDs of parent and
//! child to the child's name) and `counters` (the next ID; IDs are never reused). Reads run
//! concurrently with changes. One thread (`writer`) makes the changes and groups waiting ones. A
//! transaction only works in memory, because containerd calls us from inside its own transactions;
//! the reference implementation deadlocked with it. A disk failure affects only the requests that
//! encounter it: the file is reopened (`database`). Removals need no free space (`reserve`). A
//! damaged or missing file is restored from the `copies` of its records. At the first start, the
//! records of the `reference` implementation are imported.

mod change;
mod copies;
mod database;
mod import;
mod open;
mod reference;
pub(crate) mod reserve;
mod writer;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use redb::{ReadableTable, TableDefinition};

use self::change::{Change, New};
use self::database::{File, Reading};
pub(crate) use self::import::is_running as is_reference_running;
pub use self::open::OpenError;
use self::writer::Writer;
pub use super::record::{Info, Kind, Owner, Record, SnapshotId, Usage};
pub use crate::image::LayerUse;
pub use crate::image::labels::Labels;
use crate::sync::Arc;

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const CHILDREN: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("children");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const NEXT_ID: &str = "next_id";
const SCHEMA: &str = "schema";
/// Version of the records. A file with a newer version is not modified.
const SCHEMA_VERSION: u64 = 1;

/// Arguments of [`Metadata::commit`].
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Labels that replace those of the active snapshot.
    pub labels: Labels,
    /// New parent, for a snapshot that was prepared without one.
    pub parent: Option<String>,
    /// Its disk usage.
    pub usage: Usage,
    /// Owner of its root directory; `None` keeps the current one.
    pub owner: Option<Owner>,
    /// The layer mounted at its `fs`.
    pub layer: Option<LayerUse>,
}

/// Whether a new snapshot must survive a power failure before the request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// It must.
    Always,
    /// Not necessarily: the caller repeats the request. A power failure in the next second may lose
    /// it.
    UnlessRepeated,
}

/// Which labels an update changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelUpdate {
    /// All of them.
    Replace,
    /// These keys. A key without a new value is removed.
    Keys(Vec<String>),
}

/// Why a transaction failed.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// There is no snapshot with this name.
    #[error("snapshot {name:?} does not exist")]
    NotFound {
        /// The requested name.
        name: String,
    },
    /// The name is taken.
    #[error("snapshot {name:?} already exists")]
    AlreadyExists {
        /// The name.
        name: String,
    },
    /// Only an active snapshot can be committed.
    #[error("snapshot {name:?} is not active")]
    NotActive {
        /// The key.
        name: String,
    },
    /// A parent must be committed.
    #[error("parent {name:?} is not a committed snapshot")]
    ParentNotCommitted {
        /// The parent.
        name: String,
    },
    /// A commit cannot change an existing parent.
    #[error("cannot change the parent of snapshot {name:?} from {parent:?} on commit")]
    ParentChanged {
        /// The key.
        name: String,
        /// The current parent.
        parent: String,
    },
    /// The snapshot has children.
    #[error("cannot remove snapshot {name:?} with children")]
    HasChildren {
        /// The snapshot.
        name: String,
    },
    /// The database failed.
    #[error("snapshot database: cannot {action}")]
    Storage {
        /// The failed action.
        action: &'static str,
        /// The error of redb.
        #[source]
        source: Box<redb::Error>,
    },
    /// The disk is full.
    #[error("cannot {action}: the disk of {} is full: remove images or containers, or free space there", path.display())]
    Full {
        /// The failed action.
        action: &'static str,
        /// The database file.
        path: PathBuf,
        /// The error of redb.
        #[source]
        source: Box<redb::Error>,
    },
    /// The database could not be reopened after a failure. The next request tries again.
    #[error("snapshot database: closed after a disk failure, the next request reopens it")]
    Closed,
    /// The writer thread dropped the change without an answer.
    #[error("snapshot database: the change was dropped without a result")]
    Lost,
    /// A record cannot be parsed.
    #[error("record of snapshot {name:?} is damaged")]
    Damaged {
        /// The snapshot.
        name: String,
        /// The parse error.
        #[source]
        source: serde_json::Error,
    },
}

impl MetadataError {
    /// Whether the file failed, so that it must be reopened, rather than the request.
    fn is_storage(&self) -> bool {
        matches!(self, Self::Storage { .. } | Self::Closed)
    }
}

/// Adds the failed action to redb's error types.
trait Attempt<T> {
    fn attempt(self, action: &'static str) -> Result<T, MetadataError>;
}

impl<T, E: Into<redb::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, action: &'static str) -> Result<T, MetadataError> {
        self.map_err(|error| MetadataError::Storage {
            action,
            source: Box::new(error.into()),
        })
    }
}

/// The snapshot records of one state directory. Reads and drop block on the disk; drop waits for
/// pending changes.
#[derive(Debug)]
pub struct Metadata {
    file: Arc<File>,
    writer: Writer,
    /// The next ID to assign. The table contains its value at the last creation.
    next_id: AtomicU64,
}

impl Metadata {
    /// Runs a read, again if the file had to be reopened.
    fn read<T>(
        &self,
        work: impl Fn(&Reading) -> Result<T, MetadataError>,
    ) -> Result<T, MetadataError> {
        let (opening, reading) = self.file.read();
        match reading.and_then(|reading| work(&reading)) {
            Err(error) if error.is_storage() => {
                self.writer.reopen(opening)?;
                let (_, reading) = self.file.read();
                reading
                    .and_then(|reading| work(&reading))
                    .map_err(|error| self.file.explained(error))
            }
            done => done,
        }
    }

    /// Returns a number that was never assigned before.
    pub fn reserve_id(&self) -> SnapshotId {
        SnapshotId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the record of a snapshot.
    pub fn get(&self, name: &str) -> Result<Record, MetadataError> {
        self.read(|snapshots| snapshots.get(name))
    }

    /// Returns the record of a snapshot, if it exists.
    pub fn find(&self, name: &str) -> Result<Option<Record>, MetadataError> {
        self.read(|snapshots| snapshots.find(name))
    }

    /// Returns a snapshot and those below it, topmost first.
    pub fn chain(&self, name: &str) -> Result<Vec<Info>, MetadataError> {
        self.read(|snapshots| snapshots.chain(name))
    }

    /// Returns all snapshots that `wanted` accepts, sorted by name.
    pub fn list(&self, wanted: impl Fn(&Info) -> bool) -> Result<Vec<Info>, MetadataError> {
        let mut found = self.read(Snapshots::all)?;
        found.retain(wanted);
        Ok(found)
    }

    /// Returns the IDs of all snapshots.
    pub fn ids(&self) -> Result<BTreeSet<SnapshotId>, MetadataError> {
        Ok(self
            .read(Snapshots::all)?
            .into_iter()
            .map(|info| info.record.id)
            .collect())
    }

    /// Creates an active snapshot or a view with a reserved ID.
    pub async fn create(
        &self,
        id: SnapshotId,
        kind: Kind,
        name: &str,
        parent: Option<&str>,
        mut labels: Labels,
        lasts: Lasts,
    ) -> Result<Record, MetadataError> {
        labels.retain(|_, value| !value.is_empty());
        let new = New {
            id,
            kind,
            name: name.to_owned(),
            parent: parent.map(str::to_owned),
            labels,
            now: SystemTime::now(),
            next: self.next_id.load(Ordering::Relaxed),
            lasts,
        };
        self.writer.change(Change::Create(new)).await
    }

    /// Turns the active snapshot `key` into the committed snapshot `name` with the same ID.
    pub async fn commit(
        &self,
        key: &str,
        name: &str,
        mut commit: Commit,
    ) -> Result<Record, MetadataError> {
        commit.labels.retain(|_, value| !value.is_empty());
        self.writer
            .change(Change::Commit {
                key: key.to_owned(),
                name: name.to_owned(),
                commit,
                now: SystemTime::now(),
            })
            .await
    }

    /// Changes labels and returns the new record.
    pub async fn update(
        &self,
        name: &str,
        labels: &Labels,
        which: &LabelUpdate,
    ) -> Result<Record, MetadataError> {
        self.writer
            .change(Change::Update {
                name: name.to_owned(),
                labels: labels.clone(),
                which: which.clone(),
                now: SystemTime::now(),
            })
            .await
    }

    /// Durably records the layer that the snapshot with this name and ID shows.
    pub async fn show(
        &self,
        name: &str,
        id: SnapshotId,
        layer: LayerUse,
    ) -> Result<Record, MetadataError> {
        let name = name.to_owned();
        self.writer.change(Change::Show { name, id, layer }).await
    }

    /// Removes a snapshot without children. A power failure may restore it until
    /// [`Metadata::sync`].
    pub async fn remove(&self, name: &str) -> Result<Record, MetadataError> {
        let name = name.to_owned();
        self.writer.change(Change::Remove { name }).await
    }

    /// On return, all changes that were answered before the call survive a power failure.
    pub async fn sync(&self) -> Result<(), MetadataError> {
        self.writer.sync().await
    }
}

/// The table of records in a read or write transaction.
struct Snapshots<T>(T);

impl<T: ReadableTable<&'static str, &'static [u8]>> Snapshots<T> {
    fn find(&self, name: &str) -> Result<Option<Record>, MetadataError> {
        let Some(found) = self.0.get(name).attempt("read a snapshot")? else {
            return Ok(None);
        };
        decode(name, found.value()).map(Some)
    }

    fn get(&self, name: &str) -> Result<Record, MetadataError> {
        self.find(name)?.ok_or_else(|| MetadataError::NotFound {
            name: name.to_owned(),
        })
    }

    fn committed(&self, name: &str) -> Result<Record, MetadataError> {
        let record = self.get(name)?;
        if record.kind != Kind::Committed {
            return Err(MetadataError::ParentNotCommitted {
                name: name.to_owned(),
            });
        }
        Ok(record)
    }

    fn chain(&self, name: &str) -> Result<Vec<Info>, MetadataError> {
        let mut chain = Vec::new();
        let mut next = Some(name.to_owned());
        while let Some(name) = next.take() {
            let record = self.get(&name)?;
            next.clone_from(&record.parent);
            chain.push(Info { name, record });
        }
        Ok(chain)
    }

    fn all(&self) -> Result<Vec<Info>, MetadataError> {
        let mut all = Vec::new();
        for row in self.0.iter().attempt("list snapshots")? {
            let (name, value) = row.attempt("list snapshots")?;
            let name = name.value().to_owned();
            let record = decode(&name, value.value())?;
            all.push(Info { name, record });
        }
        Ok(all)
    }
}

fn decode(name: &str, value: &[u8]) -> Result<Record, MetadataError> {
    serde_json::from_slice(value).map_err(|source| MetadataError::Damaged {
        name: name.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
