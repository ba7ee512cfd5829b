//! Snapshot records and their transactions on disk.
//!
//! One redb file with three tables: `snapshots` (name to record, JSON), `children` (ids of parent and child
//! to the child's name) and `counters` (the next id; ids are never used twice). A transaction holds work in
//! memory only: no file tree is walked, no daemon asked and no mount made inside one. The reference did, and
//! deadlocked with containerd, which calls us from inside its own transactions. Every commit is durable. A
//! file that is damaged or gone is made again from the [`copies`] of its records.

mod copies;
mod open;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use self::copies::Copies;
pub use self::open::OpenError;
pub use super::record::{Info, Kind, Owner, Record, SnapshotId, Usage};
pub use crate::image::LayerUse;
pub use crate::image::labels::Labels;

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const CHILDREN: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("children");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const NEXT_ID: &str = "next_id";
const SCHEMA: &str = "schema";
/// Version of the records; a file of a newer one is not touched.
const SCHEMA_VERSION: u64 = 1;

/// What [`Metadata::commit`] writes.
#[derive(Debug, Default)]
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

/// The snapshot records of one root.
#[derive(Debug)]
pub struct Metadata {
    database: Database,
    /// The next id to give out; the table has it as of the last creation.
    next_id: AtomicU64,
    copies: Copies,
}

