//! The open database file. After a failed read or write, redb rejects all operations until the file
//! is reopened. This module reopens it, so that a full or failing disk affects only the requests
//! that encounter it.

use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, WriteTransaction};
use tracing::info;

use super::reserve::{Reserve, is_full};
use super::{Attempt, MetadataError, OpenError, SNAPSHOTS, Snapshots};
use crate::sync::{Arc, Mutex};

/// The records in a read transaction.
pub(super) type Reading = Snapshots<redb::ReadOnlyTable<&'static str, &'static [u8]>>;

/// Counts how often the file was opened. A failure belongs to one opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Opening(u64);

/// One opening of the file.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) database: Database,
    /// Dropped after `database`.
    pub(super) reserve: Arc<Reserve>,
}

#[derive(Debug)]
struct State {
    opening: Opening,
    /// `None` if it could not be reopened.
    open: Option<Open>,
}

/// The file, shared by readers and the writer.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    state: Mutex<State>,
}

impl Open {
    /// Opens or creates a file.
    pub(super) fn file(path: &Path) -> Result<Self, OpenError> {
        let unusable = |source| OpenError::Unusable {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::Locked {
                path: path.to_owned(),
            },
            error => unusable(error.into()),
        })?;
        let reserve = Reserve::of(path).map_err(|error| unusable(redb::Error::Io(error)))?;
        Ok(Self {
            database,
            reserve: Arc::new(reserve),
        })
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction, MetadataError> {
        let mut tx = self.database.begin_write().attempt("begin to write")?;
        // Chosen once, because mixing the two commit modes is not safe.
        tx.set_two_phase_commit(true);
        Ok(tx)
    }

    fn begin_read(&self) -> Result<ReadTransaction, MetadataError> {
        self.database.begin_read().attempt("begin to read")
    }

    pub(super) fn read(&self) -> Result<Reading, MetadataError> {
        self.begin_read().and_then(|tx| records(&tx))
    }
}

fn records(tx: &ReadTransaction) -> Result<Reading, MetadataError> {
    let table = tx.open_table(SNAPSHOTS).attempt("open snapshots")?;
    Ok(Snapshots(table))
}

impl File {
    pub(super) fn new(path: &Path, open: Open) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            state: Mutex::new(State {
                opening: Opening::default(),
                open: Some(open),
            }),
        })
    }

    /// A snapshot of the records, and the opening it belongs to.
    pub(super) fn read(&self) -> (Opening, Result<Reading, MetadataError>) {
        let (opening, tx) = self.with(Open::begin_read);
        (opening, tx.and_then(|tx| records(&tx)))
    }

    /// Begins a write transaction. Only the writer thread calls this.
    pub(super) fn begin_write(&self) -> (Opening, Result<WriteTransaction, MetadataError>) {
        self.with(Open::begin_write)
    }

    /// Number of the current opening.
    pub(super) fn opening(&self) -> Opening {
        self.state.lock().opening
    }

    /// Restores the reserve, which new snapshots require so that later removals find space.
    pub(super) fn keep_reserve(&self) -> Result<(), MetadataError> {
        let reserve = {
            let state = self.state.lock();
            state.open.as_ref().map(|open| Arc::clone(&open.reserve))
        };
        // If the file cannot be opened, the transaction returns the better error.
        let kept = reserve.map_or(Ok(()), |reserve| reserve.keep());
        kept.map_err(|source| self.full("reserve space for removals", source.into()))
    }

    /// Reopens the file if `failed` is still the current opening. `first` runs before others can
    /// use it.
    pub(super) fn reopen(
        &self,
        failed: Opening,
        first: impl FnOnce(&Open) -> Result<(), MetadataError>,
    ) -> Result<(), MetadataError> {
        let mut state = self.state.lock();
        if state.opening != failed {
            return Ok(());
        }
        // Held until it is open: no request can continue without it. Closing it first releases its
        // file lock.
        drop(state.open.take());
        let open = Open::file(&self.path).map_err(|error| self.unusable(error))?;
        first(&open)?;
        state.open = Some(open);
        state.opening.0 += 1;
        info!(file = %self.path.display(), "reopened the snapshot records after a failure");
        Ok(())
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Open) -> Result<T, MetadataError>,
    ) -> (Opening, Result<T, MetadataError>) {
        let state = self.state.lock();
        let done = match &state.open {
            Some(open) => work(open),
            None => Err(MetadataError::Closed),
        };
        (state.opening, done)
    }

    /// Converts a storage error into one with a remedy.
    pub(super) fn explained(&self, error: MetadataError) -> MetadataError {
        match error {
            MetadataError::Storage { action, source } if matches!(&*source, redb::Error::Io(io) if is_full(io)) => {
                self.full(action, *source)
            }
            other => other,
        }
    }

    fn full(&self, action: &'static str, source: redb::Error) -> MetadataError {
        MetadataError::Full {
            action,
            path: self.path.clone(),
            source: Box::new(source),
        }
    }

    fn unusable(&self, error: OpenError) -> MetadataError {
        match error {
            OpenError::Unusable { source, .. } => self.explained(MetadataError::Storage {
                action: "reopen it after a failure",
                source,
            }),
            other => MetadataError::Storage {
                action: "reopen it after a failure",
                source: Box::new(redb::Error::Corrupted(other.to_string())),
            },
        }
    }
}
