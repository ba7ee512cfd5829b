//! Images: finds each image's index once, then opens and mounts its layers (`Images::prepare`).
//!
//! ```text
//! ask   (`discover`, `content`) manifest ─▶ index ─▶ zTOC of the layer; prepares others (`ahead`)
//! open  (`open`) zTOC ─▶ lazy layer, or one pass over the blob ─▶ whole layer, others beside
//!       (`whole`)
//! show  (`show`, `mounts`) entries + parents ─▶ tree ─▶ meta ─▶ mount, later moved to `data`
//! ```
//! "No index" is cached for a minute; an unreachable registry is not cached. Work continues after
//! its client disconnects, and the result serves the next request. After a restart,
//! `Images::ensure` mounts layers from the store on first use, without registry or credentials.

mod ahead;
mod clients;
mod content;
mod discover;
mod figures;
mod holds;
pub mod labels;
mod layer_use;
mod line;
mod mounts;
mod name;
mod open;
pub(crate) mod plan;
mod prefetch;
mod pulls;
mod replay;
mod reserved;
mod restore;
mod room;
mod scrub;
mod show;
mod source;
mod starts;
mod trust;
pub mod verdict;
mod whole;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use soci_oci::digest::Digest;
use soci_oci::manifest::Manifest;
use soci_registry::Registry;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use self::clients::Clients;
pub use self::content::Content;
use self::content::ContentError;
use self::discover::Discovery;
pub use self::discover::Modes;
pub(crate) use self::discover::explain;
use self::holds::{Hold, Holds};
pub use self::layer_use::LayerUse;
pub use self::mounts::Mounts;
use self::name::ImageKey;
pub(crate) use self::name::{ImageName, layer_of};
use self::open::Opened;
use self::plan::{Facts, Tried};
pub use self::plan::{Parallel, Rules};
use self::pulls::Pulls;
use self::reserved::Reserved;
pub use self::restore::RestoreError;
pub(crate) use self::restore::Wanted;
pub use self::starts::StartsError;
pub(crate) use self::trust::Standing;
use self::verdict::{Subject, Way};
use crate::cpu::{Cpu, Lane};
use crate::layer::{Expected, Layer, Layers};
use crate::metrics::{self, Timed};
use crate::mount::MountError;
use crate::store::LayerKey;
use crate::store::space::Taken;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, OnceLock};

/// How long to remember that an image has no index. Longer than a pull of its layers takes, and
/// short enough that an index created later is soon found.
const NO_INDEX_LASTS: Duration = Duration::from_secs(60);
/// How long to remember anything else. Prefetched zTOCs that are not used take disk space until
/// then.
const PULL_LASTS: Duration = Duration::from_secs(3600);
/// How long to keep the bytes of a complete layer in the page cache for containers that have not
/// read them yet.
const SETTLE: Duration = Duration::from_secs(20);
/// Maximum number of images remembered. Each takes a few kilobytes.
const MOST_IMAGES: usize = 256;

/// What is known about one image.
#[derive(Debug)]
struct Image {
    manifest: OnceCell<Manifest>,
    discovery: OnceCell<Discovery>,
    /// SHA-256 of the tar of each layer, from the configuration.
    diff_ids: OnceCell<Vec<Digest>>,
    /// Who pulls the image.
    clients: Clients,
    /// Each zTOC is downloaded at most once at a time.
    ztocs: Mutex<HashMap<Digest, Arc<OnceCell<Bytes>>>>,
    /// True once a layer was mounted.
    mounted: AtomicBool,
    /// True once the other layers are being prepared ahead.
    ahead: AtomicBool,
    /// The layers that are prepared or were requested.
    ready: Mutex<ahead::Ready>,
    /// True once the recorded start is being read.
    planned: AtomicBool,
    /// The recorded start.
    plan: OnceLock<Arc<replay::Plan>>,
    /// Notified when a document or part of a zTOC arrives.
    came: Notify,
    /// Set when the registry was asked for a layer and did not refuse.
    tried: OnceCell<()>,
    since: Instant,
}

impl Image {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            manifest: OnceCell::new(),
            discovery: OnceCell::new(),
            diff_ids: OnceCell::new(),
            clients: Clients::default(),
            ztocs: Mutex::default(),
            mounted: AtomicBool::new(false),
            ahead: AtomicBool::new(false),
            ready: Mutex::default(),
            planned: AtomicBool::new(false),
            plan: OnceLock::new(),
            came: Notify::new(),
            tried: OnceCell::new(),
            since: Instant::now(),
        })
    }

    /// Whether the recorded start is already being read. If not, it is from now on.
    fn plan_begins(&self) -> bool {
        self.planned.swap(true, Ordering::Relaxed)
    }

    /// Expires "no index" sooner than other results, but not while a pull goes on.
    fn is_stale(&self) -> bool {
        if self.clients.are_waiting() || self.ready.lock().is_ahead() {
            return false;
        }
        let lasts = match self.discovery.get() {
            Some(Discovery::None(_) | Discovery::Unusable(_)) => NO_INDEX_LASTS,
            Some(Discovery::Found(_)) | None => PULL_LASTS,
        };
        self.since.elapsed() > lasts
    }
}

