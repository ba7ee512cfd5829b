//! The database file: how it is created and opened, and how long to wait for other processes.
//!
//! The file is created atomically: it is written under another name, including any imported
//! records, and then linked into place. If two processes create it at the same time, the later one
//! discards its file.

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

/// The name of the file in the root directory.
const NAME: &str = "artifacts.redb";
const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("soci_artifacts");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const SCHEMA: &str = "schema";
/// Version of the row format. Files with a newer version are not modified.
const SCHEMA_VERSION: u64 = 1;
/// How long to wait for another process. A transaction takes milliseconds, so after ten seconds the
/// other process is probably stopped.
const PATIENCE: Duration = Duration::from_secs(10);
/// Delay before the next attempt to open the file.
const PAUSE: Duration = Duration::from_millis(5);
/// Cache size in bytes. The records are small, and commands may run under a memory limit.
const CACHE_BYTES: usize = 4 << 20;

/// Adds the file and the action to redb's error types.
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

/// A read transaction.
pub(super) struct Reader {
    path: PathBuf,
    table: ReadOnlyTable<&'static str, &'static [u8]>,
    /// Must stay open as long as the table.
    _database: Box<dyn std::any::Any>,
}

impl Reader {
    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ArtifactsError> {
        let row = self.table.get(key).attempt(&self.path, "read a record")?;
        Ok(row.map(|row| row.value().to_vec()))
    }

    /// Returns all rows by key.
    pub(super) fn all(&self) -> Result<Vec<(String, Vec<u8>)>, ArtifactsError> {
        let rows = self.table.iter().attempt(&self.path, "read the records")?;
        rows.map(|row| {
            let (key, value) = row.attempt(&self.path, "read a record")?;
            Ok((key.value().to_owned(), value.value().to_vec()))
        })
        .collect()
    }
}

/// A write transaction. Has no effect without [`Writer::commit`].
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
    /// The path of the file that contains the records.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.root.join(NAME)
    }

    /// Starts a read transaction. Returns `None` if nothing has been recorded yet.
    pub(super) fn reader(&self) -> Result<Option<Reader>, ArtifactsError> {
        let path = self.path();
        if !self.exists()? && !self.take_over()? {
            return Ok(None);
        }
        let (transaction, database): (ReadTransaction, Box<dyn std::any::Any>) =
            match self.patiently(|| options().open_read_only(&path))? {
                Ok(database) => (begin_read(&database, &path)?, Box::new(database)),
                // The last writer was killed. Opening the file for writing repairs it.
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

    /// Starts a write transaction. Creates the file if it is missing.
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

    /// Creates the file if it is missing.
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

    /// Creates the file if the reference's records exist. Returns whether it did.
    fn take_over(&self) -> Result<bool, ArtifactsError> {
        match self.reference()? {
            Some(imported) => self.make(Some(&imported)).map(|()| true),
            None => Ok(false),
        }
    }

    /// Reads the reference's records.
    fn reference(&self) -> Result<Option<Imported>, ArtifactsError> {
        let path = self.root.join(import::NAME);
        let patience = self.patience();
        let imported = import::read(&path, patience);
        imported.map_err(|error| error.reported(&path, patience))
    }

    /// Creates the file atomically.
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
            // Another process created the file first, with the same records.
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

    /// How long to wait for another process.
    fn patience(&self) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.deadline.map_or(PATIENCE, |it| left(it).min(PATIENCE))
    }

    /// Retries opening the file while another process has it open.
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

    /// Logs the reason and returns a generic error, as the reference does.
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
    // Use one commit mode throughout: switching between the two modes is not safe.
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}
