//! Copies of mounts and directories with other owners, for containers in user namespaces. A copy
//! has an ID map and shares everything else with its original: file system, page cache and content.
//!
//! The kernel calls them idmapped mounts (Linux 5.12, EROFS and lower directories of overlayfs
//! since 5.19). An overlay keeps the mounts of its lower directories, so a running container does
//! not need the copy at its path.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::place::{Detached, FS_TYPE};
use super::table::{MountEntry, MountTable};
use super::thread::MountThread;
use super::userns::{self, Owners};
use super::{MountError, detach, plain, refused};

/// A mount option in the kernel's table.
const OPTION: &str = "idmapped";

/// One copy to make.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    /// The mount point of a layer, or a directory of files.
    pub(crate) from: PathBuf,
    /// Whether `from` is the mount point of a layer.
    pub(crate) is_layer: bool,
    /// Where the copy appears: an existing directory.
    pub(crate) at: PathBuf,
}

/// Makes copies with the same owners, except those that exist.
///
/// # Errors
///
/// When the kernel or a file system does not support it, or a layer is not mounted.
pub(crate) async fn copy_all(
    thread: &MountThread,
    copies: Vec<Copy>,
    owners: Owners,
) -> Result<(), MountError> {
    for Copy { from, at, .. } in &copies {
        plain(from)?;
        plain(at)?;
    }
    thread.run(move || make(&copies, &owners)).await?
}

/// Whether an entry of the mount table is such a copy.
pub(super) fn is_copy(entry: &MountEntry) -> bool {
    entry.options.split(',').any(|option| option == OPTION)
}

fn make(copies: &[Copy], owners: &Owners) -> Result<(), MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    let mut missing = Vec::new();
    for copy in copies {
        if is_needed(&table, copy)? {
            missing.push(copy);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let map = userns::with_map(owners).map_err(MountError::Map)?;
    for Copy { from, at, .. } in missing {
        // What is there shows an earlier mount of the layer.
        for _ in 0..table.depth(at) {
            detach(at)?;
        }
        let copy = Detached::copy_of(from)?;
        attributes::set_map(copy.fd(), &map).map_err(|source| MountError::NotMapped {
            path: from.clone(),
            source,
        })?;
        copy.place(at)?;
    }
    Ok(())
}

/// Whether the copy is missing.
fn is_needed(table: &MountTable, copy: &Copy) -> Result<bool, MountError> {
    let Copy { from, is_layer, at } = copy;
    let original = table.top(from);
    let is_there = original.is_some_and(|original| original.fs_type == FS_TYPE);
    // Without this check, an empty directory could be shown as the layer.
    if is_there != *is_layer {
        return Err(MountError::NotOurs(from.clone()));
    }
    let Some(shown) = table.top(at).filter(|shown| is_copy(shown)) else {
        return Ok(true);
    };
    let device = match original {
        Some(original) => original.device,
        None => device(from).map_err(refused("cannot examine", from))?,
    };
    Ok(shown.device != device)
}

fn device(path: &Path) -> Result<(u32, u32), Errno> {
    let found = rustix::fs::lstat(path)?;
    let (major, minor) = (
        rustix::fs::major(found.st_dev),
        rustix::fs::minor(found.st_dev),
    );
    Ok((major, minor))
}

/// JUSTIFICATION: rustix has no `mount_setattr`. SAFETY of the module: one system call that reads
/// a structure of the kernel's layout.
mod attributes {
    #![allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]

    use std::os::fd::{AsRawFd as _, OwnedFd};

    use rustix::io::Errno;

    /// `MOUNT_ATTR_IDMAP`
    const IDMAP: u64 = 0x0010_0000;

    /// Gives a detached mount the ID map of a user namespace.
    pub(super) fn set_map(mount: &OwnedFd, namespace: &OwnedFd) -> Result<(), Errno> {
        let namespace = u64::try_from(namespace.as_raw_fd()).map_err(|_| Errno::BADF)?;
        // `struct mount_attr`: set, clear, propagation, user namespace.
        let attributes = [IDMAP, 0, 0, namespace];
        // SAFETY: the path is empty and ends with NUL; `attributes` is readable for its size.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                std::ptr::from_ref(&attributes),
                size_of_val(&attributes),
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }
}
