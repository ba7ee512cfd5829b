//! Disk usage of snapshots.

use super::metadata::{Info, Kind, Record, Usage};
use super::{Shared, SnapshotError, Snapshotter};
use crate::cpu::Lane;
use crate::image::labels;

impl Snapshotter {
    /// Returns the usage of a snapshot: measured now if it is active or a layer of ours, otherwise
    /// as recorded when it was committed.
    pub async fn usage(&self, key: String) -> Result<Usage, SnapshotError> {
        // Never closed, so this cannot fail.
        let _turn = self.shared.measuring.acquire().await.ok();
        self.run(Lane::Files, move |shared| {
            let record = shared.metadata.get(&key)?;
            match record.kind {
                // A directory that is being created may be one of our mounts.
                Kind::Active if !shared.directories.is_busy(record.id) => shared.measure(&record),
                _ => shared.taken(&record),
            }
        })
        .await
    }
}

impl Shared {
    /// Measures an active snapshot. The `fs` of an active snapshot is always a directory.
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

    /// The usage of a snapshot that is not measured. A layer has what is on disk now, unless it is
    /// lazy and the configuration wants the zeros of the reference. One that several snapshots show
    /// is counted for the first of them, so that the sum is the actual usage.
    fn taken(&self, record: &Record) -> Result<Usage, SnapshotError> {
        let (Some(used), Some(images)) = (&record.layer, self.parts.images.get()) else {
            return Ok(record.usage);
        };
        if self.options.zero_usage && labels::is_lazy(&record.labels) {
            return Ok(record.usage);
        }
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
