//! The database file: how it comes to be, how it is opened and how long another process is waited for.
//!
//! The file appears whole: it is made under another name, with what is taken over in it, and then linked to
//! its place. Two first users at the same time both make one; the later one's is thrown away.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use redb::{
    Builder, Database, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableTable as _,
    TableDefinition, TableError, WriteTransaction,
};

use super::{Artifacts, ArtifactsError, Imported, Row, Unreadable, import};

/// The file's name under the root folder.
const NAME: &str = "artifacts.redb";
const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("soci_artifacts");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const SCHEMA: &str = "schema";
/// Version of the rows; a file of a newer one is not touched.
const SCHEMA_VERSION: u64 = 1;
/// How long another process is waited for. A transaction takes milliseconds; ten seconds are a process that
/// is stopped.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before the file is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// The records of a machine are small, and the command that reads them may be one of memory limits.
const CACHE_BYTES: usize = 4 << 20;

/// Attaches file and action to redb's many error types.
trait Attempt<T> {
    fn attempt(self, path: &Path, action: &'static str) -> Result<T, ArtifactsError>;
}

impl<T, E: Into<redb::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, path: &Path, action: &'static str) -> Result<T, ArtifactsError> {
        self.map_err(|error| {
            let source: redb::Error = error.into();
            ArtifactsError::Storage {
                path: path.to_owned(),
                action,
                source: Box::new(source),
            }
        })
    }
}

/// One transaction that reads.
pub(super) struct Reader {
    path: PathBuf,
    table: ReadOnlyTable<&'static str, &'static [u8]>,
    /// Open as long as the table is.
    _database: Box<dyn std::any::Any>,
}

impl Reader {
    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ArtifactsError> {
        let row = self.table.get(key).attempt(&self.path, "read a record")?;
        Ok(row.map(|row| row.value().to_vec()))
    }

    /// All rows, by key.
    pub(super) fn all(&self) -> Result<Vec<(String, Vec<u8>)>, ArtifactsError> {
        let rows = self.table.iter().attempt(&self.path, "read the records")?;
        rows.map(|row| {
            let (key, value) = row.attempt(&self.path, "read a record")?;
            Ok((key.value().to_owned(), value.value().to_vec()))
        })
        .collect()
    }
}

/// One transaction that writes; without [`Writer::commit`] nothing happened.
pub(super) struct Writer {
    path: PathBuf,
    transaction: WriteTransaction,
    _database: Database,
}

impl Writer {
    pub(super) fn put(&mut self, key: &str, row: &[u8]) -> Result<(), ArtifactsError> {
        let mut table = self
            .transaction
            .open_table(ROWS)
            .attempt(&self.path, "open the records")?;
        let old = table.insert(key, row);
        old.map(drop).attempt(&self.path, "write a record")
    }

    pub(super) fn remove(&mut self, key: &str) -> Result<(), ArtifactsError> {
        let mut table = self
            .transaction
            .open_table(ROWS)
            .attempt(&self.path, "open the records")?;
        let old = table.remove(key);
        old.map(drop).attempt(&self.path, "remove a record")
    }

    pub(super) fn commit(self) -> Result<(), ArtifactsError> {
        self.transaction.commit().attempt(&self.path, "commit")
    }
}

