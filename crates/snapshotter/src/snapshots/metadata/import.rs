//! Takes over the snapshot records of the reference implementation at the first start on a state
//! directory where it ran. Its file is only read, so the way back to it stays open.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use soci_bolt::ReadError;
use tracing::{error, info, warn};

use super::reference::{self, Reference};
use super::{Info, OpenError, Owner};

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

/// Reads the reference's records next to our database. A damaged file counts as empty, and the log
/// says so.
pub(super) fn records(database: &Path) -> Result<Reference, OpenError> {
    let path = database.with_file_name(NAME);
    let file = match soci_bolt::read(&path, MAX_BYTES, PATIENCE) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(Reference::default()),
        Err(ReadError::Busy) => return Err(OpenError::ReferenceRuns { path }),
        Err(ReadError::Io(source)) => return Err(OpenError::Reference { path, source }),
        Err(other) => {
            lost(&path, &other);
            return Ok(Reference::default());
        }
    };
    let mut reference = match reference::parse(&file) {
        Ok(reference) => reference,
        Err(damage) => {
            lost(&path, &damage);
            return Ok(Reference::default());
        }
    };
    let snapshots = database.with_file_name("snapshots");
    for Info { record, .. } in &mut reference.records {
        if record.layer.is_none() {
            let files = snapshots.join(record.id.to_string()).join("fs");
            record.owner = owner(&files);
        }
    }
    tell(&path, &reference);
    Ok(reference)
}

/// Owner of a directory of files. One that is missing is found out when it is mounted.
fn owner(files: &Path) -> Owner {
    let found = fs::symlink_metadata(files).map(|found| Owner {
        uid: found.uid(),
        gid: found.gid(),
    });
    found.unwrap_or_default()
}

fn lost(path: &Path, error: &dyn std::error::Error) {
    error!(
        file = %path.display(),
        error = error.to_string(),
        "the snapshot records of the SOCI snapshotter cannot be read, starting without them: remove its containers and images and pull the images again (the file is left as it is)"
    );
}

fn tell(path: &Path, reference: &Reference) {
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
        "some snapshot records of the SOCI snapshotter make no sense and are left out: remove the images and containers on them and pull the images again"
    );
}
