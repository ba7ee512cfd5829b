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

/// The same, on the mount thread.
pub(super) fn make(copies: &[Copy], owners: &Owners) -> Result<(), MountError> {
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
        attributes::set_map(copy.fd(), &map).map_err(|source| not_mapped(from, source))?;
        copy.place(at)?;
    }
    Ok(())
}

/// Whether the error means that the kernel or a file system cannot do this, as opposed to a failure
/// that may pass.
pub(crate) fn is_unsupported(error: &MountError) -> bool {
    match error {
        MountError::NotMapped { .. } => true,
        MountError::Map(source) => Errno::from_io_error(source).is_some_and(is_inability),
        _ => false,
    }
}

fn is_inability(error: Errno) -> bool {
    matches!(
        error,
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM
    )
}

fn not_mapped(path: &Path, source: Errno) -> MountError {
    if is_inability(source) {
        let path = path.to_owned();
        return MountError::NotMapped { path, source };
    }
    refused("cannot show with other owners", path)(source)
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
    let is_right = match original {
        Some(original) if *is_layer => shown.device == original.device,
        // Compare paths: the device numbers of stat and of the table differ on btrfs.
        _ => shown.root.ends_with(last_two(from)),
    };
    Ok(!is_right)
}

/// `<parent>/fs` of a directory of files. It is also in the mount table if the directory of all
/// snapshots has a file system of its own.
fn last_two(from: &Path) -> PathBuf {
    let parent = from.parent().and_then(Path::file_name);
    let names = [parent, from.file_name()];
    names.into_iter().flatten().collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_directory_is_known_by_its_path() {
        let copy = Copy {
            from: PathBuf::from("/r/snapshots/3/fs"),
            is_layer: false,
            at: PathBuf::from("/r/snapshots/3_5/fs"),
        };
        let is_needed = |root: &str, option: &str| {
            let line =
                format!("40 30 0:35 {root} /r/snapshots/3_5/fs rw{option} - btrfs /dev/sda rw\n");
            is_needed(&MountTable::parse(line.as_bytes()), &copy).unwrap()
        };
        assert!(!is_needed("/subvolume/r/snapshots/3/fs", ",idmapped"));
        assert!(!is_needed("/3/fs", ",idmapped"));
        assert!(is_needed("/subvolume/r/snapshots/3/fs", ""));
        assert!(is_needed("/subvolume/r/snapshots/13/fs", ",idmapped"));
        assert!(is_needed("/r/snapshots/3/fs//deleted", ",idmapped"));
    }

    #[test]
    fn only_some_errors_mean_that_the_kernel_cannot() {
        for (error, cannot) in [
            (Errno::INVAL, true),
            (Errno::NOSYS, true),
            (Errno::OPNOTSUPP, true),
            (Errno::PERM, true),
            (Errno::AGAIN, false),
            (Errno::NOMEM, false),
            (Errno::MFILE, false),
            (Errno::NOSPC, false),
        ] {
            for found in [
                MountError::Map(error.into()),
                not_mapped(Path::new("/at"), error),
            ] {
                assert_eq!(is_unsupported(&found), cannot, "{found:?}");
            }
        }
    }
}
