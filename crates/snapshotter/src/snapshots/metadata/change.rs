//! Changes of records as data: a group of them forms one transaction, and each can be repeated
//! after the file was reopened.

use std::time::SystemTime;

use redb::{ReadableTable, Table, WriteTransaction};

use super::{
    Attempt, CHILDREN, COUNTERS, Commit, Kind, LabelUpdate, Labels, Lasts, LayerUse, MetadataError,
    NEXT_ID, Record, SCHEMA, SCHEMA_VERSION, SNAPSHOTS, SnapshotId, Snapshots, Usage,
};

use crate::snapshots::ids::is_remapping;

/// An active snapshot or a view to create.
#[derive(Clone, Debug)]
pub(super) struct New {
    pub(super) id: SnapshotId,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) parent: Option<String>,
    pub(super) labels: Labels,
    pub(super) now: SystemTime,
    /// Lower limit for the next ID.
    pub(super) next: u64,
    pub(super) lasts: Lasts,
}

/// One change. It contains its time, so that a repetition produces the same record.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Create(New),
    Commit {
        key: String,
        name: String,
        commit: Commit,
        now: SystemTime,
    },
    Update {
        name: String,
        labels: Labels,
        which: LabelUpdate,
        now: SystemTime,
    },
    /// Records that a snapshot shows another image of a layer, or another form of it.
    Show {
        name: String,
        id: SnapshotId,
        layer: LayerUse,
    },
    Remove {
        name: String,
    },
}

impl Change {
    /// Whether the answer must wait until the change survives a power failure.
    ///
    /// containerd repeats a prepare without a commit, and removes a snapshot that reappeared at its
    /// next garbage collection. Files are kept as long as a record may reappear
    /// ([`super::Metadata::sync`]).
    pub(super) fn must_last(&self) -> bool {
        match self {
            Self::Create(new) => new.lasts == Lasts::Always,
            Self::Commit { .. } | Self::Update { .. } | Self::Show { .. } => true,
            Self::Remove { .. } => false,
        }
    }

    /// Whether it permanently needs space.
    pub(super) fn adds(&self) -> bool {
        matches!(self, Self::Create(_))
    }

    /// Describes the action for error messages.
    pub(super) fn action(&self) -> &'static str {
        match self {
            Self::Create(_) => "create a snapshot",
            Self::Commit { .. } => "commit a snapshot",
            Self::Update { .. } | Self::Show { .. } => "update a snapshot",
            Self::Remove { .. } => "remove a snapshot",
        }
    }

    /// The name of the affected record after the change.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Create(New { name, .. })
            | Self::Commit { name, .. }
            | Self::Update { name, .. }
            | Self::Show { name, .. }
            | Self::Remove { name } => name,
        }
    }
}

/// The tables of a write transaction.
pub(super) struct Tables<'a> {
    snapshots: Snapshots<Table<'a, &'static str, &'static [u8]>>,
    children: Table<'a, (u64, u64), &'static str>,
    counters: Table<'a, &'static str, u64>,
}

impl<'a> Tables<'a> {
    pub(super) fn open(tx: &'a WriteTransaction) -> Result<Self, MetadataError> {
        Ok(Self {
            snapshots: Snapshots(tx.open_table(SNAPSHOTS).attempt("open snapshots")?),
            children: tx.open_table(CHILDREN).attempt("open children")?,
            counters: tx.open_table(COUNTERS).attempt("open counters")?,
        })
    }

