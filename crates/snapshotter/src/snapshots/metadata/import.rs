//! Takes over the snapshot records of the reference implementation at the first start on a state
//! directory where it ran. Its file is only read, so the way back to it stays open.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use soci_bolt::ReadError;
use tracing::{error, info, warn};

use super::reference::{self, Reference};
use super::{Info, Kind, OpenError, Owner};

/// The file, next to our own.
const NAME: &str = "metadata.db";
/// Maximum size of the file in bytes. A record takes less than 4 KiB, and a node has thousands.
const MAX_BYTES: u64 = 512 << 20;
/// How long a process that was just stopped may keep the file.
const PATIENCE: Duration = Duration::from_secs(2);
/// Number of lost snapshots that the log names.
const NAMED: usize = 10;

/// Whether the reference has its file next to our database open.
pub(crate) fn is_running(database: &Path) -> bool {
    let read = soci_bolt::read(&database.with_file_name(NAME), 0, Duration::ZERO);
    matches!(read, Err(ReadError::Busy))
}

/// Reads the reference's records next to our database. Directories of snapshots whose records are
/// damaged are moved aside, because the next cleanup would delete them.
pub(super) fn records(database: &Path) -> Result<Reference, OpenError> {
    let path = database.with_file_name(NAME);
    let snapshots = database.with_file_name("snapshots");
    let read = match soci_bolt::read(&path, MAX_BYTES, PATIENCE) {
        Ok(Some(file)) => reference::parse(&file).map_err(|damage| damage.to_string()),
        Ok(None) if fs::symlink_metadata(&path).is_ok() => Err("it is empty".to_owned()),
        Ok(None) => return Ok(Reference::default()),
        Err(ReadError::Busy) => return Err(OpenError::ReferenceRuns { path }),
        Err(source) => return Err(OpenError::Reference { path, source }),
    };
    let (mut reference, damage) = match read {
        Ok(reference) => (reference, None),
        Err(damage) => (Reference::default(), Some(damage)),
    };
    let records = std::mem::take(&mut reference.records);
    let (records, missing) = with_files(&snapshots, records);
    reference.records = records;
    reference.skipped.extend(missing);
    let aside = match (&damage, reference.skipped.is_empty()) {
        (None, true) => None,
        _ => set_aside(&snapshots, &reference.records).map_err(|source| OpenError::Aside {
            path: snapshots,
            source,
        })?,
    };
    let aside = aside.map(|aside| aside.display().to_string());
    if let Some(damage) = damage {
        error!(
            file = %path.display(),
            error = damage,
            aside,
            "the snapshot records of the SOCI snapshotter cannot be read, starting without them: remove its containers and images and pull the images again (the file is left as it is; the directories of its snapshots were moved aside, delete them when you need no file in them)"
        );
    }
    tell(&path, &reference, aside);
    Ok(reference)
}

/// Reads the owners of the directories. Committed files that are gone cannot be mounted, so their
/// records are left out with those on them, and returned by name. A parent comes before its
/// children.
fn with_files(snapshots: &Path, records: Vec<Info>) -> (Vec<Info>, Vec<(String, &'static str)>) {
    let mut kept = Vec::with_capacity(records.len());
    let mut missing = BTreeMap::new();
    for Info { name, mut record } in records {
        let parent = record.parent.as_ref();
        if parent.is_some_and(|parent| missing.contains_key(parent)) {
            missing.insert(name, "its parent is left out");
            continue;
        }
        if record.layer.is_none() {
            let files = snapshots.join(record.id.to_string()).join("fs");
            match fs::symlink_metadata(&files) {
                Ok(found) => {
                    let (uid, gid) = (found.uid(), found.gid());
                    record.owner = Owner { uid, gid };
                }
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && record.kind == Kind::Committed =>
                {
                    missing.insert(name, "its files are missing");
                    continue;
                }
                // Found out when it is mounted.
                Err(_) => {}
            }
        }
        kept.push(Info { name, record });
    }
    (kept, missing.into_iter().collect())
}

/// Moves the directories of snapshots without a record out of the reach of cleanups. Returns where,
/// if there were any.
fn set_aside(snapshots: &Path, records: &[Info]) -> io::Result<Option<PathBuf>> {
    let kept: HashSet<_> = records.iter().map(|info| info.record.id.0).collect();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let aside = snapshots.with_file_name(format!("snapshots.unread-{}", now.as_secs()));
    let entries = match fs::read_dir(snapshots) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?.collect::<io::Result<Vec<_>>>()?,
    };
    let mut moved = false;
    for entry in entries {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        if id.is_none_or(|id| kept.contains(&id)) {
            continue;
        }
        if !moved {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&aside)?;
            moved = true;
        }
        fs::rename(entry.path(), aside.join(name))?;
    }
    if !moved {
        return Ok(None);
    }
    // Must last before the import counts as done.
    for directory in [&aside, snapshots] {
        File::open(directory)?.sync_all()?;
    }
    Ok(Some(aside))
}

fn tell(path: &Path, reference: &Reference, aside: Option<String>) {
    let Reference {
        records, skipped, ..
    } = reference;
    if records.is_empty() && skipped.is_empty() {
        return;
    }
    let lazy = records.iter().filter(|info| info.record.layer.is_some());
    info!(
        file = %path.display(),
        snapshots = records.len(),
        lazy = lazy.count(),
        "imported the snapshot records of the SOCI snapshotter; containers that it started must be recreated if they read lazily loaded layers"
    );
    if skipped.is_empty() {
        return;
    }
    let named = skipped.iter().take(NAMED);
    let named: Vec<_> = named.map(|(name, why)| format!("{name}: {why}")).collect();
    warn!(
        file = %path.display(),
        count = skipped.len(),
        snapshots = named.join("; "),
        aside,
        "some snapshot records of the SOCI snapshotter make no sense or have no files and are left out: remove the images and containers on them and pull the images again (directories without a record were moved aside, delete them when you need no file in them)"
    );
}
