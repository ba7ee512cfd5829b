//! Snapshots: prepare, view, mounts, commit, remove, usage, walk, cleanup.
//!
//! Purpose: what containerd asks of a snapshotter, without knowing gRPC. Parts: `plan` decides, `metadata`
//! remembers, `directories` and `overlay` are the files and the mounts, `restore` deals with what an earlier
//! process left.
//!
//! Order of a creation: the directory, then the record, so that whatever has a record is usable; a directory
//! without a record is found and deleted by `cleanup`, and its number is never used again. Order of a removal:
//! the record, then (in `cleanup`) mount and directory. A request that fails takes its own record with it.
//!
//! Commit, remove, stat and update are called by containerd from inside its own transactions. They never call
//! containerd, the network or a mount of ours.

pub(crate) mod directories;
pub mod labels;
pub mod metadata;
pub(crate) mod overlay;
pub(crate) mod plan;
pub(crate) mod restore;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use self::directories::Directories;
use self::metadata::{
    Commit, Info, Kind, LabelUpdate, Labels, Metadata, MetadataError, OpenError, Record,
    SnapshotId, Usage,
};
pub use self::overlay::{Mount, Unsupported, needs_userxattr};
use self::plan::{Facts, First};
use crate::cpu::{Cpu, Lane, Lost};
use crate::image::verdict;
use crate::sync::Arc;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The records refuse it.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The layer is there under the name that was asked for: containerd's signal for "done".
    #[error("target snapshot {target:?}")]
    TargetExists {
        /// The name.
        target: String,
    },
    /// A layer needs a namespace.
    #[error("context has no namespace attached")]
    NoNamespace,
    /// A committed snapshot has no mounts of its own.
    #[error("snapshot {key:?} is not active and not a view")]
    NotMountable {
        /// Its name.
        key: String,
    },
    /// Neither key nor name may be empty.
    #[error("{field} is empty")]
    Empty {
        /// The field of the request.
        field: &'static str,
    },
    /// A file or directory of the snapshot cannot be used.
    #[error("cannot {action} of snapshot {id}")]
    Files {
        /// What was attempted.
        action: &'static str,
        /// The snapshot.
        id: SnapshotId,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The folder of all snapshots cannot be used.
    #[error("cannot read {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The work was lost: a defect of ours.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why the snapshotter could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its records cannot be opened.
    #[error(transparent)]
    Records(#[from] OpenError),
    /// The machine cannot do what plain snapshots need.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A folder cannot be made or read.
    #[error("cannot use {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// What the snapshotter is made with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Overlay mounts need `userxattr`.
    pub userxattr: bool,
    /// Do not try an overlay mount at start.
    pub skip_support_check: bool,
}

/// The snapshots of one root.
#[derive(Clone, Debug)]
pub struct Snapshotter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directories: Directories,
    metadata: Metadata,
    cpu: Arc<Cpu>,
    options: Options,
    /// One clean-up at a time.
    cleaning: tokio::sync::Semaphore,
}

impl Snapshotter {
    /// Opens `<root>/snapshotter`, after checking that overlay mounts work there.
    pub fn open(root: &Path, cpu: Arc<Cpu>, options: Options) -> Result<Self, StartError> {
        let state = root.join("snapshotter");
        let folder = |source| StartError::Folder {
            path: state.clone(),
            source,
        };
        let directories = Directories::new(&state);
        directories.prepare().map_err(folder)?;
        if options.skip_support_check {
            warn!("skipped snapshotter is supported check");
        } else {
            overlay::check_overlay(&state)?;
            debug!("snapshotter is supported");
        }
        overlay::check_directory_types(&state)?;
        let used = directories.highest().map_err(folder)?;
        let metadata = Metadata::open(&directories.database(), used)?;
        for (path, error) in restore::detach_all(&directories.all()).map_err(folder)? {
            let (path, error) = (path.display().to_string(), error.to_string());
            warn!(path, error, "cannot detach the mount of an earlier process");
        }
        let cleaning = tokio::sync::Semaphore::new(1);
        let shared = Shared {
            directories,
            metadata,
            cpu,
            options,
            cleaning,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Runs `work` where it may wait for the disk. It is finished even if the caller goes away.
    async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&Shared) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let shared = Arc::clone(&self.shared);
        self.shared.cpu.run(lane, move || work(&shared)).await?
    }

    /// The record of a snapshot.
    pub async fn stat(&self, name: String) -> Result<Info, SnapshotError> {
        self.run(Lane::Now, move |shared| {
            let record = shared.metadata.get(&name)?;
            Ok(Info { name, record })
        })
        .await
    }

