//! The erofs way: the kernel mounts `meta` from the file, without a loop device.
//!
//! A mount is made detached (`fsopen`, `fsmount`) and then put in place, above or beneath what is
//! there. Only when a path is longer than `fsconfig` takes does `mount(2)` do it in one step.
//!
//! *Flags*: read-only and nothing else. Overlayfs goes by the flags of its own mount, but a snapshot
//! of one layer can be given to a container as a bind mount, and a bind mount inherits: with `nodev`
//! or `nosuid` here, device nodes and setuid programs of an image would depend on how many layers it
//! has. Unpacked layers carry no such flags either; both lie below a folder that only root can enter.
//!
//! *Readahead*: the kernel gives each of these mounts a bdi of its own, `erofs-N`, whose number is
//! found by comparing the list before and after, which the one mounting thread makes unambiguous as
//! far as this process goes.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
};

use super::table::MountTable;
use super::thread::MountThread;
use super::{LayerImage, MountError, Mounter, Supply, Way, detach, plain, refused};

/// File system type in the kernel's table.
pub(super) const FS_TYPE: &str = "erofs";

/// Longest string that `fsconfig` takes, in bytes (kernel limit: 256 with the NUL).
const FSCONFIG_MAX: usize = 255;

/// Longest option string of `mount(2)`: a page with the NUL (kernel limit).
const MOUNT_DATA_MAX: usize = 4095;

/// `MOVE_MOUNT_BENEATH` (Linux 6.5), which rustix has no name for.
const MOVE_MOUNT_BENEATH: MoveMountFlags = MoveMountFlags::from_bits_retain(0x200);

/// Readahead in KiB. From a FUSE file less than could be had, since a mapping fetches as much around
/// each fault, and each span it touches may have to come from far away. Sequential reads of bytes that
/// are there, in GB/s for 128, 256 and 1024 KiB: 4.3, 5.2 and 7.1 over a FUSE file, 8.1, 9.1 and 9.8
/// over plain data (measured, Linux 6.18, two cores).
const READ_AHEAD_ON_DEMAND_KB: u32 = 256;
const READ_AHEAD_COMPLETE_KB: u32 = 1024;

const BDI_FOLDER: &str = "/sys/class/bdi";

/// Identifies a mount in the kernel's table. The kernel uses numbers again, so one only counts together
/// with its place.
type MountId = u64;

/// Mounts layers as EROFS.
#[derive(Debug)]
pub(super) struct ErofsMounter {
    thread: MountThread,
    made: Arc<Made>,
}

/// The mounts this process made, by their place. Changed on the mounting thread only.
#[derive(Debug, Default)]
struct Made(Mutex<HashMap<PathBuf, MountId>>);

impl Made {
    fn set(&self, at: &Path, id: MountId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(at.to_path_buf(), id);
    }

    fn forget(&self, at: &Path) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(at);
    }

    /// Whether what a look-up of `at` finds is the mount that was made there.
    fn is_top(&self, table: &MountTable, at: &Path) -> bool {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let top = table.top(at).filter(|top| top.fs_type == FS_TYPE);
        top.is_some_and(|top| made.get(at) == Some(&top.id))
    }
}

impl ErofsMounter {
    pub(super) fn new(thread: MountThread) -> ErofsMounter {
        ErofsMounter {
            thread,
            made: Arc::default(),
        }
    }

    /// Runs a step on the mounting thread.
    async fn on_thread(
        &self,
        step: impl FnOnce(&Made) -> Result<(), MountError> + Send + 'static,
    ) -> Result<(), MountError> {
        let made = Arc::clone(&self.made);
        self.thread.run(move || step(&made)).await?
    }
}

#[async_trait]
impl Mounter for ErofsMounter {
    fn way(&self) -> Way {
        Way::Erofs
    }

    async fn mount(&self, image: &LayerImage, at: &Path) -> Result<(), MountError> {
        let (image, at) = (checked(image)?, plain(at)?.to_path_buf());
        self.on_thread(move |made| {
            unmount_now(made, &at)?;
            made.set(&at, mount_now(&image, &at)?);
            Ok(())
        })
        .await
    }

    async fn bind(&self, from: &Path, at: &Path) -> Result<(), MountError> {
        let (from, at) = (plain(from)?.to_path_buf(), plain(at)?.to_path_buf());
        self.on_thread(move |made| {
            // Else the plain folder would be shown.
            let table = MountTable::read().map_err(MountError::Table)?;
            if !made.is_top(&table, &from) {
                return Err(MountError::NotOurs(from));
            }
            let copy = Detached::copy_of(&from)?;
            unmount_now(made, &at)?;
            made.set(&at, copy.place(&at)?);
            Ok(())
        })
        .await
    }

    async fn replace(&self, image: &LayerImage, at: &[PathBuf]) -> Result<(), MountError> {
        let image = checked(image)?;
        let places: Vec<_> = at
            .iter()
            .map(|at| plain(at).map(Path::to_path_buf))
            .collect::<Result<_, _>>()?;
        self.on_thread(move |made| replace_now(made, &image, &places))
            .await
    }

    async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        let at = plain(at)?.to_path_buf();
        self.on_thread(move |made| unmount_now(made, &at)).await
    }

    fn is_ours(&self, table: &MountTable, at: &Path) -> bool {
        self.made.is_top(table, at)
    }
}

