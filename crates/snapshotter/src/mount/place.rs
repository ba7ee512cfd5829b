//! How an EROFS mount gets to its place, and how it leaves it.
//!
//! A mount is made detached (`fsopen`, `fsmount`) and then put in place. **A place is never uncovered**:
//! a new mount goes beneath the old one, which is detached then, or above it where the kernel cannot do
//! that. Only when a path is longer than `fsconfig` takes does `mount(2)` do it in one step.
//!
//! *Flags*: read-only and nothing else. A snapshot of one layer can be given to a container as a bind
//! mount, which inherits: with `nodev` or `nosuid` here, device nodes and setuid programs of an image
//! would depend on how many layers it has. Everything here runs on the mounting thread.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
};

use super::table::MountTable;
use super::{MountError, detach, refused};

/// File system type in the kernel's table.
pub(super) const FS_TYPE: &str = "erofs";

/// Longest string that `fsconfig` takes, in bytes (kernel limit: 256 with the NUL).
const FSCONFIG_MAX: usize = 255;

/// Longest option string of `mount(2)`: a page with the NUL (kernel limit).
const MOUNT_DATA_MAX: usize = 4095;

/// `MOVE_MOUNT_BENEATH` (Linux 6.5), which rustix has no name for.
const MOVE_MOUNT_BENEATH: MoveMountFlags = MoveMountFlags::from_bits_retain(0x200);

/// Identifies a mount in the kernel's table. The kernel uses numbers again, so one only counts together
/// with its place.
pub(super) type MountId = u64;

/// The two files, or block devices, of one EROFS file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// The map.
    pub(super) source: &'a Path,
    /// The bytes.
    pub(super) device: &'a Path,
}

/// The mounts this process made, by their place. Changed on the mounting thread only.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<HashMap<PathBuf, MountId>>);

impl Made {
    pub(super) fn set(&self, at: &Path, id: MountId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(at.to_path_buf(), id);
    }

    pub(super) fn forget(&self, at: &Path) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(at);
    }

    /// Whether what a look-up of `at` finds is the mount that was made there.
    pub(super) fn is_top(&self, table: &MountTable, at: &Path) -> bool {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let top = table.top(at).filter(|top| top.fs_type == FS_TYPE);
        top.is_some_and(|top| made.get(at) == Some(&top.id))
    }
}

/// Shows `pair` at `at`: beneath the layer that is mounted there, which goes then, or at the empty place.
pub(super) fn put(made: &Made, pair: Pair<'_>, at: &Path) -> Result<(), MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    let id = match Detached::new(pair)? {
        Some(detached) => detached.put(&table, at)?,
        // Above what is there: both go together later.
        None => mount_in_one_step(pair, at)?,
    };
    made.set(at, id);
    Ok(())
}

/// Shows at `at` what this process mounted at `from`.
pub(super) fn bind(made: &Made, from: &Path, at: &Path) -> Result<(), MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    // Else the plain folder would be shown.
    if !made.is_top(&table, from) {
        return Err(MountError::NotOurs(from.to_path_buf()));
    }
    let id = Detached::copy_of(from)?.put(&table, at)?;
    made.set(at, id);
    Ok(())
}

/// Detaches every layer mount at `at`.
pub(super) fn unmount(made: &Made, at: &Path) -> Result<(), MountError> {
    made.forget(at);
    loop {
        let table = MountTable::read().map_err(MountError::Table)?;
        match table.top(at) {
            Some(top) if top.fs_type == FS_TYPE => detach(at)?,
            _ => return Ok(()),
        }
    }
}

/// Shows `pair` at those of `places` where this process mounted something; all share one file system.
pub(super) fn replace(made: &Made, pair: Pair<'_>, places: &[PathBuf]) -> Result<(), MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    let mut ours = places.iter().filter(|at| made.is_top(&table, at));
    let Some(first) = ours.next() else {
        return Ok(());
    };
    put(made, pair, first)?;
    ours.try_for_each(|at| bind(made, first, at))
}

/// A mount that is at no place yet. Dropped, it is gone.
struct Detached {
    fd: OwnedFd,
    id: MountId,
    what: PathBuf,
}

