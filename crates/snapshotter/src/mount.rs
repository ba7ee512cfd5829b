//! Gives a layer to the kernel.
//!
//! A layer consists of two files: the EROFS image `meta` and the content, `data`. A [`Mounter`]
//! mounts them on a directory. While bytes are missing, they come from a file of the node's FUSE
//! mount ([`Supply::OnDemand`]); once the layer is complete, they come from `data`
//! ([`Supply::Complete`]). [`choose`] probes the mount modes in the state directory with a tiny
//! image and returns the first that works. Kernel versions are not enough: file systems, patches
//! and kernel configurations differ.
//!
//! Invariants:
//!
//! * All mounts, unmounts and loop device changes, and every access below one of our mounts, run on
//!   [`thread::MountThread`].
//! * The kernel's mount table ([`table`]) decides whether something is mounted, never a file
//!   access. A mount is ours only if this process made it or recognized its device.
//! * A mount point that shows a layer is never uncovered: a new mount goes beneath the old one.
//! * No READ of a layer waits for the network while its device is switched or its last mount is
//!   removed: the kernel and every `sync` would wait for it. Callers ensure this (`image::mounts`).

mod file;
mod looped;
mod loops;
pub(crate) mod mapped;
mod place;
mod probe;
pub mod table;
pub mod thread;
pub(crate) mod userns;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use thiserror::Error;

use crate::device::Device;
use table::{MountEntry, MountTable};
use thread::{MountThread, Unfinished};

/// File system type and source of the reference's mounts in the kernel's mount table.
const REFERENCE_FS_TYPE: &str = "fuse.rawBridge";
const REFERENCE_SOURCE: &str = "soci";

/// How layers are given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// EROFS on two loop devices. The data device switches from the FUSE file to `data`.
    Loop,
    /// EROFS mounted from files, with a FUSE file or `data` as its device.
    File,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Loop => "loop",
            Way::File => "file",
        })
    }
}

/// Where the bytes of a mount come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// A file of the FUSE mount. A read may have to wait for the network.
    OnDemand,
    /// The complete `data` file of the layer.
    Complete,
}

/// Where the bytes of one layer come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSource {
    /// The layer's number in the store.
    pub number: u64,
    /// The file that holds the bytes or serves them on demand.
    pub file: PathBuf,
    /// Whether `file` is the FUSE file or `data`.
    pub supply: Supply,
}

/// A layer image to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerImage {
    /// The EROFS metadata image.
    pub meta: PathBuf,
    /// Key of the tree patch that this metadata image contains.
    pub patch: String,
    /// Distinguishes file systems of the same image, for chains that contain it twice.
    pub copy: usize,
    /// Where the content comes from.
    pub source: LayerSource,
}

impl LayerImage {
    fn checked(&self) -> Result<LayerImage, MountError> {
        plain(&self.meta)?;
        plain(&self.source.file)?;
        Ok(self.clone())
    }
}

/// A layer that switches to another source, see [`Mounter::supply`].
#[derive(Debug, Clone)]
pub struct SwitchedLayer {
    /// The new source.
    pub source: LayerSource,
    /// The layer's metadata images with their mount points.
    pub shown: Vec<(PathBuf, Vec<PathBuf>)>,
}