    /// Makes a change, or rejects it before anything is written. Only a storage error leaves it
    /// incomplete; the transaction is then not committed.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Record, MetadataError> {
        match change {
            Change::Create(new) => self.create(new),
            Change::Commit {
                key,
                name,
                commit,
                now,
            } => self.commit(key, name, commit, *now),
            Change::Update {
                name,
                labels,
                which,
                now,
            } => self.update(name, labels, which, *now),
            Change::Show { name, id, layer } => self.show(name, *id, layer),
            Change::Remove { name } => self.remove(name),
        }
    }

    /// Whether a change that returned `record` is stored although its transaction failed.
    pub(super) fn has(&self, change: &Change, record: &Record) -> Result<bool, MetadataError> {
        let found = self.snapshots.find(change.name())?;
        Ok(match change {
            Change::Remove { .. } => found.is_none(),
            _ => found.as_ref() == Some(record),
        })
    }

    fn create(&mut self, new: &New) -> Result<Record, MetadataError> {
        let New {
            id, name, parent, ..
        } = new;
        let below = parent
            .as_deref()
            .map(|parent| self.snapshots.committed(parent))
            .transpose()?;
        self.free(name)?;
        let record = Record {
            id: *id,
            kind: new.kind,
            parent: parent.clone(),
            created: new.now,
            updated: new.now,
            labels: new.labels.clone(),
            usage: Usage::default(),
            owner: below.as_ref().map(|below| below.owner).unwrap_or_default(),
            layer: None,
            remapped: false,
        };
        self.snapshots.put(name, &record)?;
        if let Some(below) = below {
            self.link(below.id, *id, name)?;
        }
        let next = new.next.max(id.0.saturating_add(1));
        self.counters
            .insert(NEXT_ID, next)
            .attempt("write the next id")?;
        Ok(record)
    }

    fn commit(
        &mut self,
        key: &str,
        name: &str,
        commit: &Commit,
        now: SystemTime,
    ) -> Result<Record, MetadataError> {
        let commit = commit.clone();
        self.free(name)?;
        let active = self.snapshots.get(key)?;
        if active.kind != Kind::Active {
            return Err(MetadataError::NotActive {
                name: key.to_owned(),
            });
        }
        let parent = rebased(key, active.parent.clone(), commit.parent)?;
        let below = parent
            .as_deref()
            .map(|parent| self.snapshots.committed(parent))
            .transpose()?;
        let record = Record {
            kind: Kind::Committed,
            parent,
            created: now,
            updated: now,
            labels: commit.labels,
            usage: commit.usage,
            owner: commit.owner.unwrap_or(active.owner),
            layer: commit.layer,
            remapped: is_remapping(key),
            ..active
        };
        self.snapshots.put(name, &record)?;
        self.snapshots.delete(key)?;
        if let Some(below) = below {
            self.link(below.id, record.id, name)?;
        }
        Ok(record)
    }

    fn update(
        &mut self,
        name: &str,
        labels: &Labels,
        which: &LabelUpdate,
        now: SystemTime,
    ) -> Result<Record, MetadataError> {
        let mut record = self.snapshots.get(name)?;
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
        record.updated = now;
        self.snapshots.put(name, &record)?;
        Ok(record)
    }

    fn show(
        &mut self,
        name: &str,
        id: SnapshotId,
        layer: &LayerUse,
    ) -> Result<Record, MetadataError> {
        let mut record = self.snapshots.get(name)?;
        if record.id != id {
            // Another snapshot has the name now.
            return Err(MetadataError::NotFound {
                name: name.to_owned(),
            });
        }
        record.layer = Some(layer.clone());
        self.snapshots.put(name, &record)?;
        Ok(record)
    }

    fn remove(&mut self, name: &str) -> Result<Record, MetadataError> {
        let record = self.snapshots.get(name)?;
        let below = record
            .parent
            .as_deref()
            // A parent that does not exist has no link either.
            .and_then(|parent| self.snapshots.find(parent).transpose())
            .transpose()?;
        let range = (record.id.0, 0)..=(record.id.0, u64::MAX);
        let mut on_it = self.children.range(range).attempt("look for children")?;
        if on_it.next().is_some() {
            return Err(MetadataError::HasChildren {
                name: name.to_owned(),
            });
        }
        drop(on_it);
        if let Some(below) = below {
            self.children
                .remove((below.id.0, record.id.0))
                .attempt("unlink from the parent")?;
        }
        self.snapshots.delete(name)?;
        Ok(record)
    }

    fn free(&self, name: &str) -> Result<(), MetadataError> {
        match self.snapshots.find(name)? {
            None => Ok(()),
            Some(_) => Err(MetadataError::AlreadyExists {
                name: name.to_owned(),
            }),
        }
    }

    /// Restores a record of an earlier database.
    pub(super) fn restore(
        &mut self,
        name: &str,
        record: &Record,
        below: Option<&Record>,
    ) -> Result<(), MetadataError> {
        self.snapshots.put(name, record)?;
        below.map_or(Ok(()), |below| self.link(below.id, record.id, name))
    }

    /// Completes a new file: its first unused ID, and its version.
    pub(super) fn begin(&mut self, next: u64) -> Result<(), MetadataError> {
        for (counter, value) in [(NEXT_ID, next), (SCHEMA, SCHEMA_VERSION)] {
            self.counters
                .insert(counter, value)
                .attempt("write the counters")?;
        }
        Ok(())
    }

    fn link(
        &mut self,
        parent: SnapshotId,
        child: SnapshotId,
        name: &str,
    ) -> Result<(), MetadataError> {
        self.children
            .insert((parent.0, child.0), name)
            .attempt("link to the parent")?;
        Ok(())
    }
}

impl Snapshots<Table<'_, &'static str, &'static [u8]>> {
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

/// The parent after a commit: one can be added, but not changed.
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
