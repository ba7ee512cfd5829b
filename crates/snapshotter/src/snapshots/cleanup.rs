//! Removes what no snapshot uses: directories, then layers, one cleanup at a time.

use std::path::PathBuf;

use tracing::warn;

use super::metadata::MetadataError;
use super::{Shared, SnapshotError, Snapshotter, directories};
use crate::cpu::Lane;
use crate::mount;

impl Snapshotter {
    /// Deletes what no snapshot uses. Failures are logged, and the next cleanup tries again.
    pub async fn cleanup(&self) -> Result<(), SnapshotError> {
        let Ok(_permit) = self.shared.cleaning.acquire().await else {
            // Never closed, so this cannot happen.
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

    /// Ensures that no removed record can reappear after its files are deleted.
    async fn settle_removals(&self) -> Result<(), SnapshotError> {
        match self.shared.metadata.sync().await {
            // Continue: the files to delete may be what fills the disk.
            Err(error @ MetadataError::Full { .. }) => {
                let error = &error as &dyn std::error::Error;
                warn!(
                    error,
                    "removed snapshots will reappear if the power fails before disk space is available"
                );
                Ok(())
            }
            done => Ok(done?),
        }
    }

    /// Unmounts and deletes the directory of a snapshot. Never deletes through a mount.
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
    /// Directories that have no record and are not in use.
    fn abandoned(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let path = self.directories.all();
        let idle = self
            .directories
            .idle()
            .map_err(|source| SnapshotError::Folder { path, source })?;
        // The order matters, see `Directories::idle`.
        let kept = self.metadata.ids()?;
        let abandoned = idle
            .into_iter()
            .filter(|(owner, _)| owner.is_none_or(|id| !kept.contains(&id)));
        Ok(abandoned.map(|(_, directory)| directory).collect())
    }
}