/// Why a mount, unmount or switch failed.
#[derive(Debug, Error)]
pub enum MountError {
    /// The kernel's mount table would show this path in another form.
    #[error("path {} is not absolute and canonical", .0.display())]
    Path(PathBuf),
    /// The mount to copy was not made by this process.
    #[error("no mount of this process at {}", .0.display())]
    NotOurs(PathBuf),
    /// No loop device is available.
    #[error("no loop device available: {step} {what}: {source}: {remedy}")]
    NoLoop {
        /// The step that failed.
        step: &'static str,
        /// What the step was applied to.
        what: String,
        /// What the operator can do.
        remedy: &'static str,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// The device does not bypass the page cache, so one waiting READ would block all others.
    #[error("the loop device on {} does not use direct I/O", .0.display())]
    Buffered(PathBuf),
    /// A layer in mount mode *file* cannot switch back to the FUSE file.
    #[error("a layer in mount mode \"file\" cannot switch back to the FUSE file")]
    Fixed,
    /// Neither `fsconfig` nor `mount(2)` accepts these paths.
    #[error("paths {} and {} cannot be passed to the kernel: they are too long or contain a comma", meta.display(), device.display())]
    Unsayable {
        /// The metadata image.
        meta: PathBuf,
        /// The data file or device.
        device: PathBuf,
    },
    /// The kernel refused a step.
    #[error("{step} {}{detail}", path.display())]
    Refused {
        /// The step that failed.
        step: &'static str,
        /// The path that the step was applied to.
        path: PathBuf,
        /// The kernel's own message, if any, with a leading colon.
        detail: String,
        /// The error of the system call.
        #[source]
        source: Errno,
    },
    /// The kernel refused the ID map, or this process may not make one.
    #[error("cannot create a user namespace with the ID map")]
    Map(#[source] std::io::Error),
    /// The kernel or the file system cannot show files with other owners.
    #[error("cannot show the files of {} with other owners: the kernel does not support ID-mapped mounts of its file system", path.display())]
    NotMapped {
        /// The layer or directory.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: Errno,
    },
    /// The mount table cannot be read.
    #[error("cannot read the mount table")]
    Table(#[source] std::io::Error),
    /// The mount thread did not finish.
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}

/// Gives layers to the kernel. All paths are absolute and canonical.
///
/// A job that has started runs to completion even if its future is dropped.
#[async_trait]
pub trait Mounter: Send + Sync + fmt::Debug {
    /// The mount mode.
    fn way(&self) -> Way;

    /// Mounts a layer read-only on the directory `at`. A layer already mounted there stays visible
    /// until the new one is. A mount of the same image by an earlier process is kept if it can be
    /// recognized.
    async fn mount(&self, image: &LayerImage, at: &Path) -> Result<(), MountError>;

    /// Mounts at `at` what is mounted at `from`, with the same file system and page cache. The
    /// mount at `from` must be [ours](Mounter::is_ours).
    async fn bind(&self, from: &Path, at: &Path) -> Result<(), MountError>;

    /// Switches all mounts of a layer to another source of its bytes. `shown` lists its metadata
    /// images with their mount points. No READ of the layer may wait for the network during the
    /// call.
    async fn supply(
        &self,
        source: &LayerSource,
        shown: &[(PathBuf, Vec<PathBuf>)],
    ) -> Result<(), MountError>;

    /// Switches several layers, like [`supply`](Mounter::supply). Returns one result per layer.
    async fn supply_all(&self, layers: &[SwitchedLayer]) -> Vec<Result<(), MountError>> {
        let mut results = Vec::with_capacity(layers.len());
        for layer in layers {
            results.push(self.supply(&layer.source, &layer.shown).await);
        }
        results
    }

    /// Reduces the cached copies of complete layers from two to one, after the container start is
    /// over. Each layer comes with the files whose page cache is no longer needed.
    async fn settle(&self, _layers: Vec<(u64, Vec<PathBuf>)>) -> Result<(), MountError> {
        Ok(())
    }

    /// Detaches all layer mounts at `at`; succeeds if there are none. If one is the last mount of
    /// its layer, no READ of that layer may wait for the network during the call.
    async fn unmount(&self, at: &Path) -> Result<(), MountError>;

    /// Whether the mount at `at` in `table` was made or recognized by this process.
    fn is_ours(&self, table: &MountTable, at: &Path) -> bool;

    /// Takes over the devices of an earlier process. Returns the numbers of their layers.
    async fn find(&self) -> Result<Vec<u64>, MountError> {
        Ok(Vec::new())
    }

    /// The number of the layer that is mounted at `at` and nowhere else, if the mount mode can
    /// tell.
    async fn last_layer_at(&self, _at: &Path) -> Result<Option<u64>, MountError> {
        Ok(None)
    }

    /// Releases unused devices. Returns how many were released.
    async fn let_go(&self) -> Result<usize, MountError> {
        Ok(0)
    }
}

/// Which mount modes may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allowed {
    /// The first that works.
    #[default]
    Auto,
    /// Only this one.
    Only(Way),
    /// None: layers are left to containerd.
    None,
}

/// The result of probing. It is kept when the worker process is replaced.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Chosen {
    /// The mount mode.
    pub way: Way,
    /// Whether overlays on layers support `xino=on`.
    pub xino: bool,
    /// Why containers in user namespaces cannot start on layers or on directories of this state
    /// directory; `None` if they can.
    #[serde(default)]
    pub owners: Option<String>,
    /// Why this mount mode was chosen.
    pub reason: String,
}

impl Chosen {
    /// Creates the mounter for this mount mode. `root` is the canonical state directory.
    #[must_use]
    pub fn mounter(&self, root: &Path, thread: &MountThread) -> Arc<dyn Mounter> {
        match self.way {
            Way::Loop => Arc::new(looped::LoopMounter::new(thread.clone(), root)),
            Way::File => Arc::new(file::FileMounter::new(thread.clone())),
        }
    }
}

/// Probes the mount modes in the existing directory `state_root` and returns the first that works.
///
/// # Errors
///
/// The reason why each mount mode failed, with a remedy.
pub async fn choose(
    allowed: Allowed,
    state_root: &Path,
    device: &Arc<Device>,
    thread: &MountThread,
) -> Result<Chosen, String> {
    let ways: &[Way] = match &allowed {
        Allowed::Auto => &[Way::Loop, Way::File],
        Allowed::Only(way) => std::slice::from_ref(way),
        Allowed::None => return Err("the configuration sets mount = \"none\"".to_owned()),
    };
    let mut refusals: Vec<String> = Vec::new();
    for &way in ways {
        match probe::probe(way, state_root, device, thread).await {
            Ok(probe::Found {
                xino,
                owners,
                mut reason,
            }) => {
                for refusal in refusals {
                    reason = format!("{reason}; {refusal}");
                }
                return Ok(Chosen {
                    way,
                    xino,
                    owners,
                    reason,
                });
            }
            Err(error) => refusals.push(format!("mount mode {way} does not work: {error}")),
        }
    }
    Err(refusals.join("; "))
}

/// Aborts the FUSE connection that an earlier process left at `at`, if any, and detaches its mount.
/// Requests that wait for it fail.
///
/// # Errors
///
/// When the mount table cannot be read or the kernel refuses the unmount.
pub async fn end_connection(thread: &MountThread, at: &Path) -> Result<(), MountError> {
    let at = plain(at)?.to_path_buf();
    let job = move || loop {
        let table = MountTable::read().map_err(MountError::Table)?;
        if !table.top(&at).is_some_and(is_device) {
            return Ok(());
        }
        // FORCE aborts the connection. Otherwise a descriptor that another process holds would keep
        // it alive, with READs that are never answered.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&at, flags)
            .map_err(refused("cannot abort the FUSE connection at", &at))?;
    };
    thread.run(job).await?
}

/// Detaches the layer mounts and their ID-mapped copies at and below the canonical `path`. Returns
/// how many were detached. No READ of these layers may wait for the network.
///
/// # Errors
///
/// When the mount table cannot be read or the kernel refuses an unmount.
pub async fn detach_all_under(thread: &MountThread, path: &Path) -> Result<usize, MountError> {
    let path = plain(path)?.to_path_buf();
    let is_ours = |entry: &MountEntry| entry.fs_type == place::FS_TYPE || mapped::is_copy(entry);
    thread.run(move || detach_below(&path, is_ours)).await?
}

/// Detaches the layer mounts of the reference implementation at and below the canonical `path`.
/// Returns how many. Its process must have ended.
///
/// # Errors
///
/// When the mount table cannot be read or the kernel refuses an unmount.
pub async fn detach_reference(thread: &MountThread, path: &Path) -> Result<usize, MountError> {
    let path = plain(path)?.to_path_buf();
    let is_its = |entry: &MountEntry| {
        entry.fs_type == REFERENCE_FS_TYPE && entry.source == Path::new(REFERENCE_SOURCE)
    };
    thread.run(move || detach_below(&path, is_its)).await?
}

/// Removes the mounts and directories that killed probes left in `root`. Returns the number of
/// mounts.
///
/// # Errors
///
/// When the mount table cannot be read or the kernel refuses an unmount.
pub async fn sweep_probes(thread: &MountThread, root: &Path) -> Result<usize, MountError> {
    let root = plain(root)?.to_path_buf();
    thread.run(move || probe::sweep(&root)).await?
}

/// Detaches the mounts at and below `path` that `which` accepts, topmost first. Returns how many.
fn detach_below(path: &Path, which: impl Fn(&MountEntry) -> bool) -> Result<usize, MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    let found = table.under(path).into_iter().filter(|entry| which(entry));
    let mut count = 0;
    for entry in found {
        detach(&entry.mount_point)?;
        count += 1;
    }
    Ok(count)
}

fn is_device(entry: &MountEntry) -> bool {
    entry.fs_type == crate::device::FS_TYPE
}

/// Detaches the topmost mount at `at`; it ends with its last user. No mount at `at` is not an
/// error.
fn detach(at: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(source) => Err(refused("cannot detach the mount at", at)(source)),
    }
}

/// Rejects paths that cannot be compared with the kernel's mount table.
fn plain(path: &Path) -> Result<&Path, MountError> {
    if table::is_plain(path) {
        Ok(path)
    } else {
        Err(MountError::Path(path.to_path_buf()))
    }
}

fn refused(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> MountError {
    move |source| MountError::Refused {
        step,
        path: path.to_path_buf(),
        detail: String::new(),
        source,
    }
}

#[cfg(test)]
mod tests;
