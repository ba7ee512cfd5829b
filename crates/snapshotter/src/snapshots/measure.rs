//! What snapshots take on disk.

use super::metadata::{Info, Kind, Record, Usage};
use super::{Shared, SnapshotError, Snapshotter};
use crate::cpu::Lane;

impl Snapshotter {
    /// What a snapshot takes: measured now while it is active or a layer of ours, else as it was when it was committed.
    pub async fn usage(&self, key: String) -> Result<Usage, SnapshotError> {
        // Never closed.
        let _turn = self.shared.measuring.acquire().await.ok();
        self.run(Lane::Files, move |shared| {
            let record = shared.metadata.get(&key)?;
            match record.kind {
                // What is being made may be a mount of ours.
                Kind::Active if !shared.directories.is_busy(record.id) => shared.measure(&record),
                _ => shared.taken(&record),
            }
        })
        .await
    }
}

impl Shared {
    /// What an active snapshot takes. Only those whose `fs` is a directory are ever active.
    pub(super) fn measure(&self, record: &Record) -> Result<Usage, SnapshotError> {
        let id = record.id;
        self.directories
            .usage(id)
            .map_err(|source| SnapshotError::Files {
                action: "measure the files",
                id,
                source,
            })
    }

    /// What a snapshot takes that is not measured. A layer's files belong to the first of the snapshots that show it:
    /// all together take what is on disk.
    fn taken(&self, record: &Record) -> Result<Usage, SnapshotError> {
        let (Some(used), Some(images)) = (&record.layer, self.parts.images.get()) else {
            return Ok(record.usage);
        };
        let shows = |info: &Info| {
            let layer = info.record.layer.as_ref();
            layer.is_some_and(|layer| layer.layer == used.layer)
        };
        let all = self.metadata.list(shows)?;
        if all.iter().any(|info| info.record.id < record.id) {
            return Ok(Usage::default());
        }
        let taken = images.taken(&used.layer);
        let taken = taken.map_err(|source| self.files("measure the layer", record.id, source))?;
        Ok(Usage {
            size: taken.bytes,
            inodes: taken.inodes,
        })
    }
}
