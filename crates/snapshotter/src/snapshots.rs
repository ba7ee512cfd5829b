//! Snapshots: prepare, view, mounts, commit, remove, usage, walk, cleanup, independent of gRPC.
//!
//! `image::plan` decides, `metadata` stores the records, `directories` and `overlay` are the files and
//! mounts, `create`, `mounts` and `measure` use them. Layers are handled by `image`.
//!
//! A creation makes the directory before the record, so whatever has a record is usable. `cleanup`
//! deletes directories without a record; their numbers are never reused. A removal deletes the
//! record, then `cleanup` removes mount and directory. A request that fails, or whose caller is
//! gone, removes its own record. containerd calls commit, remove, stat and update inside its own
//! transactions, so they never call containerd, the network or one of our mounts.

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
mod record;
mod room;
mod status;
mod support;
mod trust;
mod verdicts;

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::directories::Directories;
pub use self::error::{SnapshotError, StartError};
pub use self::late::Late;
use self::layer::LayerWanted;
use self::metadata::{
    Commit, Info, Kind, LabelUpdate, Labels, Metadata, MetadataError, Record, SnapshotId,
};
pub use self::overlay::{Mount, needs_userxattr};
pub use self::support::Unsupported;
use crate::cpu::{Cpu, Lane, Lost};
use crate::image::plan::{self, Facts, Step};
use crate::image::verdict::Subject;
use crate::image::{Rules, labels};
use crate::mount;
use crate::mount::thread::MountThread;
use crate::store::LayerKey;
use crate::sync::Arc;

/// How long the end of the process waits for pending changes of the records.
const LAST_SYNC: Duration = Duration::from_secs(10);

/// Options of the snapshotter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether overlay mounts need `userxattr`.
    pub userxattr: bool,
    /// Whether to skip the trial overlay mount at start.
    pub skip_support_check: bool,
    /// How to decide about layers.
    pub rules: Rules,
    /// Whether lazily loaded layers have no disk usage, as in the reference.
    pub zero_usage: bool,
    /// Whether containers start only if all of their layers are verified.
    pub verified_only: bool,
}

/// What the snapshotter depends on.
#[derive(Debug)]
pub struct Parts {
    /// Thread pool for work that waits for the disk.
    pub cpu: Arc<Cpu>,
    /// Mount thread for unmounts.
    pub mounts: MountThread,
    /// The layers. Until they are available, every layer is left to containerd.
    pub images: Late,
}

/// The caller that waits for the answer to a request.
#[derive(Clone, Debug)]
struct Caller(CancellationToken);

impl Caller {
    /// Whether the caller is gone. What the request makes then belongs to nobody.
    fn is_gone(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// The snapshots of one state directory.
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
    /// Limits cleanup to one at a time.
    cleaning: tokio::sync::Semaphore,
    /// Limits measuring to one file tree at a time: it may take long, and no container waits for
    /// it.
    measuring: tokio::sync::Semaphore,
    /// Layers that are being prepared.
    tasks: TaskTracker,
    /// What became of images.
    verdicts: verdicts::Verdicts,
}

impl Snapshotter {
    /// Opens `<root>/snapshotter` after checking that overlay mounts work there. `root` is
    /// canonical.
    pub fn open(root: &Path, parts: Parts, options: Options) -> Result<Self, StartError> {
        let state = root.join("snapshotter");
        let folder = |source| StartError::Folder {
            path: state.clone(),
            source,
        };
        let directories = Directories::new(&state);
        directories.prepare().map_err(folder)?;
        // The database is created after the checks, so if it exists, an earlier start passed them.
        let known = directories.database().exists();
        support::sweep(&state);
        if options.skip_support_check {
            warn!("skipped snapshotter is supported check");
        } else {
            support::unless_full(support::check_overlay(&state), known)?;
            debug!("snapshotter is supported");
        }
        support::unless_full(support::check_directory_types(&state), known)?;
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
            verdicts: verdicts::Verdicts::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Whether the reference implementation runs on this state directory.
    #[must_use]
    pub fn is_reference_running(root: &Path) -> bool {
        let directories = Directories::new(&root.join("snapshotter"));
        metadata::is_reference_running(&directories.database())
    }

    /// Runs `work` on a thread that may wait for the disk. It finishes even if the caller goes
    /// away.
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

    /// Runs work to completion even if the caller goes away, and tells it whether that happened.
    async fn owned<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Caller) -> F,
    ) -> Result<T, SnapshotError>
    where
        F: Future<Output = Result<T, SnapshotError>> + Send + 'static,
    {
        let gone = CancellationToken::new();
        let work = work(Caller(gone.clone()));
        let here = gone.drop_guard();
        let done = self.shared.tasks.spawn(work).await;
        drop(here.disarm());
        done.map_err(|error| SnapshotError::Lost(Lost::Panicked(error.to_string())))?
    }

