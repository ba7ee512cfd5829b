//! Ways to give a layer to the kernel.
//!
//! A layer is two files: the map `meta` and the bytes, `data`. A [`Mounter`] makes a folder show what
//! they describe. Today there is one way, **erofs**: the kernel mounts `meta` itself and takes bytes
//! from a *device*, which is a file of the node's FUSE mount while bytes are missing
//! ([`Supply::OnDemand`]) and `data` once they are all there ([`Supply::Complete`]).
//!
//! [`choose`] tries the way out in the state folder, with a tiny image and everything a layer needs,
//! and takes it only if all of it works. Versions say nothing: file systems, patches and
//! configurations of kernels differ.
//!
//! What must stay true:
//!
//! * All mounts and unmounts, and every look below a mount of ours, happen on the one
//!   [`thread::MountThread`].
//! * Whether something is mounted is decided by the kernel's table ([`table`]), never by looking at
//!   it, and a mount counts as good only when this process made it.
//! * A mount that goes is detached, never forced: whoever uses it keeps it.

mod erofs;
mod probe;
#[cfg(test)]
pub(crate) mod recording;
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
use table::MountTable;
use thread::{MountThread, Unfinished};

/// How layers are given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The kernel's EROFS over `meta`, with a FUSE file or `data` as its device.
    Erofs,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Erofs => f.write_str("erofs"),
        }
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

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerImage {
    /// The map.
    pub meta: PathBuf,
    /// The file that has, or brings, the bytes.
    pub device: PathBuf,
    /// Which of the two it is.
    pub supply: Supply,
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

    /// Mounts a layer read-only on the folder `at`. Layer mounts that lie there are detached first.
    async fn mount(&self, image: &LayerImage, at: &Path) -> Result<(), MountError>;

    /// Shows at `at` what is mounted at `from`: one file system, one page cache. What is at `from` must
    /// be [ours](Mounter::is_ours).
    async fn bind(&self, from: &Path, at: &Path) -> Result<(), MountError>;

    /// Mounts a layer under what is mounted at each of `at` and detaches that, so that there is a
    /// mount at any moment. Who uses the old one keeps it. All places share one file system; where
    /// nothing of ours is mounted, nothing happens.
    async fn replace(&self, image: &LayerImage, at: &[PathBuf]) -> Result<(), MountError>;

    /// Detaches all layer mounts at `at`; none being there is no error.
    async fn unmount(&self, at: &Path) -> Result<(), MountError>;

    /// Whether what is mounted at `at` was mounted there by this process, by `table`.
    fn is_ours(&self, table: &MountTable, at: &Path) -> bool;
}

/// What [`choose`] found.
#[derive(Debug, Clone)]
pub enum Choice {
    /// Layers can be mounted.
    Way {
        /// By this.
        mounter: Arc<dyn Mounter>,
        /// Because of this.
        reason: String,
    },
    /// This machine, or this state folder, cannot do it.
    None {
        /// Because of this.
        reason: String,
    },
}

/// Tries the ways out in `state_root`, which exists, and returns the first that works.
pub async fn choose(state_root: &Path, device: &Arc<Device>, thread: &MountThread) -> Choice {
    match probe::probe(state_root, device, thread).await {
        Ok(reason) => {
            let mounter: Arc<dyn Mounter> = Arc::new(erofs::ErofsMounter::new(thread.clone()));
            Choice::Way { mounter, reason }
        }
        Err(error) => Choice::None {
            reason: error.to_string(),
        },
    }
}

/// Detaches the layer mounts and FUSE mounts that an earlier process left at and below `path`, which
/// is canonical: layers first, then what they stand on. Returns what was detached.
///
/// # Errors
///
/// When the table cannot be read, or the kernel does not let a mount go.
pub async fn detach_all_under(
    thread: &MountThread,
    path: &Path,
) -> Result<Vec<PathBuf>, MountError> {
    let path = plain(path)?.to_path_buf();
    thread.run(move || detach_below(&path)).await?
}

fn detach_below(path: &Path) -> Result<Vec<PathBuf>, MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    let found = table.under(path);
    let is_layer = |fs_type: &str| fs_type == erofs::FS_TYPE;
    let is_device = |fs_type: &str| fs_type == crate::device::FS_TYPE;
    let (layers, rest): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|entry| is_layer(&entry.fs_type));
    let devices = rest.into_iter().filter(|entry| is_device(&entry.fs_type));
    let mut detached = Vec::new();
    for entry in layers.into_iter().chain(devices) {
        detach(&entry.mount_point)?;
        detached.push(entry.mount_point.clone());
    }
    Ok(detached)
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
