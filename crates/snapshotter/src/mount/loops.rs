//! Loop devices: attach a file, switch to another file, query the state.
//!
//! Every call opens `/dev/loopN`, so all of it runs on the mount thread. Devices are read-only,
//! have 4 KiB blocks and are released with their last user: the caller holds a [`Loop`] until the
//! mount that uses the device exists.
//!
//! A switch freezes the device's queue until every READ is answered. No signal ends that wait, so
//! callers must ensure that READs are answered.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::MountError;
use abi::Config;

/// Block size of every device in bytes.
const BLOCK: u32 = 4096;
/// Number of attempts to get a free device while others take it first.
const RACES: u32 = 64;
/// Pause before another attempt to open a device node that udev or devtmpfs has not created yet.
const PAUSE: Duration = Duration::from_millis(5);

const CONTROL: &str = "/dev/loop-control";
const SYSFS: &str = "/sys/block";

/// An open loop device. It stays attached at least as long as this value exists.
#[derive(Debug)]
pub(super) struct Loop {
    index: u32,
    device: File,
}

/// An attached device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attached {
    /// N of `/dev/loopN`.
    pub(super) index: u32,
    /// The name it was attached with.
    pub(super) label: String,
}

impl Loop {
    /// Attaches `backing` to a free device under the name `label`.
    ///
    /// `direct` bypasses the page cache of `backing`. For a FUSE file this is required, because
    /// only direct reads wait independently of each other; the call fails if the kernel does not
    /// support it.
    pub(super) fn attach(backing: &Path, label: &str, direct: bool) -> Result<Loop, MountError> {
        let file = File::open(backing).map_err(io("cannot open", backing))?;
        let control =
            File::open(CONTROL).map_err(|source| no_loop("cannot open", CONTROL, source))?;
        let config = Config::new(file.as_raw_fd(), BLOCK, label, direct);
        for _ in 0..RACES {
            let index = abi::free(&control)
                .map_err(|error| no_loop("cannot get a free device from", CONTROL, error.into()))?;
            let Some(device) = open_node(index)? else {
                continue;
            };
            match abi::configure(&device, &config) {
                Ok(()) => {
                    let attached = Loop { index, device };
                    if direct {
                        attached.require_direct(backing)?;
                    }
                    return Ok(attached);
                }
                // Another process took the device first.
                Err(Errno::BUSY) => {}
                Err(source) => {
                    return Err(super::refused("cannot attach a loop device to", backing)(
                        source,
                    ));
                }
            }
        }
        Err(no_loop(
            "every free device was taken by others:",
            CONTROL,
            Errno::BUSY.into(),
        ))
    }

    /// Opens device `index` if it is attached under the name `label`.
    pub(super) fn open(index: u32, label: &str) -> Option<Loop> {
        let device = open_node(index).ok()??;
        let info = abi::status(&device).ok()?;
        (info.label() == label).then_some(Loop { index, device })
    }

    /// N of `/dev/loopN`.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// `/dev/loopN`.
    pub(super) fn path(&self) -> PathBuf {
        node(self.index)
    }

    /// Switches the device to `backing`, which has the same size. Readers continue.
    pub(super) fn change(&self, backing: &Path) -> Result<(), MountError> {
        let file = File::open(backing).map_err(io("cannot open", backing))?;
        abi::change(&self.device, &file)
            .map_err(super::refused("cannot switch a loop device to", backing))
    }

    /// Turns direct I/O on or off. Returns false if the kernel does not support it on this file.
    pub(super) fn set_direct(&self, direct: bool) -> bool {
        self.is_direct() == direct
            || (abi::set_direct(&self.device, direct).is_ok() && self.is_direct() == direct)
    }

    /// Whether the device bypasses the page cache of its backing file.
    pub(super) fn is_direct(&self) -> bool {
        sysfs(self.index, "loop/dio").is_some_and(|value| value.trim() == "1")
    }

    /// Whether the device is backed by `path`, as far as the kernel can tell in this mount
    /// namespace.
    pub(super) fn is_on(&self, path: &Path) -> bool {
        sysfs(self.index, "loop/backing_file")
            .is_some_and(|found| Path::new(found.trim_end_matches('\n')) == path)
    }

    fn require_direct(&self, backing: &Path) -> Result<(), MountError> {
        if self.set_direct(true) {
            return Ok(());
        }
        Err(super::refused("cannot use direct I/O on", backing)(
            Errno::OPNOTSUPP,
        ))
    }

    /// Sets the readahead of the mount on this device. It affects only speed, so a failure is
    /// logged.
    pub(super) fn set_readahead(&self, kib: u32) {
        let setting = folder(self.index).join("queue/read_ahead_kb");
        if let Err(error) = std::fs::write(&setting, kib.to_string()) {
            tracing::debug!(path = %setting.display(), %error, "cannot set readahead, using the default");
        }
    }

    /// Releases the device. If it is in use, it is released with its last user.
    pub(super) fn clear(&self) -> Result<(), Errno> {
        abi::clear(&self.device)
    }
}

/// The attached devices of this machine whose names start with `prefix`.
pub(super) fn attached(prefix: &str) -> Vec<Attached> {
    let names = std::fs::read_dir(SYSFS).into_iter().flatten().flatten();
    let mut found: Vec<_> = names
        .filter_map(|entry| index_of(&entry.file_name().into_string().ok()?))
        .filter(|index| folder(*index).join("loop/backing_file").exists())
        .filter_map(|index| label_of(index).map(|label| Attached { index, label }))
        .filter(|attached| attached.label.starts_with(prefix))
        .collect();
    found.sort_by_key(|attached| attached.index);
    found
}