    /// Changes the labels of a snapshot.
    pub async fn update(
        &self,
        name: String,
        labels: Labels,
        which: LabelUpdate,
    ) -> Result<Info, SnapshotError> {
        self.run(Lane::Now, move |shared| {
            let record = shared.metadata.update(&name, &labels, &which)?;
            Ok(Info { name, record })
        })
        .await
    }

    /// The snapshots that `wanted` accepts.
    pub async fn list(
        &self,
        wanted: impl Fn(&Info) -> bool + Send + 'static,
    ) -> Result<Vec<Info>, SnapshotError> {
        self.run(Lane::Now, move |shared| Ok(shared.metadata.list(wanted)?))
            .await
    }

    /// What a snapshot takes: measured now while it is active, else as it was when it was committed.
    pub async fn usage(&self, key: String) -> Result<Usage, SnapshotError> {
        self.run(Lane::Background, move |shared| {
            let record = shared.metadata.get(&key)?;
            match record.kind {
                Kind::Active => shared.measure(&record),
                Kind::View | Kind::Committed => Ok(record.usage),
            }
        })
        .await
    }

    /// The mounts of an active snapshot or a view.
    pub async fn mounts(&self, key: String) -> Result<Vec<Mount>, SnapshotError> {
        let chain = self
            .run(Lane::Now, move |shared| Ok(shared.metadata.chain(&key)?))
            .await?;
        self.mounts_of(&chain)
    }

    /// Makes a read-only snapshot on a committed one.
    pub async fn view(
        &self,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let chain = self.create(Kind::View, key, parent, labels).await?;
        self.mounts_of(&chain)
    }

    /// Makes a writable snapshot on a committed one, or the layer that the labels name: that is answered with
    /// [`SnapshotError::TargetExists`], containerd's signal that there is nothing left to unpack.
    pub async fn prepare(
        &self,
        namespace: Option<String>,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let target = labels::value(&labels, labels::TARGET).map(str::to_owned);
        let known = match target.clone() {
            Some(target) => self.is_known(target, parent.clone()).await?,
            None => false,
        };
        let facts = Facts {
            target: target.as_deref(),
            namespace: namespace.as_deref(),
            known,
            named: labels::names_a_layer(&labels),
            able: false,
            size: labels::value(&labels, labels::LAYER_SIZE).and_then(|size| size.parse().ok()),
            min_layer_size: 0,
        };
        match plan::first(&facts) {
            First::Plain | First::Lazy | First::Small => {}
            First::NoNamespace => return Err(SnapshotError::NoNamespace),
            First::Known => {
                return Err(SnapshotError::TargetExists {
                    target: target.unwrap_or_default(),
                });
            }
            First::Defer(why) => verdict::deferred(&key, parent.as_deref(), &why.to_string()),
        }
        let chain = self.create(Kind::Active, key, parent, labels).await?;
        self.mounts_of(&chain)
    }

    /// Whether a layer is committed under this name, on this parent.
    async fn is_known(
        &self,
        target: String,
        parent: Option<String>,
    ) -> Result<bool, SnapshotError> {
        self.run(Lane::Now, move |shared| {
            let found = shared.metadata.find(&target)?;
            Ok(found.is_some_and(|found| found.kind == Kind::Committed && found.parent == parent))
        })
        .await
    }