/// A parent of a layer. Provides attributes of directories that the layer only implies.
#[derive(Clone, Debug)]
pub(crate) enum Parent {
    /// A layer in the store.
    Layer(LayerUse),
    /// A directory that containerd unpacked.
    Directory(PathBuf),
}

/// The number of `parents` that show the same image of the same layer.
fn copies_below(parents: &[Parent], layer: LayerKey, patch: &str) -> usize {
    let same = |parent: &&Parent| match parent {
        Parent::Layer(used) => used.layer == layer && used.patch == patch,
        Parent::Directory(_) => false,
    };
    parents.iter().filter(same).count()
}

/// A request to mount a layer.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) image: ImageName,
    pub(crate) layer: Digest,
    /// Mount point.
    pub(crate) at: PathBuf,
    /// The nearest parent first.
    pub(crate) parents: Vec<Parent>,
    /// What is known about the layer's tar.
    pub(crate) expected: Expected,
    pub(crate) subject: Subject,
    /// What is known about the request.
    pub(crate) facts: Facts,
    /// How to decide.
    pub(crate) rules: Rules,
    /// Cancelled when nobody waits for the answer any longer.
    pub(crate) gone: CancellationToken,
}

/// The result of a request.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// The layer is mounted.
    Mounted(Box<Mounted>),
    /// The layer is not mounted.
    Left {
        /// The reason.
        why: String,
        /// What is known now.
        facts: Facts,
    },
}

/// A mounted layer.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) layer: LayerUse,
    /// How the layer was provided.
    pub(crate) way: Way,
    /// The reason.
    pub(crate) why: String,
    /// What is known now.
    pub(crate) facts: Facts,
    /// Keeps the layer until a record names its user.
    pub(crate) hold: Hold,
}

/// Settings of image handling.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Enabled ways to discover an index.
    pub modes: Modes,
    /// Timeout of a request for an index and zTOC.
    pub patience: Duration,
    /// Number of layers prepared ahead in parallel.
    pub ahead: usize,
    /// Download bytes in the background that no container has read.
    pub background: bool,
    /// Download the spans that prefetch artifacts list before the rest.
    pub prefetch: bool,
    /// Download first what a recorded start read.
    pub replay: bool,
    /// Layers are mounted in a user namespace.
    pub user_namespace: bool,
    /// Prove a layer as soon as it is complete, because containers wait for it.
    pub proves_at_once: bool,
}

/// The components that images use.
#[derive(Debug)]
pub struct Parts {
    /// Open layers.
    pub layers: Arc<Layers>,
    /// Layer mounts.
    pub mounts: Mounts,
    /// Documents and zTOCs.
    pub content: Content,
    /// Client that downloads layers.
    pub registry: Registry,
    /// Runs the construction of trees.
    pub cpu: Arc<Cpu>,
}

/// Records how long an operation on a layer took.
fn took(what: Timed, layer: &Digest, began: Instant) {
    let operations = &metrics::global().operations;
    operations.took(what, layer, began.elapsed());
}

#[derive(Debug)]
struct Shared {
    parts: Parts,
    options: Options,
    images: Mutex<HashMap<ImageKey, Arc<Image>>>,
    holds: Holds,
    pulls: Pulls,
    reserved: Reserved,
    /// Serializes the construction of images of one layer, by layer number.
    showing: Mutex<HashMap<u64, Arc<Semaphore>>>,
    /// Layers that a task follows to completion.
    watched: Mutex<BTreeSet<u64>>,
    ahead: Arc<Semaphore>,
    /// Recorded starts that were of no use.
    ignored: replay::Ignored,
    tasks: TaskTracker,
}

/// The images of this node.
#[derive(Clone, Debug)]
pub struct Images(Arc<Shared>);

impl Shared {
    async fn move_to_data(&self, layer: &Arc<Layer>) {
        if let Err(error) = self.parts.mounts.complete(layer).await {
            let (layer, error) = (layer.digest().to_string(), explain(&error));
            warn!(
                layer,
                error, "a complete layer stays on the device: its readers need this daemon"
            );
        }
    }

    /// Closes the files of a layer that is complete, moved to `data`, settled, and proven. The next
    /// user opens them again.
    async fn close(&self, layer: Arc<Layer>) {
        let parts = &self.parts;
        let is_proven = parts.layers.store().proofs().get(&layer.key()).is_some();
        let is_settled = !self.watched.lock().contains(&layer.number().0);
        if is_proven && is_settled && parts.mounts.retire(&layer).await {
            parts.layers.close_unused(layer);
        }
    }