impl Metadata {
    fn write<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&WriteTransaction) -> Result<T, MetadataError>,
    ) -> Result<T, MetadataError> {
        let mut tx = self.database.begin_write().attempt(action)?;
        // Chosen once and never mixed: the two commit modes do not follow each other safely.
        tx.set_two_phase_commit(true);
        let done = work(&tx)?;
        tx.commit().attempt(action)?;
        Ok(done)
    }

    fn read(
        &self,
    ) -> Result<Snapshots<redb::ReadOnlyTable<&'static str, &'static [u8]>>, MetadataError> {
        let tx: ReadTransaction = self.database.begin_read().attempt("begin to read")?;
        Ok(Snapshots(
            tx.open_table(SNAPSHOTS).attempt("open snapshots")?,
        ))
    }

    /// A number for a new snapshot, never given out before.
    pub fn reserve_id(&self) -> SnapshotId {
        SnapshotId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// The record of one snapshot.
    pub fn get(&self, name: &str) -> Result<Record, MetadataError> {
        self.read()?.get(name)
    }

    /// The record of one snapshot, if there is one.
    pub fn find(&self, name: &str) -> Result<Option<Record>, MetadataError> {
        self.read()?.find(name)
    }

    /// A snapshot and those below it, top-most first.
    pub fn chain(&self, name: &str) -> Result<Vec<Info>, MetadataError> {
        self.read()?.chain(name)
    }

    /// All snapshots that `wanted` accepts, in the order of their names.
    pub fn list(&self, wanted: impl Fn(&Info) -> bool) -> Result<Vec<Info>, MetadataError> {
        let mut found = self.read()?.all()?;
        found.retain(wanted);
        Ok(found)
    }

    /// The ids of all snapshots.
    pub fn ids(&self) -> Result<BTreeSet<SnapshotId>, MetadataError> {
        Ok(self
            .read()?
            .all()?
            .into_iter()
            .map(|info| info.record.id)
            .collect())
    }

    /// Inserts an active snapshot or a view under a reserved id.
    pub fn create(
        &self,
        id: SnapshotId,
        kind: Kind,
        name: &str,
        parent: Option<&str>,
        mut labels: Labels,
    ) -> Result<Record, MetadataError> {
        labels.retain(|_, value| !value.is_empty());
        self.write("create a snapshot", |tx| {
            let mut snapshots = Snapshots(tx.open_table(SNAPSHOTS).attempt("open snapshots")?);
            let below = parent
                .map(|parent| snapshots.committed(parent))
                .transpose()?;
            if snapshots.find(name)?.is_some() {
                return Err(MetadataError::AlreadyExists {
                    name: name.to_owned(),
                });
            }
            let now = SystemTime::now();
            let record = Record {
                id,
                kind,
                parent: parent.map(str::to_owned),
                created: now,
                updated: now,
                labels,
                usage: Usage::default(),
                owner: below.as_ref().map(|below| below.owner).unwrap_or_default(),
                layer: None,
            };
            snapshots.put(name, &record)?;
            if let Some(below) = below {
                link(tx, below.id, id, name)?;
            }
            let mut counters = tx.open_table(COUNTERS).attempt("open counters")?;
            let next = self
                .next_id
                .load(Ordering::Relaxed)
                .max(id.0.saturating_add(1));
            counters
                .insert(NEXT_ID, next)
                .attempt("write the next id")?;
            Ok(record)
        })
        .inspect(|record| self.copies.put(name, record))
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`, with the same id.
    pub fn commit(&self, key: &str, name: &str, commit: Commit) -> Result<Record, MetadataError> {
        let Commit {
            mut labels,
            parent,
            usage,
            owner,
            layer,
        } = commit;
        labels.retain(|_, value| !value.is_empty());
        self.write("commit a snapshot", |tx| {
            let mut snapshots = Snapshots(tx.open_table(SNAPSHOTS).attempt("open snapshots")?);
            if snapshots.find(name)?.is_some() {
                return Err(MetadataError::AlreadyExists {
                    name: name.to_owned(),
                });
            }
            let active = snapshots.get(key)?;
            if active.kind != Kind::Active {
                return Err(MetadataError::NotActive {
                    name: key.to_owned(),
                });
            }
            let parent = rebased(key, active.parent.clone(), parent)?;
            let below = parent
                .as_deref()
                .map(|parent| snapshots.committed(parent))
                .transpose()?;
            let now = SystemTime::now();
            let record = Record {
                kind: Kind::Committed,
                parent,
                created: now,
                updated: now,
                labels,
                usage,
                owner: owner.unwrap_or(active.owner),
                layer,
                ..active
            };
            snapshots.delete(key)?;
            snapshots.put(name, &record)?;
            if let Some(below) = below {
                link(tx, below.id, record.id, name)?;
            }
            Ok(record)
        })
        .inspect(|record| self.copies.put(name, record))
    }

    /// Changes labels and returns the record as it is then.
    pub fn update(
        &self,
        name: &str,
        labels: &Labels,
        which: &LabelUpdate,
    ) -> Result<Record, MetadataError> {
        self.write("update a snapshot", |tx| {
            let mut snapshots = Snapshots(tx.open_table(SNAPSHOTS).attempt("open snapshots")?);
            let mut record = snapshots.get(name)?;
            match which {
                LabelUpdate::Replace => record.labels = labels.clone(),
                LabelUpdate::Keys(keys) => {
                    for key in keys {
                        let value = labels.get(key).cloned().unwrap_or_default();
                        record.labels.insert(key.clone(), value);
                    }
                }
            }
            record.labels.retain(|_, value| !value.is_empty());
            record.updated = SystemTime::now();
            snapshots.put(name, &record)?;
            Ok(record)
        })
        .inspect(|record| self.copies.put(name, record))
    }

    /// Removes a snapshot that nothing stands on.
    pub fn remove(&self, name: &str) -> Result<Record, MetadataError> {
        self.write("remove a snapshot", |tx| {
            let mut snapshots = Snapshots(tx.open_table(SNAPSHOTS).attempt("open snapshots")?);
            let record = snapshots.get(name)?;
            let mut children = tx.open_table(CHILDREN).attempt("open children")?;
            let range = (record.id.0, 0)..=(record.id.0, u64::MAX);
            if children
                .range(range)
                .attempt("look for children")?
                .next()
                .is_some()
            {
                return Err(MetadataError::HasChildren {
                    name: name.to_owned(),
                });
            }
            if let Some(below) = record
                .parent
                .as_deref()
                .map(|parent| snapshots.find(parent))
            {
                // A parent that is gone has no link either.
                if let Some(below) = below? {
                    children
                        .remove((below.id.0, record.id.0))
                        .attempt("unlink from the parent")?;
                }
            }
            snapshots.delete(name)?;
            Ok(record)
        })
        .inspect(|record| self.copies.remove(record.id))
    }
}

/// The parent after a commit: a snapshot without one may get one, none may change it.
fn rebased(
    key: &str,
    has: Option<String>,
    wanted: Option<String>,
) -> Result<Option<String>, MetadataError> {
    match (has, wanted) {
        (None, wanted) => Ok(wanted),
        (has, None) => Ok(has),
        (Some(parent), Some(wanted)) if parent == wanted => Ok(Some(parent)),
        (Some(parent), Some(_)) => Err(MetadataError::ParentChanged {
            name: key.to_owned(),
            parent,
        }),
    }
}

fn link(
    tx: &WriteTransaction,
    parent: SnapshotId,
    child: SnapshotId,
    name: &str,
) -> Result<(), MetadataError> {
    let mut children = tx.open_table(CHILDREN).attempt("open children")?;
    children
        .insert((parent.0, child.0), name)
        .attempt("link to the parent")?;
    Ok(())
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

impl Snapshots<redb::Table<'_, &'static str, &'static [u8]>> {
    fn put(&mut self, name: &str, record: &Record) -> Result<(), MetadataError> {
        let value = serde_json::to_vec(record).map_err(|source| MetadataError::Damaged {
            name: name.to_owned(),
            source,
        })?;
        self.0
            .insert(name, value.as_slice())
            .attempt("write a snapshot")?;
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Result<(), MetadataError> {
        self.0.remove(name).attempt("delete a snapshot")?;
        Ok(())
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
