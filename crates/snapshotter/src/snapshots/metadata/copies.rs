//! A second copy of every record: `records/<id>` beside the database, JSON.
//!
//! It is read only when the database cannot be: then every snapshot is what it was, running containers keep
//! what they wrote, and no image has to be unpacked again. Copies are written after the commit and not synced;
//! what is missing or old among them is put right at the next start that finds the database.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Info, Record, SnapshotId};

/// The folder of the copies.
#[derive(Debug)]
pub(super) struct Copies {
    folder: PathBuf,
    /// Said already, and nothing went well since.
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
    /// Those beside a database.
    pub(super) fn beside(database: &Path) -> Self {
        Self {
            folder: database.with_file_name("records"),
            complained: AtomicBool::new(false),
        }
    }

    /// Writes one; the snapshot itself does not depend on it.
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

    /// Removes one.
    pub(super) fn remove(&self, id: SnapshotId) {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.complain(id, &error),
            _ => {}
        }
    }

    /// All that can be read. What cannot, and what a kill left half written, is left out.
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

    /// Makes them what the database says.
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
            "the second copy of a snapshot's record is not as it should be"
        );
    }
}