impl Detached {
    /// A new file system; `None` when a path is too long for `fsconfig`.
    fn new(pair: Pair<'_>) -> Result<Option<Detached>, MountError> {
        let Pair { source, device } = pair;
        let too_long = |path: &Path| path.as_os_str().len() > FSCONFIG_MAX;
        if too_long(source) || too_long(device) {
            return Ok(None);
        }
        let step = |step| refused(step, source);
        let fs = rustix::mount::fsopen(FS_TYPE, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(step("preparing an erofs mount of"))?;
        configure(&fs, pair).map_err(|error| MountError::Refused {
            step: "mounting erofs image",
            path: source.to_path_buf(),
            detail: messages(&fs),
            source: error,
        })?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let fd = rustix::mount::fsmount(&fs, flags, MountAttrFlags::MOUNT_ATTR_RDONLY)
            .map_err(step("making an erofs mount of"))?;
        Detached::from_fd(fd, source).map(Some)
    }

    /// Another mount of the file system that is mounted at `from`.
    fn copy_of(from: &Path) -> Result<Detached, MountError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_NO_AUTOMOUNT
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let fd = rustix::mount::open_tree(CWD, from, flags)
            .map_err(refused("copying the mount at", from))?;
        Detached::from_fd(fd, from)
    }

    fn from_fd(fd: OwnedFd, what: &Path) -> Result<Detached, MountError> {
        let id = mount_id(&fd).map_err(refused("identifying the mount of", what))?;
        Ok(Detached {
            fd,
            id,
            what: what.to_path_buf(),
        })
    }

    fn move_to(&self, at: &Path, flags: MoveMountFlags) -> Result<(), Errno> {
        let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&self.fd, "", CWD, at, flags)
    }

    /// Puts it at `at`, which is never uncovered meanwhile.
    fn put(self, table: &MountTable, at: &Path) -> Result<MountId, MountError> {
        match table.top(at) {
            Some(top) if top.fs_type == FS_TYPE => self.replace(at),
            _ => self.place(at),
        }
    }

    /// Puts it at `at`, above whatever is there.
    fn place(self, at: &Path) -> Result<MountId, MountError> {
        self.move_to(at, MoveMountFlags::empty())
            .map_err(refused("attaching a mount at", at))?;
        Ok(self.id)
    }

    /// Puts it beneath the mount at `at` and detaches that one.
    fn replace(self, at: &Path) -> Result<MountId, MountError> {
        match self.move_to(at, MOVE_MOUNT_BENEATH) {
            Ok(()) => detach(at).map(|()| self.id),
            // How mounts propagate here forbids it, or the kernel does not know it. On top of the old
            // one it serves as well; the old one goes when the place is unmounted.
            Err(Errno::INVAL) => {
                let (at_display, what) = (at.display(), self.what.display());
                tracing::debug!(at = %at_display, mount = %what, "new mount goes above the old one");
                self.place(at)
            }
            Err(source) => Err(refused("putting a mount beneath the one at", at)(source)),
        }
    }
}

fn mount_id(fd: &OwnedFd) -> Result<MountId, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id)
}

fn configure(fs: &OwnedFd, pair: Pair<'_>) -> Result<(), Errno> {
    rustix::mount::fsconfig_set_string(fs, "source", pair.source)?;
    rustix::mount::fsconfig_set_string(fs, "device", pair.device)?;
    rustix::mount::fsconfig_set_flag(fs, "ro")?;
    rustix::mount::fsconfig_create(fs)
}

/// What the kernel wrote about a mount that failed, for people.
fn messages(fs: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 512];
    while let Ok(len) = rustix::io::read(fs, &mut buffer) {
        let message = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default());
        text.push_str(": ");
        text.push_str(message.trim());
    }
    text
}

/// `mount(2)`, for paths that `fsconfig` does not take. Its option string is split at commas.
fn mount_in_one_step(pair: Pair<'_>, at: &Path) -> Result<MountId, MountError> {
    let unsayable = || MountError::Unsayable {
        meta: pair.source.to_path_buf(),
        device: pair.device.to_path_buf(),
    };
    let options = [b"device=", pair.device.as_os_str().as_bytes()].concat();
    if options.len() > MOUNT_DATA_MAX || options.contains(&b',') {
        return Err(unsayable());
    }
    let options = CString::new(options).map_err(|_| unsayable())?;
    rustix::mount::mount(
        pair.source,
        at,
        FS_TYPE,
        MountFlags::RDONLY,
        options.as_c_str(),
    )
    .map_err(refused("mounting erofs image", pair.source))?;
    let table = MountTable::read().map_err(MountError::Table)?;
    let top = table.top(at).ok_or(Errno::NOENT);
    top.map(|top| top.id)
        .map_err(refused("identifying the mount at", at))
}
