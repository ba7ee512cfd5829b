//! Ways to give a layer to the kernel.
//!
//! A layer is two files: the map `meta` and the bytes, `data`. A [`Mounter`] makes a folder show what
//! they describe. The bytes come from a file of the node's FUSE mount while some are missing
//! ([`Supply::OnDemand`]) and from `data` once they are all there ([`Supply::Complete`]). [`choose`]
//! tries the ways out in the state folder, with a tiny image and everything a layer needs, and takes the
//! first that works: versions say nothing, file systems, patches and configurations of kernels differ.
//!
//! What must stay true:
//!
//! * All mounts, unmounts and changes of loop devices, and every look below a mount of ours, happen on
//!   the one [`thread::MountThread`].
//! * Whether something is mounted is decided by the kernel's table ([`table`]), never by looking at it. A
//!   mount counts as good only when this process made it or knows its device.
//! * A place that shows a layer is never uncovered: what comes new goes beneath.
//! * No READ of a layer waits for the network while its device changes hands or its mount goes: the
//!   kernel waits for it, and so does every `sync` of the machine. Callers see to that (`image::mounts`).

mod file;
mod looped;
mod loops;
mod place;
mod probe;
pub mod table;
pub mod thread;

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

/// How layers are given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// EROFS on two loop devices, one of which moves from the FUSE file to `data`.
    Loop,
    /// EROFS from files, with a FUSE file or `data` as its device.
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
    /// A file of the FUSE mount: a read may have to wait for the network.
    OnDemand,
    /// The layer's own data, all there.
    Complete,
}

/// Where the bytes of one layer come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSource {
    /// The layer's number in the store.
    pub number: u64,
    /// The file that has, or brings, the bytes.
    pub file: PathBuf,
    /// Which of the two it is.
    pub supply: Supply,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerImage {
    /// The map.
    pub meta: PathBuf,
    /// Which of the layer's images the map is.
    pub patch: String,
    /// Tells file systems of the same image apart, for chains that have it twice.
    pub copy: usize,
    /// The bytes.
    pub source: LayerSource,
}

impl LayerImage {
    fn checked(&self) -> Result<LayerImage, MountError> {
        plain(&self.meta)?;
        plain(&self.source.file)?;
        Ok(self.clone())
    }
}

/// Why a mount was not made, or not taken away.
#[derive(Debug, Error)]
pub enum MountError {
    /// A path that the kernel's table would show in another form.
    #[error("path {} is not absolute and canonical", .0.display())]
    Path(PathBuf),
    /// There is no mount of ours where one was to be copied from.
    #[error("nothing that this process mounted is at {}", .0.display())]
    NotOurs(PathBuf),
    /// No loop device can be had.
    #[error("no loop device can be had: {step} {what}: {source}: {remedy}")]
    NoLoop {
        /// The step.
        step: &'static str,
        /// What it was about.
        what: String,
        /// What to do about it.
        remedy: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// One waiting READ would block all others of the layer.
    #[error("the loop device on {} does not read directly", .0.display())]
    Buffered(PathBuf),
    /// The file way cannot take bytes back.
    #[error("layers that are mounted from files cannot be moved back to the device")]
    Fixed,
    /// Neither way of passing paths to the kernel takes these.
    #[error("paths {} and {} cannot be passed to the kernel: too long or with a comma", meta.display(), device.display())]
    Unsayable {
        /// The map.
        meta: PathBuf,
        /// The device.
        device: PathBuf,
    },
    /// The kernel refused a step.
    #[error("{step} {}{detail}", path.display())]
    Refused {
        /// The step.
        step: &'static str,
        /// What it was about.
        path: PathBuf,
        /// What the kernel says about it, if anything, with a colon in front.
        detail: String,
        /// Its answer.
        #[source]
        source: Errno,
    },
    /// The table of mounts cannot be read.
    #[error("reading the table of mounts")]
    Table(#[source] std::io::Error),
    /// The mounting thread could not finish.
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}

/// Gives layers to the kernel. All paths are absolute and canonical.
///
/// A job that was begun is finished even if its future is dropped.
#[async_trait]
pub trait Mounter: Send + Sync + fmt::Debug {
    /// Which way this is.
    fn way(&self) -> Way;

    /// Mounts a layer read-only on the folder `at`. Another layer that lies there stays visible until
    /// this one is; the same one, of an earlier process, is kept where that can be told.
    async fn mount(&self, image: &LayerImage, at: &Path) -> Result<(), MountError>;

    /// Shows at `at` what is mounted at `from`: one file system, one page cache. What is at `from` must
    /// be [ours](Mounter::is_ours).
    async fn bind(&self, from: &Path, at: &Path) -> Result<(), MountError>;

    /// Moves a layer, wherever it is mounted, to another source of its bytes. `shown` names its images
    /// and their places. No READ of the layer may wait for the network meanwhile.
    async fn supply(
        &self,
        source: &LayerSource,
        shown: &[(PathBuf, Vec<PathBuf>)],
    ) -> Result<(), MountError>;

    /// A complete layer is on disk and its start is over: keeps one cached copy of it, not two. `files`
    /// are those whose own page cache is not needed any more.
    async fn settle(&self, _layer: u64, _files: Vec<PathBuf>) -> Result<(), MountError> {
        Ok(())
    }

    /// Detaches all layer mounts at `at`; none being there is no error. No READ of a layer whose last
    /// mount this is may wait for the network meanwhile.
    async fn unmount(&self, at: &Path) -> Result<(), MountError>;

    /// Whether what is mounted at `at` was mounted, or recognised, there by this process, by `table`.
    fn is_ours(&self, table: &MountTable, at: &Path) -> bool;

    /// Takes over the devices of an earlier process; the numbers of the layers that have one.
    async fn find(&self) -> Result<Vec<u64>, MountError> {
        Ok(Vec::new())
    }

    /// The number of the layer that is mounted at `at` and nowhere else, where the way can tell.
    async fn last_layer_at(&self, _at: &Path) -> Result<Option<u64>, MountError> {
        Ok(None)
    }

    /// Lets go of devices that nothing uses; how many.
    async fn let_go(&self) -> Result<usize, MountError> {
        Ok(0)
    }
}

/// Which ways may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allowed {
    /// The first that works.
    #[default]
    Auto,
    /// This one or none.
    Only(Way),
    /// Layers are left to containerd.
    None,
}

/// What was found to work here. Kept across a replacement of the process, see [`Chosen::mounter`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Chosen {
    /// The way.
    pub way: Way,
    /// Overlays on layers take `xino=on`.
    pub xino: bool,
    /// Why this way.
    pub reason: String,
}

