//! Attaches EROFS mounts to their mount points and detaches them. Runs on the mount thread.
//!
//! A mount is created detached (`fsopen`, `fsmount`) and then attached. **A mount point is never
//! uncovered**: a new mount goes beneath the old one, which is then detached, or above it if the
//! kernel cannot do that. Only paths that are too long for `fsconfig` use `mount(2)`.
//!
//! *Flags*: mounts are read-only, without further flags. A container can get a snapshot of one
//! layer as a bind mount, which inherits the flags. With `nodev` or `nosuid`, whether device nodes
//! and setuid programs work would depend on the number of layers in the image.

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

use super::mapped::is_copy;
use super::table::MountTable;
use super::{MountError, detach, refused};

/// File system type in the kernel's mount table.
pub(super) const FS_TYPE: &str = "erofs";

/// Longest string that `fsconfig` accepts, in bytes (kernel limit: 256 with the NUL).
const FSCONFIG_MAX: usize = 255;

/// Longest option string of `mount(2)` in bytes (kernel limit: one page with the NUL).
const MOUNT_DATA_MAX: usize = 4095;

/// `MOVE_MOUNT_BENEATH` (Linux 6.5). rustix does not define it.
const MOVE_MOUNT_BENEATH: MoveMountFlags = MoveMountFlags::from_bits_retain(0x200);

/// Identifies a mount in the kernel's mount table. The kernel reuses IDs, so an ID is meaningful
/// only together with its mount point.
pub(super) type MountId = u64;

/// The two files, or block devices, of one EROFS file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// The metadata image.
    pub(super) source: &'a Path,
    /// The data file or device.
    pub(super) device: &'a Path,
}

/// The mounts this process made, by mount point. Changed only on the mount thread.
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

    /// Whether the topmost mount at `at` is the one this process made there.
    pub(super) fn is_top(&self, table: &MountTable, at: &Path) -> bool {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let top = table.top(at).filter(|top| top.fs_type == FS_TYPE);
        top.is_some_and(|top| made.get(at) == Some(&top.id))
    }
}

/// Mounts `pair` at `at`. A layer already mounted there is replaced without uncovering `at`.
pub(super) fn put(made: &Made, pair: Pair<'_>, at: &Path) -> Result<(), MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    let id = match Detached::new(pair)? {
        Some(detached) => detached.put(&table, at)?,
        // This goes above an existing mount; both are detached together later.
        None => mount_in_one_step(pair, at)?,
    };
    made.set(at, id);
    Ok(())
}

/// Mounts at `at` what this process mounted at `from`.
pub(super) fn bind(made: &Made, from: &Path, at: &Path) -> Result<(), MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    // Without this check, the underlying directory could be bind-mounted.
    if !made.is_top(&table, from) {
        return Err(MountError::NotOurs(from.to_path_buf()));
    }
    let id = Detached::copy_of(from)?.put(&table, at)?;
    made.set(at, id);
    Ok(())
}

/// Detaches every layer mount and ID-mapped copy at `at`.
pub(super) fn unmount(made: &Made, at: &Path) -> Result<(), MountError> {
    made.forget(at);
    loop {
        let table = MountTable::read().map_err(MountError::Table)?;
        match table.top(at) {
            Some(top) if top.fs_type == FS_TYPE || is_copy(top) => detach(at)?,
            _ => return Ok(()),
        }
    }
}

/// Mounts `pair` at those of `places` where this process has a mount. All share one file system.
pub(super) fn replace(made: &Made, pair: Pair<'_>, places: &[PathBuf]) -> Result<(), MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    let mut ours = places.iter().filter(|at| made.is_top(&table, at));
    let Some(first) = ours.next() else {
        return Ok(());
    };
    put(made, pair, first)?;
    ours.try_for_each(|at| bind(made, first, at))
}

/// A mount that is not attached anywhere. It ends when dropped.
pub(super) struct Detached {
    fd: OwnedFd,
    id: MountId,
    what: PathBuf,
}

impl Detached {
    /// Creates a file system. Returns `None` if a path is too long for `fsconfig`.
    fn new(pair: Pair<'_>) -> Result<Option<Detached>, MountError> {
        let Pair { source, device } = pair;
        let too_long = |path: &Path| path.as_os_str().len() > FSCONFIG_MAX;
        if too_long(source) || too_long(device) {
            return Ok(None);
        }
        let step = |step| refused(step, source);
        let fs = rustix::mount::fsopen(FS_TYPE, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(step("cannot create an EROFS context for"))?;
        configure(&fs, pair).map_err(|error| MountError::Refused {
            step: "cannot mount EROFS image",
            path: source.to_path_buf(),
            detail: messages(&fs),
            source: error,
        })?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let fd = rustix::mount::fsmount(&fs, flags, MountAttrFlags::MOUNT_ATTR_RDONLY)
            .map_err(step("cannot create an EROFS mount of"))?;
        Detached::from_fd(fd, source).map(Some)
    }

    /// Creates another mount of what is at `from`: a file system or a directory.
    pub(super) fn copy_of(from: &Path) -> Result<Detached, MountError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_NO_AUTOMOUNT
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let fd = rustix::mount::open_tree(CWD, from, flags)
            .map_err(refused("cannot copy the mount at", from))?;
        Detached::from_fd(fd, from)
    }

    fn from_fd(fd: OwnedFd, what: &Path) -> Result<Detached, MountError> {
        let id = mount_id(&fd).map_err(refused("cannot identify the mount of", what))?;
        Ok(Detached {
            fd,
            id,
            what: what.to_path_buf(),
        })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn move_to(&self, at: &Path, flags: MoveMountFlags) -> Result<(), Errno> {
        let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&self.fd, "", CWD, at, flags)
    }

    /// Attaches the mount at `at` without uncovering `at`.
    fn put(self, table: &MountTable, at: &Path) -> Result<MountId, MountError> {
        match table.top(at) {
            Some(top) if top.fs_type == FS_TYPE => self.replace(at),
            _ => self.place(at),
        }
    }

    /// Attaches the mount at `at`, above any existing mount.
    pub(super) fn place(self, at: &Path) -> Result<MountId, MountError> {
        self.move_to(at, MoveMountFlags::empty())
            .map_err(refused("cannot attach a mount at", at))?;
        Ok(self.id)
    }

    /// Attaches the mount beneath the one at `at` and detaches that one.
    fn replace(self, at: &Path) -> Result<MountId, MountError> {
        match self.move_to(at, MOVE_MOUNT_BENEATH) {
            Ok(()) => detach(at).map(|()| self.id),
            // Mount propagation forbids it, or the kernel does not support it. Above the old mount
            // it works as well; the old one is detached when the mount point is unmounted.
            Err(Errno::INVAL) => {
                let (at_display, what) = (at.display(), self.what.display());
                tracing::debug!(at = %at_display, mount = %what, "attaching the new mount above the old one");
                self.place(at)
            }
            Err(source) => Err(refused("cannot attach a mount beneath the one at", at)(
                source,
            )),
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

/// Reads the kernel's messages about a failed mount.
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

/// Mounts with `mount(2)`, for paths that `fsconfig` rejects. Commas separate its options.
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
    .map_err(refused("cannot mount EROFS image", pair.source))?;
    let table = MountTable::read().map_err(MountError::Table)?;
    let top = table.top(at).ok_or(Errno::NOENT);
    top.map(|top| top.id)
        .map_err(refused("cannot identify the mount at", at))
}