    async fn settle(&self, layer: &Arc<Layer>) {
        if let Err(error) = self.parts.mounts.settle(layer).await {
            let (layer, error) = (layer.digest().to_string(), explain(&error));
            debug!(layer, error, "a layer is cached twice");
        }
    }
}

impl Images {
    /// Creates images that use `parts`.
    pub fn new(parts: Parts, options: Options) -> Self {
        Self(Arc::new(Shared {
            parts,
            options,
            images: Mutex::default(),
            holds: Holds::default(),
            pulls: Pulls::default(),
            reserved: Reserved::default(),
            showing: Mutex::default(),
            watched: Mutex::default(),
            ahead: Arc::new(Semaphore::new(options.ahead.min(Semaphore::MAX_PERMITS))),
            ignored: replay::Ignored::default(),
            tasks: TaskTracker::new(),
        }))
    }

    /// The cached state of an image, or new state.
    fn image(&self, name: &ImageName) -> Arc<Image> {
        let mut images = self.0.images.lock();
        let (key, now) = (name.key(), Instant::now());
        images.retain(|_, image| {
            image.ready.lock().let_go(now);
            !image.is_stale()
        });
        if images.len() >= MOST_IMAGES && !images.contains_key(&key) {
            let oldest = images.iter().min_by_key(|(_, image)| image.since);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                images.remove(&oldest);
            }
        }
        Arc::clone(images.entry(key).or_insert_with(Image::new))
    }

    /// Opens a layer and mounts it, or returns why it is not mounted. The caller decides what
    /// follows from that, and logs it.
    pub(crate) async fn prepare(&self, request: Request) -> Attempt {
        let began = Instant::now();
        let hold = self.0.holds.hold(request.layer).await;
        let image = self.image(&request.image);
        image.ready.lock().asked(request.layer);
        let position = request.parents.len();
        let _client = image.clients.enter(position, request.gone.clone());
        let opened = match self.open(&image, &request).await {
            Ok(opened) => opened,
            Err(left) => return left.into_attempt(&request),
        };
        let Opened {
            layer,
            way,
            why,
            facts,
        } = opened;
        let (done, failed) = match way {
            Way::Lazy => (Tried::Lazy, Tried::NotLazy),
            Way::Whole => (Tried::Whole, Tried::NotWhole),
        };
        let facts = |tried| Facts {
            tried: Some(tried),
            ..facts
        };
        match self.show(&layer, &request.at, &request.parents).await {
            Ok(patch) => {
                debug!(
                    "mount-point" = request.at.display().to_string(),
                    "checking mount point"
                );
                took(Timed::Mount, layer.digest(), began);
                if !image.mounted.swap(true, Ordering::Relaxed) {
                    self.0.parts.layers.image_mounted();
                }
                let layer = LayerUse {
                    layer: layer.key(),
                    patch,
                };
                Attempt::Mounted(Box::new(Mounted {
                    layer,
                    way,
                    why,
                    facts: facts(done),
                    hold,
                }))
            }
            Err(error) => open::Left {
                why: explain(&error),
                facts: facts(failed),
            }
            .into_attempt(&request),
        }
    }

    /// Makes a layer's image and mounts it. Returns the patch of the image.
    async fn show(
        &self,
        layer: &Arc<Layer>,
        at: &Path,
        parents: &[Parent],
    ) -> Result<String, show::ShowError> {
        let (patch, meta) = self.make_meta(layer, parents).await?;
        self.mount_meta(layer, &patch, meta, at, parents).await?;
        Ok(patch)
    }

    /// Makes or finds the image of a layer on these parents. Returns its patch and file.
    async fn make_meta(
        &self,
        layer: &Arc<Layer>,
        parents: &[Parent],
    ) -> Result<(String, PathBuf), show::ShowError> {
        let Shared { parts, options, .. } = &*self.0;
        let _turn = self.turn_to_show(layer).await;
        let below = show::images_below(&parts.layers, parents).await?;
        let of = Arc::clone(layer);
        let user_namespace = options.user_namespace;
        let job = move || show::make_meta(&of, &below, user_namespace);
        let began = Instant::now();
        // Use the lane for files, because a pull waits for this.
        let made = parts.cpu.run(Lane::Files, job).await?;
        took(Timed::MetadataStore, layer.digest(), began);
        made
    }

    /// Waits for a turn to make an image of a layer. Concurrent requests usually need the same
    /// image, which the second one then finds.
    async fn turn_to_show(&self, layer: &Layer) -> Option<OwnedSemaphorePermit> {
        let turn = Arc::clone(
            self.0
                .showing
                .lock()
                .entry(layer.number().0)
                .or_insert_with(|| Arc::new(Semaphore::new(1))),
        );
        // The semaphore is never closed.
        turn.acquire_owned().await.ok()
    }

    /// Mounts an image of a layer and starts its completion.
    async fn mount_meta(
        &self,
        layer: &Arc<Layer>,
        patch: &str,
        meta: PathBuf,
        at: &Path,
        parents: &[Parent],
    ) -> Result<(), MountError> {
        let copy = copies_below(parents, layer.key(), patch);
        let mounts = &self.0.parts.mounts;
        let began = Instant::now();
        mounts.mount(layer, patch, copy, meta, at).await?;
        took(Timed::FuseMount, layer.digest(), began);
        self.0.parts.layers.note_use(&layer.key());
        self.finish_behind(layer);
        Ok(())
    }

    /// Starts completing a layer, in the background if enabled, and moving it to `data` afterwards.
    fn finish_behind(&self, layer: &Arc<Layer>) {
        if !self.0.watched.lock().insert(layer.number().0) {
            return;
        }
        let layers = &self.0.parts.layers;
        if self.0.options.background {
            layers.complete(layer);
        } else {
            layers.complete_when_read(layer);
        }
        self.follow(layer);
    }

    /// Moves a layer to `data` when it is complete, and settles it when the start phase is over.
    fn follow(&self, layer: &Arc<Layer>) {
        let number = layer.number().0;
        let mut completion = layer.completion();
        // Hold only weak references, so that the files of a removed layer close with their last
        // user.
        let (images, layer) = (Arc::downgrade(&self.0), Arc::downgrade(layer));
        self.0.tasks.spawn(async move {
            let done = completion.wait_for(|done| *done).await.is_ok();
            if let (Some(images), Some(layer)) =
                (images.upgrade(), layer.upgrade().filter(|_| done))
            {
                images.move_to_data(&layer).await;
                images.prove_behind(&layer);
            }
            tokio::time::sleep(SETTLE).await;
            let Some(images) = images.upgrade() else {
                return;
            };
            images.watched.lock().remove(&number);
            if let Some(layer) = layer.upgrade().filter(|layer| layer.is_complete()) {
                images.settle(&layer).await;
                images.close(layer).await;
            }
        });
    }

    /// The disk space of a layer. Blocks on disk I/O.
    pub(crate) fn taken(&self, layer: &LayerKey) -> std::io::Result<Taken> {
        self.0.parts.layers.store().taken(layer)
    }

    /// Unmounts the layer at `at`.
    pub(crate) async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        self.0.parts.mounts.unmount(at).await
    }

    /// Removes layers that no record uses and no request holds, one at a time. A request can still
    /// keep a layer until its removal begins. After that, a request creates the layer anew while
    /// the old files are being deleted. `used` reads the records.
    pub(crate) async fn remove_unused<E, F>(&self, used: impl Fn() -> F) -> Result<(), E>
    where
        F: Future<Output = Result<Vec<LayerKey>, E>>,
    {
        let now = Instant::now();
        for image in self.0.images.lock().values() {
            image.ready.lock().let_go(now);
        }
        let all = self.0.parts.layers.store().list();
        let known: HashSet<_> = used().await?.into_iter().collect();
        for (number, key) in all {
            if known.contains(&key) {
                continue;
            }
            let Some(removing) = self.0.holds.begin_removal(key.layer) else {
                continue;
            };
            // Read the records again. New requests wait now, so every earlier commit is in them.
            if used().await?.contains(&key) {
                continue;
            }
            self.0.parts.mounts.forget(number.0);
            self.0.showing.lock().remove(&number.0);
            let removal = self.0.parts.layers.remove(&key);
            tokio::pin!(removal);
            // The first step takes the layer out of the store. Later steps need no protection from
            // requests.
            let begun = tokio::select! {
                biased;
                done = &mut removal => Some(done),
                () = std::future::ready(()) => None,
            };
            drop(removing);
            let removed = match begun {
                Some(done) => done,
                None => removal.await,
            };
            if let Err(error) = removed {
                let (layer, error) = (key.layer.to_string(), explain(&error));
                warn!(layer, error, "a layer that nobody uses is not removed");
            }
        }
        Ok(())
    }

    /// Releases loop devices and probe mounts that nothing uses. Call this only while the device is
    /// served, because an unmount waits for unanswered READs.
    pub(crate) async fn let_go(&self) {
        match self.0.parts.mounts.let_go().await {
            Ok(0) => {}
            Ok(count) => info!(count, "let go of loop devices of an earlier process"),
            Err(error) => warn!(error = explain(&error), "stray loop devices stay"),
        }
    }

    /// Makes all downloaded bytes durable before the process ends.
    pub async fn sync(&self) {
        self.0.parts.layers.sync_all().await;
    }
}