    /// Returns the record of a snapshot.
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

    /// Returns the snapshots that `wanted` accepts.
    pub async fn list(
        &self,
        wanted: impl Fn(&Info) -> bool + Send + 'static,
    ) -> Result<Vec<Info>, SnapshotError> {
        self.run(Lane::Files, move |shared| {
            Ok(shared.metadata.list(wanted)?)
        })
        .await
    }

    /// Returns the mounts of an active snapshot or a view.
    pub async fn mounts(&self, key: String) -> Result<Vec<Mount>, SnapshotError> {
        let chain = self
            .run(Lane::Files, move |shared| {
                Ok(shared.metadata.chain(&key)?)
            })
            .await?;
        self.mounts_of(&chain).await
    }

    /// Creates a read-only snapshot on a committed one.
    pub async fn view(
        &self,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.plain(Kind::View, key, parent, labels).await
    }

    /// Creates a writable snapshot on a committed one, or mounts the layer that the labels name. A
    /// mounted layer is answered with [`SnapshotError::TargetExists`], which tells containerd not
    /// to unpack it.
    pub async fn prepare(
        &self,
        namespace: Option<String>,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let mut facts = Facts::of(namespace.as_deref(), &labels);
        let target = labels::value(&labels, labels::TARGET).unwrap_or_default();
        let target = target.to_owned();
        if facts.target && facts.namespace {
            facts.known = self.is_known(target.clone(), parent.clone()).await?;
            facts.able = facts.known || self.shared.parts.images.wanted().await.is_some();
        }
        let decision = plan::decide(&facts, &self.shared.options.rules);
        let wanted = LayerWanted {
            target,
            namespace: namespace.unwrap_or_default(),
            subject: Subject {
                key,
                parent: parent.unwrap_or_default(),
                layer: labels::value(&labels, labels::LAYER_DIGEST)
                    .unwrap_or_default()
                    .to_owned(),
            },
            labels,
            facts,
        };
        match decision.step {
            Step::Plain => wanted.plain(self).await,
            Step::NoNamespace => Err(SnapshotError::NoNamespace),
            Step::Known => Err(SnapshotError::TargetExists {
                target: wanted.target,
            }),
            Step::Defer => {
                self.conclude(&wanted, &decision, &wanted.why());
                wanted.plain(self).await
            }
            Step::Refuse => {
                let why = wanted.why();
                self.conclude(&wanted, &decision, &why);
                Err(SnapshotError::Strict { why })
            }
            Step::Ask | Step::Lazy | Step::Whole | Step::Commit => {
                let snapshotter = self.clone();
                self.owned(|caller| async move { snapshotter.prepare_layer(wanted, caller).await })
                    .await
            }
        }
    }

    /// Whether a layer is committed under this name on this parent.
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
        // Measure before the transaction, because containerd waits inside one of its own.
        let (usage, owner) = self
            .run(Lane::Files, move |shared| {
                let record = shared.metadata.get(&measured)?;
                // The files of other snapshots may be one of our mounts.
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

    /// Removes the record of a snapshot. The next [`Snapshotter::cleanup`] removes its files.
    pub async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        self.shared.metadata.remove(&key).await?;
        Ok(())
    }

    /// Writes pending changes to disk before the process ends. Waits for a limited time only.
    pub async fn sync(&self) {
        let synced = tokio::time::timeout(LAST_SYNC, self.shared.metadata.sync());
        match synced.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "the last snapshot changes may be lost");
            }
            Err(_) => warn!("the disk does not respond, ending without the last snapshot changes"),
        }
    }

    /// Returns the layers that snapshots use.
    pub async fn used_layers(&self) -> Result<Vec<LayerKey>, SnapshotError> {
        self.run(Lane::Files, Shared::used_layers).await
    }

    /// Unmounts all layers; records and directories stay. The kernel waits for unanswered READs, so
    /// the caller must stop the device first.
    pub async fn unmount_all(&self) -> Result<(), SnapshotError> {
        let all = self.shared.directories.all();
        mount::detach_all_under(&self.shared.parts.mounts, &all).await?;
        Ok(())
    }
}

impl Shared {
    /// Converts an I/O error of a snapshot's files.
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