impl Chosen {
    /// Gives layers to the kernel this way. `root` is the state folder, canonical.
    #[must_use]
    pub fn mounter(&self, root: &Path, thread: &MountThread) -> Arc<dyn Mounter> {
        match self.way {
            Way::Loop => Arc::new(looped::LoopMounter::new(thread.clone(), root)),
            Way::File => Arc::new(file::FileMounter::new(thread.clone())),
        }
    }
}

/// Tries the ways out in `state_root`, which exists, and returns the first that works.
///
/// # Errors
///
/// Why none does, with what to do about it.
pub async fn choose(
    allowed: Allowed,
    state_root: &Path,
    device: &Arc<Device>,
    thread: &MountThread,
) -> Result<Chosen, String> {
    let ways: &[Way] = match &allowed {
        Allowed::Auto => &[Way::Loop, Way::File],
        Allowed::Only(way) => std::slice::from_ref(way),
        Allowed::None => return Err("the configuration says mount = \"none\"".to_owned()),
    };
    let mut refusals: Vec<String> = Vec::new();
    for &way in ways {
        match probe::probe(way, state_root, device, thread).await {
            Ok(probe::Found { xino, mut reason }) => {
                for refusal in refusals {
                    reason = format!("{reason}; {refusal}");
                }
                return Ok(Chosen { way, xino, reason });
            }
            Err(error) => refusals.push(format!("the {way} way does not work here: {error}")),
        }
    }
    Err(refusals.join("; "))
}

/// Ends the FUSE connection that an earlier process left at `at`, if there is one: what waits for it gets an error,
/// and its mount is detached.
///
/// # Errors
///
/// When the table cannot be read, or the kernel does not let the mount go.
pub async fn end_connection(thread: &MountThread, at: &Path) -> Result<(), MountError> {
    let at = plain(at)?.to_path_buf();
    let job = move || loop {
        let table = MountTable::read().map_err(MountError::Table)?;
        if !table.top(&at).is_some_and(is_device) {
            return Ok(());
        }
        // FORCE aborts the connection, which a descriptor that somebody still holds would keep alive, with READs that
        // nobody answers.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&at, flags)
            .map_err(refused("ending the fuse connection at", &at))?;
    };
    thread.run(job).await?
}

/// Detaches the layer mounts at and below `path`, which is canonical; how many. No READ of one may wait.
///
/// # Errors
///
/// When the table cannot be read, or the kernel does not let a mount go.
pub async fn detach_all_under(thread: &MountThread, path: &Path) -> Result<usize, MountError> {
    let path = plain(path)?.to_path_buf();
    let is_layer = |entry: &MountEntry| entry.fs_type == place::FS_TYPE;
    thread.run(move || detach_below(&path, is_layer)).await?
}

/// Takes away the mounts and folders of probes below `root` that were killed; how many mounts.
///
/// # Errors
///
/// When the table cannot be read, or the kernel does not let a mount go.
pub async fn sweep_probes(thread: &MountThread, root: &Path) -> Result<usize, MountError> {
    let root = plain(root)?.to_path_buf();
    thread.run(move || probe::sweep(&root)).await?
}

/// Detaches the mounts at and below `path` that `which` accepts, each before those it lies on; how many.
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

/// Takes the uppermost mount at `at` out of sight; it ends when nobody uses it. Nothing there is fine.
fn detach(at: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(source) => Err(refused("detaching", at)(source)),
    }
}

/// A path that can be compared with the kernel's table.
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