fn checked(image: &LayerImage) -> Result<LayerImage, MountError> {
    plain(&image.meta)?;
    plain(&image.device)?;
    Ok(image.clone())
}

/// Mounts an image at `at`; for the mounting thread.
pub(super) fn mount_now(image: &LayerImage, at: &Path) -> Result<MountId, MountError> {
    match Detached::new(image)? {
        Some(detached) => detached.place(at),
        None => mount_in_one_step(image, at),
    }
}

/// Detaches every layer mount at `at`; for the mounting thread.
fn unmount_now(made: &Made, at: &Path) -> Result<(), MountError> {
    made.forget(at);
    loop {
        let table = MountTable::read().map_err(MountError::Table)?;
        match table.top(at) {
            Some(top) if top.fs_type == FS_TYPE => detach(at)?,
            _ => return Ok(()),
        }
    }
}

fn replace_now(made: &Made, image: &LayerImage, places: &[PathBuf]) -> Result<(), MountError> {
    let table = MountTable::read().map_err(MountError::Table)?;
    let mut first: Option<&PathBuf> = None;
    for at in places.iter().filter(|at| made.is_top(&table, at)) {
        let new = match first {
            Some(first) => Some(Detached::copy_of(first)?),
            None => Detached::new(image)?,
        };
        let id = match new {
            Some(new) => new.replace(at)?,
            // No detached mount for paths of this length: it lies on top of the old one, which then
            // goes together with it.
            None => mount_in_one_step(image, at)?,
        };
        made.set(at, id);
        first = first.or(Some(at));
    }
    Ok(())
}

/// A mount that is at no place yet. Dropped, it is gone.
struct Detached {
    fd: OwnedFd,
    id: MountId,
    what: PathBuf,
}

impl Detached {
    /// A new file system; `None` when a path is too long for `fsconfig`.
    fn new(image: &LayerImage) -> Result<Option<Detached>, MountError> {
        let paths = [&image.meta, &image.device];
        if paths
            .iter()
            .any(|path| path.as_os_str().len() > FSCONFIG_MAX)
        {
            return Ok(None);
        }
        let step = |step| refused(step, &image.meta);
        let fs = rustix::mount::fsopen(FS_TYPE, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(step("preparing an erofs mount of"))?;
        with_readahead(image.supply, || configure(&fs, image)).map_err(|source| {
            MountError::Refused {
                step: "mounting erofs image",
                path: image.meta.clone(),
                detail: messages(&fs),
                source,
            }
        })?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let fd = rustix::mount::fsmount(&fs, flags, MountAttrFlags::MOUNT_ATTR_RDONLY)
            .map_err(step("making an erofs mount of"))?;
        Detached::from_fd(fd, &image.meta).map(Some)
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

fn configure(fs: &OwnedFd, image: &LayerImage) -> Result<(), Errno> {
    rustix::mount::fsconfig_set_string(fs, "source", &image.meta)?;
    rustix::mount::fsconfig_set_string(fs, "device", &image.device)?;
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
fn mount_in_one_step(image: &LayerImage, at: &Path) -> Result<MountId, MountError> {
    let unsayable = || MountError::Unsayable {
        meta: image.meta.clone(),
        device: image.device.clone(),
    };
    let options = [b"device=", image.device.as_os_str().as_bytes()].concat();
    if options.len() > MOUNT_DATA_MAX || options.contains(&b',') {
        return Err(unsayable());
    }
    let options = CString::new(options).map_err(|_| unsayable())?;
    with_readahead(image.supply, || {
        rustix::mount::mount(
            &image.meta,
            at,
            FS_TYPE,
            MountFlags::RDONLY,
            options.as_c_str(),
        )
    })
    .map_err(refused("mounting erofs image", &image.meta))?;
    let table = MountTable::read().map_err(MountError::Table)?;
    let top = table.top(at).ok_or(Errno::NOENT);
    top.map(|top| top.id)
        .map_err(refused("identifying the mount at", at))
}

/// Makes a file system and sets the readahead of the bdi that appears with it.
fn with_readahead(supply: Supply, make: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let before = bdis();
    make()?;
    let new: Vec<_> = bdis().difference(&before).cloned().collect();
    let kib = match supply {
        Supply::OnDemand => READ_AHEAD_ON_DEMAND_KB,
        Supply::Complete => READ_AHEAD_COMPLETE_KB,
    };
    // It is about speed only: a mount without it works.
    match new.as_slice() {
        [bdi] => {
            let setting = Path::new(BDI_FOLDER).join(bdi).join("read_ahead_kb");
            if let Err(error) = std::fs::write(&setting, kib.to_string()) {
                tracing::debug!(path = %setting.display(), %error, "readahead stays as it is");
            }
        }
        // Somebody else mounted in the same moment, or there is no sysfs.
        several => tracing::debug!(found = several.len(), "bdi of the new mount is not known"),
    }
    Ok(())
}

/// The bdis of EROFS mounts that are files.
fn bdis() -> BTreeSet<OsString> {
    let names = std::fs::read_dir(BDI_FOLDER)
        .into_iter()
        .flatten()
        .flatten();
    names
        .map(|entry| entry.file_name())
        .filter(|name| name.as_bytes().starts_with(b"erofs-"))
        .collect()
}
