//! Images: one answer for each about its index, and its layers opened and mounted.
//!
//! A layer of an image is asked for by [`Images::prepare`]:
//!
//! ```text
//! ask     (`discover`, `content`) manifest ─▶ index ─▶ the layer's own zTOC; the others are fetched ahead, bounded
//! open    (`open`) zTOC ─▶ lazy layer, or one pass over the blob ─▶ whole layer
//! show    (`show`) entries + what lies below ─▶ tree ─▶ meta ─▶ mount at the snapshot's `fs`  (`mounts`)
//! finish  the rest of the bytes comes behind, and the mount moves to `data`
//! ```
//!
//! What an image has is asked once for (namespace, repository, manifest, index that the client gave). "No index" is
//! remembered for a while, a registry that did not answer is not. Nothing of this belongs to the request that began
//! it: a client that goes away stops nothing, and what came too late serves the next request.
//!
//! After a restart [`Images::ensure`] mounts a layer again from the store, without registry or credentials, when its
//! snapshot is used first.

mod after;
mod ahead;
mod content;
mod discover;
mod holds;
pub mod labels;
mod layer_use;
mod line;
mod mounts;
mod name;
mod open;
mod restore;
mod room;
mod scrub;
mod show;
mod source;
mod trust;
pub mod verdict;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use soci_oci::digest::Digest;
use soci_oci::manifest::Manifest;
use soci_oci::registry::Registry;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

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
pub use self::restore::RestoreError;
pub(crate) use self::restore::Wanted;
pub(crate) use self::trust::Standing;
use self::verdict::{Subject, Verdict};
use crate::cpu::{Cpu, Lane};
use crate::layer::{Expected, Layer, Layers};
use crate::mount::MountError;
use crate::store::LayerKey;
use crate::store::space::Taken;
use crate::sync::atomic::AtomicBool;
use crate::sync::{Arc, Mutex};

/// How long an image without an index is remembered: longer than a pull of its layers, shorter than a user's
/// patience after making one.
const NO_INDEX_LASTS: Duration = Duration::from_secs(60);
/// How long the rest is remembered. zTOCs that were fetched ahead and not used take space that long.
const PULL_LASTS: Duration = Duration::from_secs(3600);
/// How long after its completion a layer's bytes are kept in the page cache for who has not read them yet.
const SETTLE: Duration = Duration::from_secs(20);
/// Images that are remembered. Each is a few kilobytes.
const MOST_IMAGES: usize = 256;

/// What is known of one image.
#[derive(Debug)]
struct Image {
    manifest: OnceCell<Manifest>,
    discovery: OnceCell<Discovery>,
    /// One fetch of each zTOC at a time.
    ztocs: Mutex<HashMap<Digest, Arc<OnceCell<Bytes>>>>,
    /// All layers are being made ready.
    ahead: AtomicBool,
    /// Those that are, or were asked for.
    ready: Mutex<ahead::Ready>,
    /// Told when something of it has come: a document, a piece of a zTOC.
    came: Notify,
    /// The registry was asked for a layer of it and did not refuse.
    tried: OnceCell<()>,
    since: Instant,
}

impl Image {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            manifest: OnceCell::new(),
            discovery: OnceCell::new(),
            ztocs: Mutex::default(),
            ahead: AtomicBool::new(false),
            ready: Mutex::default(),
            came: Notify::new(),
            tried: OnceCell::new(),
            since: Instant::now(),
        })
    }

    /// "No index" is believed for a while only; anything else as long as a pull may take.
    fn is_stale(&self) -> bool {
        let lasts = match self.discovery.get() {
            Some(Discovery::None(_)) => NO_INDEX_LASTS,
            Some(Discovery::Found(_)) | None => PULL_LASTS,
        };
        self.since.elapsed() > lasts
    }
}

/// What lies below a layer, for directories that it only implies.
#[derive(Clone, Debug)]
pub(crate) enum Parent {
    /// A layer of ours.
    Layer(LayerUse),
    /// A directory that containerd has filled.
    Directory(PathBuf),
}

/// How many of `parents` show the same image of the same layer.
fn copies_below(parents: &[Parent], layer: LayerKey, patch: &str) -> usize {
    let same = |parent: &&Parent| match parent {
        Parent::Layer(used) => used.layer == layer && used.patch == patch,
        Parent::Directory(_) => false,
    };
    parents.iter().filter(same).count()
}

/// A layer that is wanted at a place.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) image: ImageName,
    pub(crate) layer: Digest,
    /// Mount point.
    pub(crate) at: PathBuf,
    /// Nearest first.
    pub(crate) parents: Vec<Parent>,
    /// What the layer's tar must be.
    pub(crate) expected: Expected,
    pub(crate) subject: Subject,
    /// Do not look for an index: the layer is too small to be worth it.
    pub(crate) small: bool,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// The layer is mounted.
    Mounted(Box<Mounted>),
    /// containerd has to unpack it.
    Left {
        /// Why.
        why: String,
        /// The image has an index; the layer could not be used all the same.
        indexed: bool,
    },
}

/// A layer that is mounted.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) layer: LayerUse,
    pub(crate) verdict: Verdict,
    /// Until the record says who uses the layer.
    pub(crate) hold: Hold,
}

/// How images are dealt with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where an index may be looked for.
    pub modes: Modes,
    /// How long a request waits for index and zTOC.
    pub patience: Duration,
    /// Layers made ready ahead at once.
    pub ahead: usize,
    /// Fetch what nobody has read yet.
    pub background: bool,
    /// Layers are shown inside a user namespace.
    pub user_namespace: bool,
}

