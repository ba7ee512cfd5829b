//! What belongs to no snapshot any more goes: directories, then layers, one at a time.

use std::path::PathBuf;

use tracing::warn;

use super::metadata::MetadataError;
use super::{Shared, SnapshotError, Snapshotter, directories};
use crate::cpu::Lane;
use crate::mount;

impl Snapshotter {
    /// Deletes what belongs to no snapshot any more. What cannot be deleted is logged and tried again next time.
    pub async fn cleanup(&self) -> Result<(), SnapshotError> {
        let Ok(_permit) = self.shared.cleaning.acquire().await else {
            // Never closed.
            return Ok(());
        };
        let abandoned = self.run(Lane::Files, Shared::abandoned).await?;
        self.settle_removals().await?;
        for directory in abandoned {
            self.delete(Lane::FilesBehind, directory).await;
        }
        let Some(images) = self.shared.parts.images.get() else {
            return Ok(());
        };
        let used = || {
            let snapshotter = self.clone();
            async move {
                let used = snapshotter.used_layers().await?;
                snapshotter.settle_removals().await?;
                Ok(used)
            }
        };
        images.remove_unused(used).await
    }

    /// No record that was removed comes back after its files are gone.
    async fn settle_removals(&self) -> Result<(), SnapshotError> {
        match self.shared.metadata.sync().await {
            // Its files may be what fills the disk.
            Err(error @ MetadataError::Full { .. }) => {
                let error = &error as &dyn std::error::Error;
                warn!(
                    error,
                    "removed snapshots come back if the power fails before there is space"
                );
                Ok(())
            }
            done => Ok(done?),
        }
    }

    /// Deletes the directory of a snapshot, after its mount; never through one.
    pub(super) async fn delete(&self, lane: Lane, directory: PathBuf) {
        let path = directory.display().to_string();
        let fs = directory.join("fs");
        let unmounted = match self.shared.parts.images.get() {
            Some(images) => images.unmount(&fs).await,
            None => mount::detach_all_under(&self.shared.parts.mounts, &fs)
                .await
                .map(drop),
        };
        if let Err(error) = unmounted {
            warn!(
                path,
                error = &error as &dyn std::error::Error,
                "failed to unmount"
            );
            return;
        }
        let removed = self
            .shared
            .parts
            .cpu
            .run(lane, move || directories::remove_tree(&directory));
        let error = match removed.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(lost) => lost.to_string(),
        };
        warn!(path, error, "failed to remove directory");
    }
}

impl Shared {
    /// Directories that belong to no record and that nothing is at work in.
    fn abandoned(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let path = self.directories.all();
        let idle = self
            .directories
            .idle()
            .map_err(|source| SnapshotError::Folder { path, source })?;
        // In this order; see `Directories::idle`.
        let kept = self.metadata.ids()?;
        let abandoned = idle
            .into_iter()
            .filter(|(owner, _)| owner.is_none_or(|id| !kept.contains(&id)));
        Ok(abandoned.map(|(_, directory)| directory).collect())
    }
}
