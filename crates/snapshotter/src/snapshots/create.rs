//! Creates snapshots, the directory before the record, and undoes failed requests.

use tracing::warn;

use super::directories::Busy;
use super::ids::IdMap;
use super::metadata::{Info, Kind, Labels, Lasts, MetadataError, SnapshotId};
use super::{Mount, Shared, SnapshotError, Snapshotter};
use crate::cpu::Lane;

impl Snapshotter {
    /// Creates a snapshot that is not one of our layers.
    pub(super) async fn plain(
        &self,
        kind: Kind,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let snapshotter = self.clone();
        self.owned(|caller| async move {
            let made = snapshotter
                .create(kind, key, parent, labels, Lasts::Always)
                .await;
            let (chain, _busy) = made?;
            let mut mounts = snapshotter.mounts_of(&chain).await;
            if caller.is_gone() {
                mounts = mounts.and(Err(SnapshotError::CallerGone));
            }
            if mounts.is_err() {
                snapshotter.take_back(&chain).await;
            }
            mounts
        })
        .await
    }

    /// Creates the directory, then the record.
    pub(super) async fn create(
        &self,
        kind: Kind,
        key: String,
        parent: Option<String>,
        labels: Labels,
        lasts: Lasts,
    ) -> Result<(Vec<Info>, Busy), SnapshotError> {
        if key.is_empty() {
            return Err(SnapshotError::Empty { field: "key" });
        }
        let (name, below, asked) = (key.clone(), parent.clone(), labels.clone());
        let made = self.run(Lane::Files, move |shared| {
            shared.make_directory(kind, &name, below.as_deref(), &asked)
        });
        let (id, busy, below) = made.await?;
        let (metadata, parent) = (&self.shared.metadata, parent.as_deref());
        let created = metadata.create(id, kind, &key, parent, labels, lasts).await;
        match created {
            Ok(record) => {
                let mut chain = vec![Info { name: key, record }];
                chain.extend(below);
                Ok((chain, busy))
            }
            Err(error) => {
                self.delete(Lane::Files, self.shared.directories.of(id))
                    .await;
                Err(error.into())
            }
        }
    }

    /// Removes the snapshot of a failed request and its directory.
    pub(super) async fn take_back(&self, chain: &[Info]) {
        let Some(top) = chain.first() else {
            return;
        };
        match self.shared.metadata.remove(&top.name).await {
            // Another request may have removed it already.
            Ok(_) | Err(MetadataError::NotFound { .. }) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "cannot remove the snapshot of a failed request");
                return;
            }
        }
        let directory = self.shared.directories.of(top.record.id);
        self.delete(Lane::Files, directory).await;
    }
}

impl Shared {
    /// Creates the directory of a new snapshot, and returns the chain below it.
    fn make_directory(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<(SnapshotId, Busy, Vec<Info>), SnapshotError> {
        let below = parent
            .map(|parent| self.metadata.chain(parent))
            .transpose()?
            .unwrap_or_default();
        if self.metadata.find(key)?.is_some() {
            return Err(MetadataError::AlreadyExists {
                name: key.to_owned(),
            }
            .into());
        }
        let first = below.first().map(|below| below.record.owner);
        let mut owner = first.unwrap_or_default();
        if let Some(map) = IdMap::wanted(labels, &below)? {
            // The new directory is not an ID-mapped copy, so map its owner here.
            owner = map.outside(owner);
        }
        let id = self.metadata.reserve_id();
        let busy = self.directories.busy(id);
        self.directories
            .create(id, kind, owner)
            .map_err(|source| self.files("create the directory", id, source))?;
        Ok((id, busy, below))
    }
}
