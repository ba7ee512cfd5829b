//! Mounts of a snapshot. Mounts the layers below it and checks that a container may start from
//! them.

use std::path::{Path, PathBuf};

use super::ids::{IdMap, OwnersError};
use super::metadata::{Info, Kind, MetadataError, Record, SnapshotId};
use super::{Mount, Shared, SnapshotError, Snapshotter, overlay, trust};
use crate::cpu::{Lane, Lost};
use crate::image::{Parent, Wanted, explain, labels, plan};
use crate::mount::mapped;

impl Shared {
    /// The ID-mapped copy of a parent for a snapshot, with its directory.
    fn copy_of(
        &self,
        parent: SnapshotId,
        is_layer: bool,
        id: SnapshotId,
    ) -> Result<mapped::Copy, SnapshotError> {
        let at = self.directories.mapped(parent, id);
        let at = at.map_err(|source| self.files("create a mount point", id, source))?;
        let from = self.directories.fs(parent);
        Ok(mapped::Copy { from, is_layer, at })
    }
}

impl Snapshotter {
    /// Returns the mounts of the first snapshot of a chain, after mounting the layers below it.
    pub(super) async fn mounts_of(&self, chain: &[Info]) -> Result<Vec<Mount>, SnapshotError> {
        let [top, parents @ ..] = chain else {
            return Ok(Vec::new());
        };
        if top.record.kind == Kind::Committed {
            return Err(SnapshotError::NotMountable {
                key: top.name.clone(),
            });
        }
        let mut parents = parents.to_vec();
        self.ensure(&mut parents).await?;
        if self.shared.options.verified_only && !top.record.labels.contains_key(labels::TARGET) {
            self.wait_for_trust(&parents).await?;
        }
        let has_layers = parents.iter().any(|info| info.record.layer.is_some());
        let idmap = IdMap::wanted(&top.record.labels, &parents)?;
        let Shared {
            directories,
            options,
            ..
        } = &*self.shared;
        let Record { kind, id, .. } = top.record;
        let parents = match idmap {
            Some(idmap) if !parents.is_empty() => self.mapped(id, &parents, &idmap).await?,
            _ => parents
                .iter()
                .map(|info| directories.fs(info.record.id))
                .collect(),
        };
        Ok(vec![overlay::mount_of(
            directories,
            kind,
            id,
            &parents,
            overlay::Extra {
                xino: has_layers && self.shared.parts.images.xino(),
                userxattr: options.userxattr,
            },
        )])
    }

    /// Shows the parents of a snapshot with the owners of its user namespace. Returns where.
    async fn mapped(
        &self,
        id: SnapshotId,
        parents: &[Info],
        idmap: &IdMap,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        let below: Vec<_> = parents
            .iter()
            .map(|info| (info.record.id, info.record.layer.is_some()))
            .collect();
        let copies = self
            .run(Lane::Files, move |shared| {
                let copy = |(parent, is_layer)| shared.copy_of(parent, is_layer, id);
                below.into_iter().map(copy).collect::<Result<Vec<_>, _>>()
            })
            .await?;
        let places = copies.iter().map(|copy| copy.at.clone()).collect();
        let mounts = &self.shared.parts.mounts;
        match mapped::copy_all(mounts, copies, idmap.owners()).await {
            Ok(()) => Ok(places),
            Err(error) if mapped::is_unsupported(&error) => {
                let why = explain(&error);
                Err(OwnersError::Unsupported { why }.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Mounts every layer of a chain, and updates the chain and its records to what is mounted.
    pub(super) async fn ensure(&self, chain: &mut [Info]) -> Result<(), SnapshotError> {
        self.check_trust(chain)?;
        let wanted = self.wanted(chain)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let unavailable = |at: &Path, why: String| {
            let id = at.parent().and_then(Path::file_name).unwrap_or_default();
            SnapshotError::Unavailable {
                layer: id.to_string_lossy().into_owned(),
                why,
            }
        };
        let Some(images) = self.shared.parts.images.wanted().await.cloned() else {
            let why = plan::UNABLE.to_owned();
            return Err(unavailable(&wanted[0].at, why));
        };
        let snapshotter = self.clone();
        let layers = chain.iter().filter(|info| info.record.layer.is_some());
        let names: Vec<_> = layers
            .map(|info| (info.name.clone(), info.record.id))
            .collect();
        let record = move |position: usize, layer| {
            let (snapshotter, named) = (snapshotter.clone(), names.get(position).cloned());
            async move {
                let (name, id) = named.ok_or(MetadataError::Lost)?;
                let metadata = &snapshotter.shared.metadata;
                metadata.show(&name, id, layer).await.map(drop)
            }
        };
        // Run as a separate task: a mount that has started must be recorded.
        let ensured = self
            .shared
            .tasks
            .spawn(async move { images.ensure(wanted, record).await })
            .await;
        let ensured =
            ensured.map_err(|error| SnapshotError::Lost(Lost::Panicked(error.to_string())))?;
        let shown = ensured.map_err(|(at, error)| unavailable(&at, explain(&error)))?;
        let layers = chain.iter_mut().filter(|info| info.record.layer.is_some());
        for (info, shown) in layers.zip(shown) {
            info.record.layer = Some(shown);
        }
        Ok(())
    }

    /// The layers of a chain, topmost first, each with the layers below it.
    fn wanted(&self, chain: &[Info]) -> Result<Vec<Wanted>, SnapshotError> {
        let mut wanted = Vec::new();
        for (depth, info) in chain.iter().enumerate() {
            let Some(layer) = info.record.layer.clone() else {
                continue;
            };
            let id = info.record.id;
            let at =
                self.shared
                    .directories
                    .restore(id)
                    .map_err(|source| SnapshotError::Files {
                        action: "create the mount point",
                        id,
                        source,
                    })?;
            let parents = self.parents(&chain[depth + 1..]);
            wanted.push(Wanted {
                layer,
                at,
                expected: trust::expected(info),
                labels: info.record.labels.clone(),
                parents,
            });
        }
        Ok(wanted)
    }

    pub(super) fn parents(&self, chain: &[Info]) -> Vec<Parent> {
        let directories = &self.shared.directories;
        let parent = |info: &Info| match &info.record.layer {
            Some(layer) => Parent::Layer(layer.clone()),
            None => Parent::Directory(directories.fs(info.record.id)),
        };
        chain.iter().map(parent).collect()
    }
}
