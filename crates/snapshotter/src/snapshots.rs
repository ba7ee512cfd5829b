//! Snapshots: prepare, view, mounts, commit, remove, usage, walk, cleanup.
//!
//! Purpose: what containerd asks of a snapshotter, without knowing gRPC. Parts: `plan` decides, `metadata`
//! remembers, `directories` and `overlay` are the files and the mounts, `create`, `mounts` and `measure` what is done with
//! them; layers are the business of `image`.
//!
//! Order of a creation: the directory, then the record, so that whatever has a record is usable; a directory
//! without a record is found and deleted by `cleanup`, and its number is never used again. Order of a removal:
//! the record, then (in `cleanup`, when it is gone for good) mount and directory. A request that fails, or whose caller
//! is gone, takes its own record with it.
//!
//! Commit, remove, stat and update are called by containerd from inside its own transactions. They never call
//! containerd, the network or a mount of ours. What was fetched for a client that went away serves the next one.

mod cleanup;
mod create;
pub(crate) mod directories;
mod error;
pub(crate) mod ids;
pub(crate) mod late;
mod layer;
mod measure;
pub mod metadata;
mod mounts;
pub(crate) mod overlay;
pub(crate) mod plan;
mod record;
mod room;
mod trust;

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::directories::Directories;
pub use self::error::{SnapshotError, StartError};
pub use self::late::Late;
use self::layer::LayerWanted;
use self::metadata::{
    Commit, Info, Kind, LabelUpdate, Labels, Metadata, MetadataError, Record, SnapshotId,
};
pub use self::overlay::{Mount, Unsupported, needs_userxattr};
use self::plan::{Facts, First};
use crate::cpu::{Cpu, Lane, Lost};
use crate::image::labels;
use crate::image::verdict::Subject;
use crate::mount;
use crate::mount::thread::MountThread;
use crate::store::LayerKey;
use crate::sync::{Arc, Weak};

/// How long the end of the process waits for the records.
const LAST_SYNC: Duration = Duration::from_secs(10);

/// How the snapshotter behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Overlay mounts need `userxattr`.
    pub userxattr: bool,
    /// Do not try an overlay mount at start.
    pub skip_support_check: bool,
    /// Layers smaller than this many bytes are fetched whole; 0 is off.
    pub min_layer_size: u64,
    /// Containers start only when all of their layers are verified.
    pub verified_only: bool,
}

/// What the snapshotter stands on.
#[derive(Debug)]
pub struct Parts {
    /// Where it waits for the disk.
    pub cpu: Arc<Cpu>,
    /// Where it unmounts.
    pub mounts: MountThread,
    /// Where layers come from; until they are there all are left to containerd.
    pub images: Late,
}

/// Who waits for the answer to a request.
#[derive(Debug)]
struct Caller(Weak<()>);

impl Caller {
    /// Whether nobody waits any more. What is made then belongs to nobody.
    fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
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
    parts: Parts,
    options: Options,
    /// One clean-up at a time.
    cleaning: tokio::sync::Semaphore,
    /// One file tree is measured at a time: nobody waits for it, and it may take long.
    measuring: tokio::sync::Semaphore,
    /// Layers that are being prepared.
    tasks: TaskTracker,
}