/// The parts that images stand on.
#[derive(Debug)]
pub struct Parts {
    /// Open layers.
    pub layers: Arc<Layers>,
    /// Their mounts.
    pub mounts: Mounts,
    /// Documents and zTOCs.
    pub content: Content,
    /// Where layers come from.
    pub registry: Registry,
    /// Where trees are built.
    pub cpu: Arc<Cpu>,
}

#[derive(Debug)]
struct Shared {
    parts: Parts,
    options: Options,
    images: Mutex<HashMap<ImageKey, Arc<Image>>>,
    holds: Holds,
    /// Whose turn it is to make an image of a layer, by its number.
    showing: Mutex<HashMap<u64, Arc<Semaphore>>>,
    /// Layers whose completion is awaited.
    watched: Mutex<BTreeSet<u64>>,
    ahead: Arc<Semaphore>,
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

    /// Closes the files of a layer that nobody needs open any more: it is complete, moved to `data`, settled and proven.
    /// Who wants it opens it again.
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
    /// Images over `parts`.
    pub fn new(parts: Parts, options: Options) -> Self {
        Self(Arc::new(Shared {
            parts,
            options,
            images: Mutex::default(),
            holds: Holds::default(),
            showing: Mutex::default(),
            watched: Mutex::default(),
            ahead: Arc::new(Semaphore::new(options.ahead.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
        }))
    }

    /// What is known of an image, and a place for it where nothing is.
    fn image(&self, name: &ImageName) -> Arc<Image> {
        let mut images = self.0.images.lock();
        let key = name.key();
        images.retain(|_, image| !image.is_stale());
        if images.len() >= MOST_IMAGES && !images.contains_key(&key) {
            let oldest = images.iter().min_by_key(|(_, image)| image.since);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                images.remove(&oldest);
            }
        }
        Arc::clone(images.entry(key).or_insert_with(Image::new))
    }

    /// Gets a layer and mounts it, or says why containerd has to unpack it.
    pub(crate) async fn prepare(&self, request: Request) -> Attempt {
        let hold = self.0.holds.hold(request.layer).await;
        let image = self.image(&request.image);
        image.ready.lock().asked(request.layer);
        let opened = match self.open(&image, &request).await {
            Ok(opened) => opened,
            Err(left) => return left.into_attempt(&request),
        };
        let Opened {
            layer,
            verdict,
            indexed,
        } = opened;
        match self.show(&layer, &request.at, &request.parents).await {
            Ok(patch) => {
                debug!(
                    "mount-point" = request.at.display().to_string(),
                    "checking mount point"
                );
                let layer = LayerUse {
                    layer: layer.key(),
                    patch,
                };
                Attempt::Mounted(Box::new(Mounted {
                    layer,
                    verdict,
                    hold,
                }))
            }
            Err(error) => {
                let why = explain(&error);
                open::Left { why, indexed }.into_attempt(&request)
            }
        }
    }

    /// Tree, image and mount of an open layer; the patch that its image is named by.
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

    /// The image of a layer on these parents, made or found: its patch and its file.
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
        // A pull waits for it.
        parts.cpu.run(Lane::Files, job).await?
    }

    /// Who makes an image of a layer. Two requests for one layer usually want the same image: the second finds it.
    async fn turn_to_show(&self, layer: &Layer) -> Option<OwnedSemaphorePermit> {
        let turn = Arc::clone(
            self.0
                .showing
                .lock()
                .entry(layer.number().0)
                .or_insert_with(|| Arc::new(Semaphore::new(1))),
        );
        // Never closed.
        turn.acquire_owned().await.ok()
    }

    /// Mounts an image of a layer, and has the rest of the layer brought.
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
        mounts.mount(layer, patch, copy, meta, at).await?;
        self.finish_behind(layer);
        Ok(())
    }

    /// Has the rest of a layer brought, and the layer moved to `data` when it is there.
    fn finish_behind(&self, layer: &Arc<Layer>) {
        self.0.parts.layers.note_use(&layer.key());
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

    /// Moves a layer to `data` when it is complete, and lets it settle when its start is over.
    fn follow(&self, layer: &Arc<Layer>) {
        let number = layer.number().0;
        let mut completion = layer.completion();
        // Whoever waits for a layer keeps neither it nor us: the files of a removed one go with its last owner.
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

    /// What a layer takes on disk. Blocks on the disk.
    pub(crate) fn taken(&self, layer: &LayerKey) -> std::io::Result<Taken> {
        self.0.parts.layers.store().taken(layer)
    }

    /// Takes a layer away from a mount point.
    pub(crate) async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        self.0.parts.mounts.unmount(at).await
    }

    /// Removes layers that no record uses and nobody works with, one at a time: a request for one that is not its turn
    /// yet takes it back, and one for the layer whose turn it is makes another while the files of this one go. `used`
    /// reads the records.
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
            // Again, now that nobody can begin: what was committed before is found there.
            if used().await?.contains(&key) {
                continue;
            }
            self.0.parts.mounts.forget(number.0);
            self.0.showing.lock().remove(&number.0);
            let removal = self.0.parts.layers.remove(&key);
            tokio::pin!(removal);
            // Its first step takes the layer out of the store; the files are nobody's from there on.
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

    /// Lets go of devices and probe mounts that nothing uses. Only when the device is served: an unmount waits for
    /// READs that are not answered.
    pub(crate) async fn let_go(&self) {
        match self.0.parts.mounts.let_go().await {
            Ok(0) => {}
            Ok(count) => info!(count, "let go of loop devices of an earlier process"),
            Err(error) => warn!(error = explain(&error), "stray loop devices stay"),
        }
    }

    /// Makes what has arrived durable, before the process ends.
    pub async fn sync(&self) {
        self.0.parts.layers.sync_all().await;
    }
}