/// The name that device `index` was attached with.
pub(super) fn label_of(index: u32) -> Option<String> {
    let device = open_node(index).ok()??;
    abi::status(&device).ok().map(|info| info.label())
}

/// The number of a device node or of its sysfs directory.
pub(super) fn index_of(name: &str) -> Option<u32> {
    name.trim_start_matches("/dev/")
        .strip_prefix("loop")?
        .parse()
        .ok()
}

/// Returns `None` if the node does not exist yet or its device has been removed.
fn open_node(index: u32) -> Result<Option<File>, MountError> {
    let path = node(index);
    let open = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(&path);
    match open {
        Ok(device) => {
            let is_block = device
                .metadata()
                .is_ok_and(|found| found.file_type().is_block_device());
            Ok(is_block.then_some(device))
        }
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)
            ) =>
        {
            std::thread::sleep(PAUSE);
            Ok(None)
        }
        Err(error) => Err(no_loop("cannot open", &path.display().to_string(), error)),
    }
}

fn node(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{index}"))
}

fn folder(index: u32) -> PathBuf {
    Path::new(SYSFS).join(format!("loop{index}"))
}

fn sysfs(index: u32, name: &str) -> Option<String> {
    std::fs::read_to_string(folder(index).join(name)).ok()
}

fn io<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> MountError + 'a {
    move |error| {
        let errno = error
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error);
        super::refused(step, path)(errno)
    }
}

fn no_loop(step: &'static str, what: &str, source: std::io::Error) -> MountError {
    let remedy = match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            "load the kernel module `loop`, and mount the host's /dev in the container"
        }
        Some(libc::EACCES | libc::EPERM) => "run as root with access to loop devices",
        _ => {
            "raise `max_loop` of the kernel module `loop`, or detach unused loop devices (see `losetup -a`)"
        }
    };
    MountError::NoLoop {
        step,
        what: what.to_owned(),
        remedy,
        source,
    }
}

/// JUSTIFICATION: no crate wraps the ioctls of loop devices. SAFETY of the module: every call
/// passes an open descriptor and either integers or a pointer to a structure with the layout of
/// `linux/loop.h` that lives for the call.
mod abi {
    #![allow(unsafe_code, reason = "ioctls of the loop driver have no safe wrapper")]

    use super::{AsRawFd, CStr, Errno, File};

    const CLEAR_FD: libc::Ioctl = 0x4C01;
    const GET_STATUS64: libc::Ioctl = 0x4C05;
    const CHANGE_FD: libc::Ioctl = 0x4C06;
    const SET_DIRECT_IO: libc::Ioctl = 0x4C08;
    const CONFIGURE: libc::Ioctl = 0x4C0A;
    const CONTROL_GET_FREE: libc::Ioctl = 0x4C82;

    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;

    const NAME: usize = 64;

    /// `struct loop_info64`.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(super) struct Info {
        device: u64,
        inode: u64,
        rdevice: u64,
        offset: u64,
        size_limit: u64,
        number: u32,
        encrypt_type: u32,
        encrypt_key_size: u32,
        flags: u32,
        file_name: [u8; NAME],
        crypt_name: [u8; NAME],
        encrypt_key: [u8; 32],
        init: [u64; 2],
    }

    /// `struct loop_config`.
    #[repr(C)]
    pub(super) struct Config {
        fd: u32,
        block_size: u32,
        info: Info,
        reserved: [u64; 8],
    }

    const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

    impl Info {
        const ZERO: Info = Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; NAME],
            crypt_name: [0; NAME],
            encrypt_key: [0; 32],
            init: [0; 2],
        };

        pub(super) fn label(&self) -> String {
            CStr::from_bytes_until_nul(&self.file_name)
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default()
        }
    }

    impl Config {
        pub(super) fn new(fd: i32, block_size: u32, label: &str, direct: bool) -> Config {
            let mut info = Info::ZERO;
            info.flags = READ_ONLY | AUTOCLEAR | if direct { DIRECT_IO } else { 0 };
            // The last byte stays zero.
            for (to, from) in info.file_name.iter_mut().take(NAME - 1).zip(label.bytes()) {
                *to = from;
            }
            Config {
                fd: fd.cast_unsigned(),
                block_size,
                info,
                reserved: [0; 8],
            }
        }
    }

    fn call(file: &File, request: libc::Ioctl, argument: u64) -> Result<i32, Errno> {
        // SAFETY: see the module; callers pass a pointer only for requests that expect one.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        } else {
            Ok(result)
        }
    }

    pub(super) fn free(control: &File) -> Result<u32, Errno> {
        call(control, CONTROL_GET_FREE, 0).map(i32::cast_unsigned)
    }

    pub(super) fn configure(device: &File, config: &Config) -> Result<(), Errno> {
        call(device, CONFIGURE, std::ptr::from_ref(config) as u64).map(drop)
    }

    pub(super) fn change(device: &File, backing: &File) -> Result<(), Errno> {
        let fd = u64::from(backing.as_raw_fd().cast_unsigned());
        call(device, CHANGE_FD, fd).map(drop)
    }

    pub(super) fn set_direct(device: &File, direct: bool) -> Result<(), Errno> {
        call(device, SET_DIRECT_IO, u64::from(direct)).map(drop)
    }

    pub(super) fn clear(device: &File) -> Result<(), Errno> {
        call(device, CLEAR_FD, 0).map(drop)
    }

    pub(super) fn status(device: &File) -> Result<Info, Errno> {
        let mut info = Info::ZERO;
        call(device, GET_STATUS64, std::ptr::from_mut(&mut info) as u64)?;
        Ok(info)
    }
}
