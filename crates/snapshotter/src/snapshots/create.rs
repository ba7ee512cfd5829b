//! Snapshots that are made: the directory, then the record; and what a failing request takes back.

use tracing::warn;

use super::directories::Busy;
use super::ids::IdMap;
use super::metadata::{Info, Kind, Labels, Lasts, MetadataError, SnapshotId};
use super::{Mount, Shared, SnapshotError, Snapshotter};
use crate::cpu::Lane;

impl Snapshotter {
    /// A snapshot that is no layer of ours.
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

    /// Directory first, then the record; see the module.
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

    /// Removes the snapshot that a failing request has made, and its directory.
    pub(super) async fn take_back(&self, chain: &[Info]) {
        let Some(top) = chain.first() else {
            return;
        };
        match self.shared.metadata.remove(&top.name).await {
            // Somebody else may have removed it already.
            Ok(_) | Err(MetadataError::NotFound { .. }) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "a snapshot of a failed request stays");
                return;
            }
        }
        let directory = self.shared.directories.of(top.record.id);
        self.delete(Lane::Files, directory).await;
    }
}

impl Shared {
    /// The directory of a new snapshot, and the chain that it stands on.
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
            // What is written there is seen as it is.
            owner = map.outside(owner);
        }
        let id = self.metadata.reserve_id();
        let busy = self.directories.busy(id);
        self.directories
            .create(id, kind, owner)
            .map_err(|source| self.files("make the directory", id, source))?;
        Ok((id, busy, below))
    }
}
