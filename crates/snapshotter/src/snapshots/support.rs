//! Checks that plain overlay snapshots work in a directory. What a check that was killed leaves there
//! is removed by [`sweep`].

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;
use tracing::warn;

/// How the names of the directories of checks begin.
const PREFIX: &str = "check-";
/// Mount point in the directory of a check.
const MERGED: &str = "merged";

/// Why overlay snapshots do not work in a directory.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// The file system does not report the types of directory entries.
    #[error("{} does not support d_type: reformat it with one that does", .0.display())]
    NoDirectoryTypes(PathBuf),
    /// overlayfs cannot be mounted in the directory.
    #[error("cannot mount overlayfs in {}; --root must be on a file system such as ext4 or xfs, not on overlayfs", path.display())]
    NoOverlay {
        /// The directory.
        path: PathBuf,
        /// The error of mount(2).
        #[source]
        source: io::Error,
    },
    /// The directory cannot be examined.
    #[error("cannot examine {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
}

/// Accepts a check that fails because the disk is full if it passed at an earlier start.
pub(crate) fn unless_full(
    checked: Result<(), Unsupported>,
    passed_before: bool,
) -> Result<(), Unsupported> {
    match checked {
        Err(Unsupported::Io { path, source })
            if passed_before
                && matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
        {
            warn!(
                path = path.display().to_string(),
                "the disk is full, using the result of an earlier check"
            );
            Ok(())
        }
        other => other,
    }
}

/// Checks that the file system of `root` reports the types of directory entries.
pub(crate) fn check_directory_types(root: &Path) -> Result<(), Unsupported> {
    let tell = || -> io::Result<bool> {
        let probe = folder(root)?;
        fs::write(probe.path().join("file"), b"")?;
        let directory = rustix::fs::openat(
            CWD,
            probe.path(),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut buffer = Vec::with_capacity(4096);
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        let mut told = true;
        while let Some(entry) = entries.next() {
            told &= entry?.file_type() != FileType::Unknown;
        }
        Ok(told)
    };
    match tell() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Unsupported::NoDirectoryTypes(root.to_owned())),
        Err(source) => Err(Unsupported::Io {
            path: root.to_owned(),
            source,
        }),
    }
}

/// Mounts and unmounts an overlay of two lower directories below `root`.
pub(crate) fn check_overlay(root: &Path) -> Result<(), Unsupported> {
    let io = |source| Unsupported::Io {
        path: root.to_owned(),
        source,
    };
    let probe = folder(root).map_err(io)?;
    let at = |name: &str| probe.path().join(name);
    for name in ["lower1", "lower2", "upper", "work", MERGED] {
        fs::create_dir(at(name)).map_err(io)?;
    }
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={}",
        at("lower2").display(),
        at("lower1").display(),
        at("upper").display(),
        at("work").display(),
    );
    let options = CString::new(options).map_err(|error| io(error.into()))?;
    mount(
        "overlay",
        at(MERGED),
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .map_err(|error| Unsupported::NoOverlay {
        path: root.to_owned(),
        source: error.into(),
    })?;
    unmount(at(MERGED), UnmountFlags::DETACH).map_err(|error| io(error.into()))
}

fn folder(root: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(PREFIX).tempdir_in(root)
}

/// Removes the mounts and directories of checks that were killed. Failures are logged.
pub(crate) fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        let unmounted = match unmount(path.join(MERGED), UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(error) => Err(io::Error::from(error)),
        };
        if let Err(error) = unmounted.and_then(|()| fs::remove_dir_all(&path)) {
            let path = path.display().to_string();
            warn!(path, error = %error, "cannot remove the directory of an earlier check");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_does_not_prevent_a_restart() {
        let full = |kind| {
            Err(Unsupported::Io {
                path: "/r".into(),
                source: kind,
            })
        };
        let space = || io::Error::from(io::ErrorKind::StorageFull);
        assert!(unless_full(full(space()), true).is_ok());
        assert!(unless_full(full(space()), false).is_err());
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(unless_full(full(other), true).is_err());
    }

    #[test]
    fn this_machine_supports_overlay() {
        let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        check_directory_types(root.path()).unwrap();
        check_overlay(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_root_on_overlayfs_is_refused_with_the_remedy() {
        let below = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let at = |name: &str| below.path().join(name);
        for name in ["lower", "upper", "work", MERGED] {
            fs::create_dir(at(name)).unwrap();
        }
        let [lower, upper, work] = ["lower", "upper", "work"].map(at);
        let (lower, upper, work) = (lower.display(), upper.display(), work.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let options = CString::new(options).unwrap();
        let flags = MountFlags::empty();
        mount("overlay", at(MERGED), "overlay", flags, options.as_c_str()).unwrap();
        let refused = check_overlay(&at(MERGED));
        unmount(at(MERGED), UnmountFlags::DETACH).unwrap();
        let refused = refused.expect_err("overlayfs on overlayfs").to_string();
        assert!(refused.contains("--root must be on"), "{refused}");
    }

    #[test]
    fn what_a_killed_check_leaves_is_removed() {
        let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for number in 0..2 {
            let left = folder(root.path()).unwrap().keep();
            let mounted = left.join(MERGED);
            fs::create_dir(&mounted).unwrap();
            if number == 0 {
                let flags = MountFlags::empty();
                mount("tmpfs", &mounted, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
                fs::write(mounted.join("file"), "").unwrap();
            }
        }
        fs::create_dir(root.path().join("snapshots")).unwrap();
        sweep(root.path());
        let names = fs::read_dir(root.path()).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["snapshots"]);
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!table.contains(root.path().to_str().unwrap()), "{table}");
    }
}
