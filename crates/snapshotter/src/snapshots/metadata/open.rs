//! Opens the database file, and restores it if it is damaged or missing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use redb::{ReadableDatabase, ReadableTable, TableError};
use tracing::error;

use super::change::Tables;
use super::copies::Copies;
use super::database::{File, Open};
use super::import;
use super::reference::Reference;
use super::writer::Writer;
use super::{
    Attempt, COUNTERS, Info, Metadata, MetadataError, NEXT_ID, Record, SCHEMA, SCHEMA_VERSION,
};
use crate::sync::Arc;

/// Why the database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon uses the same state directory.
    #[error("{} is locked: another daemon runs on the same root", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A newer version wrote the file.
    #[error("{} has schema {found}, this program supports {SCHEMA_VERSION}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The reference implementation uses the same state directory.
    #[error("{} is locked: the SOCI snapshotter still runs on the same root, stop it first", path.display())]
    ReferenceRuns {
        /// Its file.
        path: PathBuf,
    },
    /// The records of the reference implementation cannot be read.
    #[error("cannot read the records of the SOCI snapshotter in {}: make the file readable; or, to start without them, remove the containers and images of the snapshotter, and move this file and the directory snapshots beside it away", path.display())]
    Reference {
        /// Its file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: soci_bolt::ReadError,
    },
    /// Snapshots without a readable record cannot be moved out of the reach of cleanups.
    #[error("cannot move snapshots aside whose records in the SOCI snapshotter's metadata.db are damaged: move the directories out of {} yourself", path.display())]
    Aside {
        /// The directory of the snapshots.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The file cannot be used.
    #[error("cannot open {}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The error of redb.
        #[source]
        source: Box<redb::Error>,
    },
}

/// The counters of a new file.
const NEW: Counters = Counters {
    schema: None,
    next: 1,
};

/// The counters of an opened file.
struct Counters {
    /// `None` if the file was empty.
    schema: Option<u64>,
    next: u64,
}

impl Metadata {
    /// Opens or creates the file. No ID up to `used`, the highest number of a directory, is
    /// assigned. An intact file is not modified. A new one gets the records of a lost file, else
    /// those of the reference implementation.
    pub fn open(path: &Path, used: u64) -> Result<Self, OpenError> {
        let (open, counters) = match open_file(path) {
            Err(OpenError::Unusable { source, .. }) if is_damage(&source) => {
                let aside = set_aside(path).map_err(|error| io_error(path, error))?;
                error!(
                    file = %path.display(),
                    aside = %aside.display(),
                    error = &source as &dyn std::error::Error,
                    "the snapshot records are damaged, moving them aside and restoring them from their copies"
                );
                open_file(path)?
            }
            opened => opened?,
        };
        let copies = Copies::beside(path);
        let mut next = counters.next;
        let unusable = |error| unusable(path, error);
        if counters.schema.is_none() {
            let earlier = Earlier::find(path, &copies)?;
            next = next.max(earlier.fill(&open).map_err(unusable)?);
        }
        let known = open
            .read()
            .and_then(|snapshots| snapshots.all())
            .map_err(unusable)?;
        copies.settle(&known);
        // Without space the daemon starts, and new snapshots are rejected until there is space.
        drop(open.reserve.keep());
        let file = File::new(path, open);
        let writer = Writer::start(Arc::clone(&file), copies);
        Ok(Self {
            file,
            writer: writer.map_err(|error| io_error(path, error))?,
            next_id: AtomicU64::new(next.max(used.saturating_add(1))),
        })
    }
}

fn open_file(path: &Path) -> Result<(Open, Counters), OpenError> {
    let open = Open::file(path)?;
    let counters = counters(&open)
        .map(|found| found.unwrap_or(NEW))
        .map_err(|error| unusable(path, error))?;
    match counters.schema {
        Some(found) if found > SCHEMA_VERSION => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
        }),
        _ => Ok((open, counters)),
    }
}

/// Reads the counters; `None` for a new file.
fn counters(open: &Open) -> Result<Option<Counters>, MetadataError> {
    let tx = open.database.begin_read().attempt("begin to read")?;
    match tx.open_table(COUNTERS) {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        counters => {
            let found = read_counters(&counters.attempt("open counters")?)?;
            Ok(found.schema.is_some().then_some(found))
        }
    }
}

fn read_counters(
    counters: &impl ReadableTable<&'static str, u64>,
) -> Result<Counters, MetadataError> {
    let read = |found: Option<redb::AccessGuard<'_, u64>>| found.map(|guard| guard.value());
    let next = read(counters.get(NEXT_ID).attempt("read the next id")?).unwrap_or(1);
    let schema = read(counters.get(SCHEMA).attempt("read the schema")?);
    Ok(Counters { schema, next })
}

/// The records of an earlier file, by name.
struct Earlier {
    records: BTreeMap<String, Record>,
    /// The highest ID that was assigned.
    last: u64,
}

impl Earlier {
    /// The copies of a lost file. Without any, this is the first start here.
    fn find(path: &Path, copies: &Copies) -> Result<Self, OpenError> {
        let mut copies = copies.all();
        if copies.is_empty() {
            let Reference { records, last, .. } = import::records(path)?;
            return Ok(Self::of(records, last));
        }
        // A kill may leave two copies with one name. The newer one is used.
        copies.sort_by_key(|copy| copy.record.updated);
        Ok(Self::of(copies, 0))
    }

    fn of(infos: Vec<Info>, last: u64) -> Self {
        let named = infos.into_iter().map(|info| (info.name, info.record));
        let records: BTreeMap<_, _> = named.collect();
        let highest = records.values().map(|record| record.id.0).max();
        let last = last.max(highest.unwrap_or(0));
        Self { records, last }
    }

    /// Fills an empty file in one transaction, so that a kill cannot leave a part. Returns the first
    /// unused ID.
    fn fill(&self, open: &Open) -> Result<u64, MetadataError> {
        let next = self.last.saturating_add(1);
        let tx = open.begin_write()?;
        let mut tables = Tables::open(&tx)?;
        for (name, record) in &self.records {
            let below = record
                .parent
                .as_ref()
                .and_then(|name| self.records.get(name));
            tables.restore(name, record, below)?;
        }
        tables.begin(next)?;
        drop(tables);
        tx.commit().attempt("fill the database")?;
        Ok(next)
    }
}

fn io_error(path: &Path, error: io::Error) -> OpenError {
    OpenError::Unusable {
        path: path.to_owned(),
        source: Box::new(redb::Error::Io(error)),
    }
}

fn unusable(path: &Path, error: MetadataError) -> OpenError {
    let source = match error {
        MetadataError::Storage { source, .. } => source,
        other => Box::new(redb::Error::Corrupted(other.to_string())),
    };
    OpenError::Unusable {
        path: path.to_owned(),
        source,
    }
}

/// Whether the content of the file is damaged, as opposed to an I/O failure.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) | redb::Error::RepairAborted => true,
        redb::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
        ),
        _ => false,
    }
}

/// Renames a damaged file and returns its new name.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let aside = path.with_extension(format!("redb.damaged-{}", now.as_secs()));
    fs::rename(path, &aside)?;
    Ok(aside)
}
