//! Snapshot records and their transactions on disk.
//!
//! One redb file with three tables: `snapshots` (name to record, JSON), `children` (ids of parent and child
//! to the child's name) and `counters` (the next id; ids are never used twice). Reads go on beside changes; changes
//! are made by one thread ([`writer`]) that groups what waits. A transaction holds work in memory only: no file tree
//! is walked, no daemon asked and no mount made inside one. The reference did, and deadlocked with containerd, which
//! calls us from inside its own transactions.
//!
//! A failure of the disk costs the requests that meet it: the file is opened again ([`database`]). Removals work
//! without a free byte ([`reserve`]). A file that is damaged or gone is made again from the [`copies`] of its records.

mod change;
mod copies;
mod database;
mod open;
pub(crate) mod reserve;
mod writer;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use redb::{ReadableTable, TableDefinition};

use self::change::{Change, New};
use self::database::{File, Reading};
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
/// Version of the records; a file of a newer one is not touched.
const SCHEMA_VERSION: u64 = 1;

/// What [`Metadata::commit`] writes.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Labels that replace those of the active snapshot.
    pub labels: Labels,
    /// Parent of a snapshot that was prepared without one.
    pub parent: Option<String>,
    /// Space it takes.
    pub usage: Usage,
    /// Owner of its root directory; `None` keeps what it was prepared with.
    pub owner: Option<Owner>,
    /// The layer mounted at its `fs`.
    pub layer: Option<LayerUse>,
}

/// Whether a new snapshot has to survive a power failure before the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// It has to.
    Always,
    /// Who asked asks again: a power failure may lose it for a second.
    UnlessRepeated,
}

/// Which labels an update changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelUpdate {
    /// All of them.
    Replace,
    /// These keys; a key without a new value goes.
    Keys(Vec<String>),
}

/// Why a transaction was not done.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No snapshot of this name.
    #[error("snapshot {name:?} does not exist")]
    NotFound {
        /// The name asked for.
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
    /// A commit cannot move a snapshot to another parent.
    #[error("cannot change the parent of snapshot {name:?} from {parent:?} on commit")]
    ParentChanged {
        /// The key.
        name: String,
        /// The parent it has.
        parent: String,
    },
    /// Others stand on it.
    #[error("cannot remove snapshot {name:?} with children")]
    HasChildren {
        /// The snapshot.
        name: String,
    },
    /// The database refused or failed.
    #[error("snapshot database: {action}")]
    Storage {
        /// What was attempted.
        action: &'static str,
        /// redb's error.
        #[source]
        source: Box<redb::Error>,
    },
    /// No space.
    #[error("cannot {action}: the disk of {} is full: remove images or containers, or free space there", path.display())]
    Full {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// redb's error.
        #[source]
        source: Box<redb::Error>,
    },
    /// The database could not be opened again after a failure, and the next request tries.
    #[error("snapshot database: it is closed after a failure of the disk")]
    Closed,
    /// The change was lost: a defect of ours.
    #[error("snapshot database: the change was lost")]
    Lost,
    /// A record is not what we write.
    #[error("record of snapshot {name:?} is damaged")]
    Damaged {
        /// The snapshot.
        name: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl MetadataError {
    /// Whether the file failed, not the request: it has to be opened again.
    fn is_storage(&self) -> bool {
        matches!(self, Self::Storage { .. } | Self::Closed)
    }
}

/// Attaches what was attempted to redb's many error types.
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

/// The snapshot records of one root. Reads block on the disk, and so does the drop, which waits for what was asked for.
#[derive(Debug)]
pub struct Metadata {
    file: Arc<File>,
    writer: Writer,
    /// The next id to give out; the table has it as of the last creation.
    next_id: AtomicU64,
}

impl Metadata {
    /// Reads; once more if the file had to be opened again.
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

    /// A number for a new snapshot, never given out before.
    pub fn reserve_id(&self) -> SnapshotId {
        SnapshotId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// The record of one snapshot.
    pub fn get(&self, name: &str) -> Result<Record, MetadataError> {
        self.read(|snapshots| snapshots.get(name))
    }

    /// The record of one snapshot, if there is one.
    pub fn find(&self, name: &str) -> Result<Option<Record>, MetadataError> {
        self.read(|snapshots| snapshots.find(name))
    }

    /// A snapshot and those below it, top-most first.
    pub fn chain(&self, name: &str) -> Result<Vec<Info>, MetadataError> {
        self.read(|snapshots| snapshots.chain(name))
    }

    /// All snapshots that `wanted` accepts, in the order of their names.
    pub fn list(&self, wanted: impl Fn(&Info) -> bool) -> Result<Vec<Info>, MetadataError> {
        let mut found = self.read(Snapshots::all)?;
        found.retain(wanted);
        Ok(found)
    }

    /// The ids of all snapshots.
    pub fn ids(&self) -> Result<BTreeSet<SnapshotId>, MetadataError> {
        Ok(self
            .read(Snapshots::all)?
            .into_iter()
            .map(|info| info.record.id)
            .collect())
    }

    /// Inserts an active snapshot or a view under a reserved id.
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

    /// Turns the active snapshot `key` into the committed snapshot `name`, with the same id.
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

    /// Changes labels and returns the record as it is then.
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

    /// Writes down, for good, what the snapshot with this name and id shows from now on.
    pub async fn show(
        &self,
        name: &str,
        id: SnapshotId,
        layer: LayerUse,
    ) -> Result<Record, MetadataError> {
        let name = name.to_owned();
        self.writer.change(Change::Show { name, id, layer }).await
    }

    /// Removes a snapshot that nothing stands on. A power failure may bring it back until [`Metadata::sync`].
    pub async fn remove(&self, name: &str) -> Result<Record, MetadataError> {
        let name = name.to_owned();
        self.writer.change(Change::Remove { name }).await
    }

    /// Everything that was answered before survives a power failure on return.
    pub async fn sync(&self) -> Result<(), MetadataError> {
        self.writer.sync().await
    }
}

/// The table of records, in a transaction of either kind.
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
