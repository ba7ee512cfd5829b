//! Opening the file of the records, and making it again where it is damaged or gone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use redb::{Database, DatabaseError, ReadableTable};
use tracing::error;

use super::copies::Copies;
use super::{
    Attempt, CHILDREN, COUNTERS, Metadata, MetadataError, NEXT_ID, Record, SCHEMA, SCHEMA_VERSION,
    SNAPSHOTS, Snapshots, link,
};

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A second daemon on the same root.
    #[error("{} is locked: another daemon runs on the same root", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later version.
    #[error("{} has schema {found}, this program knows {SCHEMA_VERSION}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The file cannot be used.
    #[error("cannot open {}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// redb's error.
        #[source]
        source: Box<redb::Error>,
    },
}

/// What the counters of an opened file say.
struct Counters {
    /// `None` in a file that was empty.
    schema: Option<u64>,
    next: u64,
}

impl Metadata {
    /// Opens or creates the file. No id up to `used` (the highest number that a directory has) is given out.
    pub fn open(path: &Path, used: u64) -> Result<Self, OpenError> {
        let (metadata, counters) = match Self::open_file(path) {
            Err(OpenError::Unusable { source, .. }) if is_damage(&source) => {
                let aside = set_aside(path).map_err(|error| OpenError::Unusable {
                    path: path.to_owned(),
                    source: Box::new(redb::Error::Io(error)),
                })?;
                error!(
                    file = %path.display(),
                    aside = %aside.display(),
                    error = &source as &dyn std::error::Error,
                    "the records of snapshots are damaged; they are set aside and made again from their copies"
                );
                Self::open_file(path)?
            }
            opened => opened?,
        };
        let mut next = counters.next;
        let unusable = |error| unusable(path, error);
        if counters.schema.is_none() {
            next = next.max(metadata.restore().map_err(unusable)?);
        }
        let known = metadata.list(|_| true).map_err(unusable)?;
        metadata.copies.settle(&known);
        metadata
            .next_id
            .store(next.max(used.saturating_add(1)), Ordering::Relaxed);
        Ok(metadata)
    }

    fn open_file(path: &Path) -> Result<(Self, Counters), OpenError> {
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::Locked {
                path: path.to_owned(),
            },
            error => OpenError::Unusable {
                path: path.to_owned(),
                source: Box::new(error.into()),
            },
        })?;
        let metadata = Self {
            database,
            next_id: AtomicU64::new(0),
            copies: Copies::beside(path),
        };
        let counters = metadata
            .prepare_tables()
            .map_err(|error| unusable(path, error))?;
        match counters.schema {
            Some(found) if found > SCHEMA_VERSION => Err(OpenError::Newer {
                path: path.to_owned(),
                found,
            }),
            _ => Ok((metadata, counters)),
        }
    }

    /// Makes the tables on first use.
    fn prepare_tables(&self) -> Result<Counters, MetadataError> {
        self.write("prepare tables", |tx| {
            tx.open_table(SNAPSHOTS).attempt("open snapshots")?;
            tx.open_table(CHILDREN).attempt("open children")?;
            let mut counters = tx.open_table(COUNTERS).attempt("open counters")?;
            let read = |found: Option<redb::AccessGuard<'_, u64>>| found.map(|guard| guard.value());
            let next = read(counters.get(NEXT_ID).attempt("read the next id")?).unwrap_or(1);
            let schema = read(counters.get(SCHEMA).attempt("read the schema")?);
            if schema.is_none() {
                counters
                    .insert(SCHEMA, SCHEMA_VERSION)
                    .attempt("write the schema")?;
            }
            Ok(Counters { schema, next })
        })
    }

    /// Fills an empty file from the copies; gives the first id that none of them has.
    fn restore(&self) -> Result<u64, MetadataError> {
        // Of two copies of one name, which a kill may leave, the later one counts.
        let mut copies = self.copies.all();
        copies.sort_by_key(|copy| copy.record.updated);
        let copies: BTreeMap<String, Record> = copies
            .into_iter()
            .map(|copy| (copy.name, copy.record))
            .collect();
        self.write("restore the records", |tx| {
            let mut snapshots = Snapshots(tx.open_table(SNAPSHOTS).attempt("open snapshots")?);
            for (name, record) in &copies {
                snapshots.put(name, record)?;
                let below = record.parent.as_ref().and_then(|name| copies.get(name));
                if let Some(below) = below {
                    link(tx, below.id, record.id, name)?;
                }
            }
            Ok(())
        })?;
        let highest = copies.values().map(|record| record.id.0).max();
        Ok(highest.unwrap_or(0).saturating_add(1))
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

/// Whether the content of the file is wrong, not the way to it.
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

/// Renames a damaged file, and gives its new name.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let aside = path.with_extension(format!("redb.damaged-{}", now.as_secs()));
    fs::rename(path, &aside)?;
    Ok(aside)
}