    async fn create(
        &self,
        kind: Kind,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Info>, SnapshotError> {
        if key.is_empty() {
            return Err(SnapshotError::Empty { field: "key" });
        }
        self.run(Lane::Now, move |shared| {
            shared.create(kind, &key, parent.as_deref(), labels)
        })
        .await
    }

    /// The mounts of the first snapshot of a chain.
    fn mounts_of(&self, chain: &[Info]) -> Result<Vec<Mount>, SnapshotError> {
        let [top, parents @ ..] = chain else {
            return Ok(Vec::new());
        };
        if top.record.kind == Kind::Committed {
            return Err(SnapshotError::NotMountable {
                key: top.name.clone(),
            });
        }
        let parents: Vec<_> = parents.iter().map(|info| info.record.id).collect();
        let Shared {
            directories,
            options,
            ..
        } = &*self.shared;
        let Record { kind, id, .. } = top.record;
        Ok(vec![overlay::mount_of(
            directories,
            kind,
            id,
            &parents,
            options.userxattr,
        )])
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`.
    pub async fn commit(
        &self,
        name: String,
        key: String,
        labels: Labels,
        parent: Option<String>,
    ) -> Result<(), SnapshotError> {
        if name.is_empty() {
            return Err(SnapshotError::Empty { field: "name" });
        }
        let measured = key.clone();
        // Measured before the transaction and on the lane of long work.
        let (usage, owner) = self
            .run(Lane::Background, move |shared| {
                let record = shared.metadata.get(&measured)?;
                Ok((shared.measure(&record)?, shared.owner(&record)?))
            })
            .await?;
        self.run(Lane::Now, move |shared| {
            let commit = Commit {
                labels,
                parent,
                usage,
                owner: Some(owner),
                layer: None,
            };
            shared.metadata.commit(&key, &name, commit)?;
            Ok(())
        })
        .await
    }

    /// Forgets a snapshot. Its files go with the next [`Snapshotter::cleanup`].
    pub async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        self.run(Lane::Now, move |shared| {
            shared.metadata.remove(&key)?;
            Ok(())
        })
        .await
    }

    /// Deletes what belongs to no snapshot any more. What cannot be deleted is logged and tried again next time.
    pub async fn cleanup(&self) -> Result<(), SnapshotError> {
        let Ok(_permit) = self.shared.cleaning.acquire().await else {
            // Never closed.
            return Ok(());
        };
        self.run(Lane::Disk, Shared::delete_abandoned).await
    }

    /// Takes all layers off their mount points. Records and directories stay.
    pub async fn unmount_all(&self) -> Result<(), SnapshotError> {
        self.run(Lane::Disk, |shared| {
            let path = shared.directories.all();
            let failed = restore::detach_all(&path)
                .map_err(|source| SnapshotError::Folder { path, source })?;
            for (path, error) in failed {
                let (path, error) = (path.display().to_string(), error.to_string());
                warn!(path, error, "failed to unmount");
            }
            Ok(())
        })
        .await
    }
}

impl Shared {
    /// Directory first, then the record; see the module.
    fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Info>, SnapshotError> {
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
        let owner = below
            .first()
            .map(|below| below.record.owner)
            .unwrap_or_default();
        let id = self.metadata.reserve_id();
        let _busy = self.directories.busy(id);
        let files = |action| move |source| SnapshotError::Files { action, id, source };
        self.directories
            .create(id, kind, owner)
            .map_err(files("make the directory"))?;
        match self.metadata.create(id, kind, key, parent, labels) {
            Ok(record) => {
                let mut chain = vec![Info {
                    name: key.to_owned(),
                    record,
                }];
                chain.extend(below);
                Ok(chain)
            }
            Err(error) => {
                self.delete_directory(id);
                Err(error.into())
            }
        }
    }

    /// What an active snapshot takes. Only those whose `fs` is a directory are ever active.
    fn measure(&self, record: &Record) -> Result<Usage, SnapshotError> {
        let id = record.id;
        self.directories
            .usage(id)
            .map_err(|source| SnapshotError::Files {
                action: "measure the files",
                id,
                source,
            })
    }

    fn owner(&self, record: &Record) -> Result<metadata::Owner, SnapshotError> {
        let id = record.id;
        self.directories
            .owner(id)
            .map_err(|source| SnapshotError::Files {
                action: "read the owner",
                id,
                source,
            })
    }

    fn delete_directory(&self, id: SnapshotId) {
        if let Err(error) = self.directories.delete(id) {
            let (id, error) = (id.to_string(), error.to_string());
            warn!(id, error, "failed to remove directory");
        }
    }

    fn delete_abandoned(&self) -> Result<(), SnapshotError> {
        let path = self.directories.all();
        let folder = |source| SnapshotError::Folder {
            path: path.clone(),
            source,
        };
        let idle = self.directories.idle().map_err(folder)?;
        let kept: BTreeSet<_> = self.metadata.ids()?;
        let mounted = restore::mounted(&path).map_err(folder)?;
        for (owner, directory) in idle {
            if owner.is_some_and(|id| kept.contains(&id)) {
                continue;
            }
            let fs = directory.join("fs");
            let detached = mounted
                .iter()
                .filter(|path| **path == fs)
                .try_for_each(|path| restore::detach(path));
            if let Err(error) = detached.and_then(|()| directories::remove_tree(&directory)) {
                let (path, error) = (directory.display().to_string(), error.to_string());
                warn!(path, error, "failed to remove directory");
            }
        }
        Ok(())
    }
}
