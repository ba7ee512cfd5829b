//! A second copy of every record, as JSON in `records/<id>` next to the database.
//!
//! It is read only if the database cannot be: then all snapshots are restored, running containers
//! keep what they wrote, and no image has to be unpacked again. Copies are written after the commit
//! and not synced. The next start with an intact database corrects missing and outdated copies.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Info, Record, SnapshotId};

/// The directory of the copies.
#[derive(Debug)]
pub(super) struct Copies {
    folder: PathBuf,
    /// Whether a warning was logged since the last success.
    complained: AtomicBool,
}

#[derive(Serialize)]
struct Written<'a> {
    name: &'a str,
    record: &'a Record,
}

#[derive(Deserialize)]
struct Read {
    name: String,
    record: Record,
}

impl Copies {
    /// The copies next to a database.
    pub(super) fn beside(database: &Path) -> Self {
        Self {
            folder: database.with_file_name("records"),
            complained: AtomicBool::new(false),
        }
    }

    /// Writes a copy. Failures are only logged.
    pub(super) fn put(&self, name: &str, record: &Record) {
        match self.write(&Written { name, record }) {
            Ok(()) => self.complained.store(false, Ordering::Relaxed),
            Err(error) => self.complain(record.id, &error),
        }
    }

    fn write(&self, copy: &Written<'_>) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(&serde_json::to_vec(copy)?)?;
        file.persist(self.path(copy.record.id))?;
        Ok(())
    }

    /// Removes a copy.
    pub(super) fn remove(&self, id: SnapshotId) {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.complain(id, &error),
            _ => {}
        }
    }

    /// Returns all readable copies, without incomplete ones that a kill left.
    pub(super) fn all(&self) -> Vec<Info> {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().parse::<u64>().is_ok())
            .filter_map(|entry| {
                let text = fs::read(entry.path()).ok()?;
                let Read { name, record } = serde_json::from_slice(&text).ok()?;
                Some(Info { name, record })
            })
            .collect()
    }

    /// Updates the copies to the database.
    pub(super) fn settle(&self, known: &[Info]) {
        let mut found: std::collections::BTreeMap<_, _> = self
            .all()
            .into_iter()
            .map(|copy| (copy.record.id, copy))
            .collect();
        for info in known {
            if found.remove(&info.record.id).as_ref() != Some(info) {
                self.put(&info.name, &info.record);
            }
        }
        for id in found.into_keys() {
            self.remove(id);
        }
    }

    fn path(&self, id: SnapshotId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    fn complain(&self, id: SnapshotId, error: &io::Error) {
        if self.complained.swap(true, Ordering::Relaxed) {
            return;
        }
        warn!(
            folder = %self.folder.display(),
            snapshot = id.0,
            error = error as &dyn std::error::Error,
            "cannot update the copy of a snapshot record"
        );
    }
}