impl Artifacts {
    /// The file that holds the records.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.root.join(NAME)
    }

    /// Begins to read; `None` if nothing was ever recorded.
    pub(super) fn reader(&self) -> Result<Option<Reader>, ArtifactsError> {
        let path = self.path();
        if !self.exists()? && !self.take_over()? {
            return Ok(None);
        }
        let (transaction, database): (ReadTransaction, Box<dyn std::any::Any>) =
            match self.patiently(|| options().open_read_only(&path))? {
                Ok(database) => (begin_read(&database, &path)?, Box::new(database)),
                // Whoever wrote it last was killed: opening it for writing repairs it.
                Err(DatabaseError::RepairAborted) => {
                    let database = self.open()?;
                    (begin_read(&database, &path)?, Box::new(database))
                }
                Err(error) => return Err(self.unusable(&error)),
            };
        self.check_schema(&transaction)?;
        match transaction.open_table(ROWS) {
            Ok(table) => Ok(Some(Reader {
                path,
                table,
                _database: database,
            })),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error).attempt(&path, "open the records"),
        }
    }

    /// Begins to write; the file is made if there is none.
    pub(super) fn writer(&self) -> Result<Writer, ArtifactsError> {
        let path = self.path();
        self.ensure(Unreadable::Refused)?;
        let database = self.open()?;
        self.check_schema(&begin_read(&database, &path)?)?;
        Ok(Writer {
            transaction: begin_write(&database, &path)?,
            path,
            _database: database,
        })
    }

    fn open(&self) -> Result<Database, ArtifactsError> {
        let path = self.path();
        let opened = self.patiently(|| options().open(&path))?;
        opened.map_err(|error| self.unusable(&error))
    }

    fn exists(&self) -> Result<bool, ArtifactsError> {
        let path = self.path();
        path.try_exists().map_err(|error| self.unusable(&error))
    }

    /// Makes the file if there is none.
    pub(super) fn ensure(&self, unreadable: Unreadable) -> Result<(), ArtifactsError> {
        if self.exists()? {
            return Ok(());
        }
        let imported = match self.reference() {
            Err(ArtifactsError::Unavailable) if unreadable == Unreadable::LeftOut => None,
            other => other?,
        };
        self.make(imported.as_ref())
    }

    /// Makes the file if the reference left records; whether it did.
    fn take_over(&self) -> Result<bool, ArtifactsError> {
        match self.reference()? {
            Some(imported) => self.make(Some(&imported)).map(|()| true),
            None => Ok(false),
        }
    }

    /// The reference's records.
    fn reference(&self) -> Result<Option<Imported>, ArtifactsError> {
        let path = self.root.join(import::NAME);
        let patience = self.patience();
        let imported = import::read(&path, patience);
        imported.map_err(|error| error.reported(&path, patience))
    }

    /// Makes the file, whole at once.
    fn make(&self, imported: Option<&Imported>) -> Result<(), ArtifactsError> {
        let path = self.path();
        let failed = |error: io::Error| self.unusable(&error);
        let draft = tempfile::Builder::new()
            .prefix(".artifacts.redb.")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(&self.root)
            .map_err(failed)?;
        let file: File = draft.as_file().try_clone().map_err(failed)?;
        let database = options().create_file(file).attempt(&path, "create")?;
        self.fill(&database, imported)?;
        drop(database);
        match draft.persist_noclobber(&path) {
            Ok(_) => {}
            // Somebody else was first, with the same records.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(failed(error.error)),
        }
        if let Some(Imported { entries, skipped }) = imported {
            let (source, count) = (self.root.join(import::NAME), entries.len());
            tracing::info!("took {count} records over from {}", source.display());
            if *skipped > 0 {
                tracing::warn!(
                    "left {skipped} damaged records of {} out; `soci rebuild-db` finds what is still there",
                    source.display()
                );
            }
        }
        Ok(())
    }

    fn fill(&self, database: &Database, imported: Option<&Imported>) -> Result<(), ArtifactsError> {
        let path = self.path();
        let transaction = begin_write(database, &path)?;
        {
            let mut numbers = transaction.open_table(NUMBERS).attempt(&path, "create")?;
            let old = numbers.insert(SCHEMA, SCHEMA_VERSION);
            old.map(drop).attempt(&path, "create")?;
        }
        if let Some(imported) = imported {
            let mut rows = transaction.open_table(ROWS).attempt(&path, "create")?;
            for entry in &imported.entries {
                let (key, row) = (entry.digest.to_string(), Row::encode(entry));
                let old = rows.insert(key.as_str(), row.as_slice());
                old.map(drop).attempt(&path, "write a record")?;
            }
        }
        transaction.commit().attempt(&path, "create")
    }

    /// How long another process is waited for.
    fn patience(&self) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.deadline.map_or(PATIENCE, |it| left(it).min(PATIENCE))
    }

    /// Tries to open as long as another process has the file.
    fn patiently<T>(
        &self,
        open: impl Fn() -> Result<T, DatabaseError>,
    ) -> Result<Result<T, DatabaseError>, ArtifactsError> {
        let (started, patience) = (Instant::now(), self.patience());
        let mut pause = PAUSE;
        loop {
            match open() {
                Err(DatabaseError::DatabaseAlreadyOpen) => {}
                other => return Ok(other),
            }
            let left = patience.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(ArtifactsError::Busy {
                    path: self.path(),
                    waited: patience,
                });
            }
            sleep(pause.min(left));
            pause = (pause * 2).min(20 * PAUSE);
        }
    }

    fn check_schema(&self, transaction: &ReadTransaction) -> Result<(), ArtifactsError> {
        let path = self.path();
        let numbers = transaction
            .open_table(NUMBERS)
            .attempt(&path, "read the schema")?;
        let found = numbers.get(SCHEMA).attempt(&path, "read the schema")?;
        match found.map(|number| number.value()) {
            Some(found) if found > SCHEMA_VERSION => Err(self.unusable(&format_args!(
                "it has schema {found}, this program knows {SCHEMA_VERSION}"
            ))),
            _ => Ok(()),
        }
    }

    /// What the reference does: the reason goes to the log.
    fn unusable(&self, cause: &dyn std::fmt::Display) -> ArtifactsError {
        tracing::error!(
            "can't open {}: {cause}; if it is damaged, move it away and run `soci rebuild-db`",
            self.path().display()
        );
        ArtifactsError::Unavailable
    }
}

fn options() -> Builder {
    let mut options = Database::builder();
    options.set_cache_size(CACHE_BYTES);
    options
}

fn begin_read(
    database: &impl redb::ReadableDatabase,
    path: &Path,
) -> Result<ReadTransaction, ArtifactsError> {
    database.begin_read().attempt(path, "begin to read")
}

fn begin_write(database: &Database, path: &Path) -> Result<WriteTransaction, ArtifactsError> {
    let mut transaction = database.begin_write().attempt(path, "begin to write")?;
    // Chosen once and never mixed: the two commit modes do not follow each other safely.
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}