impl Snapshotter {
    /// Opens `<root>/snapshotter`, after checking that overlay mounts work there. `root` is canonical.
    pub fn open(root: &Path, parts: Parts, options: Options) -> Result<Self, StartError> {
        let state = root.join("snapshotter");
        let folder = |source| StartError::Folder {
            path: state.clone(),
            source,
        };
        let directories = Directories::new(&state);
        directories.prepare().map_err(folder)?;
        // Records are made after the checks only.
        let known = directories.database().exists();
        if options.skip_support_check {
            warn!("skipped snapshotter is supported check");
        } else {
            overlay::unless_full(overlay::check_overlay(&state), known)?;
            debug!("snapshotter is supported");
        }
        overlay::unless_full(overlay::check_directory_types(&state), known)?;
        let used = directories.highest().map_err(folder)?;
        let metadata = Metadata::open(&directories.database(), used)?;
        let cleaning = tokio::sync::Semaphore::new(1);
        let measuring = tokio::sync::Semaphore::new(1);
        let tasks = TaskTracker::new();
        let shared = Shared {
            directories,
            metadata,
            parts,
            options,
            cleaning,
            measuring,
            tasks,
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
        self.shared
            .parts
            .cpu
            .run(lane, move || work(&shared))
            .await?
    }

    /// Does work to its end, even if the caller goes away, and tells it whether that happened.
    async fn owned<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Caller) -> F,
    ) -> Result<T, SnapshotError>
    where
        F: Future<Output = Result<T, SnapshotError>> + Send + 'static,
    {
        let here = Arc::new(());
        let work = work(Caller(Arc::downgrade(&here)));
        let done = self.shared.tasks.spawn(work).await;
        drop(here);
        done.map_err(|error| SnapshotError::Lost(Lost::Panicked(error.to_string())))?
    }

    /// The record of a snapshot.
    pub async fn stat(&self, name: String) -> Result<Info, SnapshotError> {
        self.run(Lane::Files, move |shared| {
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
        let record = self.shared.metadata.update(&name, &labels, &which).await?;
        Ok(Info { name, record })
    }

    /// The snapshots that `wanted` accepts.
    pub async fn list(
        &self,
        wanted: impl Fn(&Info) -> bool + Send + 'static,
    ) -> Result<Vec<Info>, SnapshotError> {
        self.run(Lane::Files, move |shared| {
            Ok(shared.metadata.list(wanted)?)
        })
        .await
    }

    /// The mounts of an active snapshot or a view.
    pub async fn mounts(&self, key: String) -> Result<Vec<Mount>, SnapshotError> {
        let chain = self
            .run(Lane::Files, move |shared| {
                Ok(shared.metadata.chain(&key)?)
            })
            .await?;
        self.mounts_of(&chain).await
    }

    /// Makes a read-only snapshot on a committed one.
    pub async fn view(
        &self,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.plain(Kind::View, key, parent, labels).await
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
        let Some(target) = labels::value(&labels, labels::TARGET).map(str::to_owned) else {
            return self.plain(Kind::Active, key, parent, labels).await;
        };
        let known = self.is_known(target.clone(), parent.clone()).await?;
        let size = labels::value(&labels, labels::LAYER_SIZE).and_then(|size| size.parse().ok());
        let facts = Facts {
            target: Some(&target),
            namespace: namespace.as_deref(),
            known,
            named: labels::names_a_layer(&labels),
            able: self.shared.parts.images.wanted().await.is_some(),
            size,
            min_layer_size: self.shared.options.min_layer_size,
        };
        let first = plan::first(&facts);
        let wanted = LayerWanted {
            target,
            namespace: namespace.unwrap_or_default(),
            subject: Subject {
                key,
                parent: parent.unwrap_or_default(),
            },
            labels,
            small: first == First::Small,
        };
        match first {
            First::NoNamespace => Err(SnapshotError::NoNamespace),
            First::Known => Err(SnapshotError::TargetExists {
                target: wanted.target,
            }),
            First::Plain => wanted.plain(self).await,
            First::Defer(why) => {
                wanted.subject.deferred(&why.to_string());
                wanted.plain(self).await
            }
            First::Lazy | First::Small => {
                let snapshotter = self.clone();
                self.owned(|caller| async move { snapshotter.prepare_layer(wanted, caller).await })
                    .await
            }
        }
    }

    /// Whether a layer is committed under this name, on this parent.
    async fn is_known(
        &self,
        target: String,
        parent: Option<String>,
    ) -> Result<bool, SnapshotError> {
        self.run(Lane::Files, move |shared| {
            Ok(shared.known(&target, parent.as_deref())?.is_some())
        })
        .await
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
        // Measured before the transaction. containerd waits inside one of its own.
        let (usage, owner) = self
            .run(Lane::Files, move |shared| {
                let record = shared.metadata.get(&measured)?;
                // Whatever else it is, its files may be a mount of ours.
                if record.kind != Kind::Active || shared.directories.is_busy(record.id) {
                    return Err(MetadataError::NotActive { name: measured }.into());
                }
                Ok((shared.measure(&record)?, shared.owner(&record)?))
            })
            .await?;
        let commit = Commit {
            labels,
            parent,
            usage,
            owner: Some(owner),
            layer: None,
        };
        self.shared.metadata.commit(&key, &name, commit).await?;
        Ok(())
    }

    /// Forgets a snapshot. Its files go with the next [`Snapshotter::cleanup`].
    pub async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        self.shared.metadata.remove(&key).await?;
        Ok(())
    }

    /// Makes what was answered last, before the process ends. A disk that does not answer is not waited for.
    pub async fn sync(&self) {
        let synced = tokio::time::timeout(LAST_SYNC, self.shared.metadata.sync());
        match synced.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "the last changes of snapshots may be lost");
            }
            Err(_) => warn!("the disk does not take the last changes of snapshots; going without"),
        }
    }

    /// The layers that snapshots use.
    pub async fn used_layers(&self) -> Result<Vec<LayerKey>, SnapshotError> {
        self.run(Lane::Files, Shared::used_layers).await
    }

    /// Takes all layers off their mount points; records and directories stay. The kernel waits for READs that are not
    /// answered, so the device is stopped before.
    pub async fn unmount_all(&self) -> Result<(), SnapshotError> {
        let all = self.shared.directories.all();
        mount::detach_all_under(&self.shared.parts.mounts, &all).await?;
        Ok(())
    }
}

impl Shared {
    /// What a failure of a snapshot's files means.
    fn files(&self, action: &'static str, id: SnapshotId, source: io::Error) -> SnapshotError {
        if metadata::reserve::is_full(&source) {
            let path = self.directories.all();
            return SnapshotError::Full {
                action,
                id,
                path,
                source,
            };
        }
        SnapshotError::Files { action, id, source }
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

    fn used_layers(&self) -> Result<Vec<LayerKey>, SnapshotError> {
        let all = self.metadata.list(|info| info.record.layer.is_some())?;
        Ok(all
            .into_iter()
            .filter_map(|info| Some(info.record.layer?.layer))
            .collect())
    }
}
