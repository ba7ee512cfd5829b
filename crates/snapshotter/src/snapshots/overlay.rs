//! The mounts that containerd is told to make, and whether this machine can make them.
//!
//! | kind | parents | mount |
//! |--|--|--|
//! | active | none | bind of its own `fs`, `rw` |
//! | view | none | bind of its own `fs`, `ro` |
//! | view | one | bind of the parent's `fs`, `ro` |
//! | active | one or more | overlay: `workdir`, `upperdir`, `lowerdir` in this order, which tests elsewhere pin |
//! | view | two or more | overlay: `lowerdir` |
//!
//! Inside a user namespace's map (`ids`) a view of one is an overlay too, and overlays say `uidmap=` and `gidmap=`, which
//! containerd takes out and follows.
//!
//! There is no `index=off`. `xino=on`, where a layer of ours is among the parents and the kernel takes it, gives
//! the whole root file system one `st_dev`. `userxattr` comes last, and only inside a user namespace, where the kernel does not
//! let us write `trusted.*`.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tracing::warn;

use super::directories::Directories;
use super::ids::IdMap;
use super::metadata::{Kind, SnapshotId};

/// One mount for containerd: the arguments of mount(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// File system type, or `bind`.
    pub kind: &'static str,
    /// What is mounted.
    pub source: String,
    /// Options in their order.
    pub options: Vec<String>,
}

impl Mount {
    fn bind(source: &Path, access: &str) -> Self {
        Self {
            kind: "bind",
            source: source.display().to_string(),
            options: vec![access.to_owned(), "rbind".to_owned()],
        }
    }
}

/// Options that depend on this machine and on the parents.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extra {
    pub(crate) idmap: Option<IdMap>,
    pub(crate) xino: bool,
    pub(crate) userxattr: bool,
}

/// The mount of a snapshot whose parents are `parents`, top-most first.
pub(crate) fn mount_of(
    directories: &Directories,
    kind: Kind,
    id: SnapshotId,
    parents: &[SnapshotId],
    extra: &Extra,
) -> Mount {
    match (kind, parents) {
        (Kind::Active, []) => Mount::bind(&directories.fs(id), "rw"),
        (_, []) => Mount::bind(&directories.fs(id), "ro"),
        (Kind::View | Kind::Committed, [parent]) if extra.idmap.is_none() => {
            Mount::bind(&directories.fs(*parent), "ro")
        }
        (_, parents) => {
            let mut options = Vec::with_capacity(7);
            if kind == Kind::Active {
                options.push(format!("workdir={}", directories.work(id).display()));
                options.push(format!("upperdir={}", directories.fs(id).display()));
            }
            let mut lower: Vec<_> = parents
                .iter()
                .map(|id| directories.fs(*id).display().to_string())
                .collect();
            if kind != Kind::Active && lower.len() == 1 {
                // Its own is empty; overlayfs wants two.
                lower.push(directories.fs(id).display().to_string());
            }
            options.push(format!("lowerdir={}", lower.join(":")));
            options.extend(extra.idmap.iter().flat_map(IdMap::options));
            if extra.xino {
                options.push("xino=on".to_owned());
            }
            if extra.userxattr {
                options.push("userxattr".to_owned());
            }
            Mount {
                kind: "overlay",
                source: "overlay".to_owned(),
                options,
            }
        }
    }
}

/// Why plain overlay snapshots cannot work in a directory.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// The file system does not say what a directory's entries are.
    #[error("{} does not support d_type: reformat it with one that does", .0.display())]
    NoDirectoryTypes(PathBuf),
    /// overlayfs cannot be mounted on it.
    #[error("overlayfs cannot be mounted in {}", path.display())]
    NoOverlay {
        /// The directory.
        path: PathBuf,
        /// mount(2)'s error.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be examined.
    #[error("cannot examine {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A check that needs space counts as passed on a full disk where the check of an earlier start passed.
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
                "the disk is full: an earlier start has examined it"
            );
            Ok(())
        }
        other => other,
    }
}

/// Checks that directories below `root` tell the types of their entries.
pub(crate) fn check_directory_types(root: &Path) -> Result<(), Unsupported> {
    let tell = || -> io::Result<bool> {
        let probe = tempfile::tempdir_in(root)?;
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

/// Mounts an overlay of two lower directories below `root`, and unmounts it.
pub(crate) fn check_overlay(root: &Path) -> Result<(), Unsupported> {
    let io = |source| Unsupported::Io {
        path: root.to_owned(),
        source,
    };
    let probe = tempfile::tempdir_in(root).map_err(io)?;
    let at = |name: &str| probe.path().join(name);
    for name in ["lower1", "lower2", "upper", "work", "merged"] {
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
        at("merged"),
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .map_err(|error| Unsupported::NoOverlay {
        path: root.to_owned(),
        source: error.into(),
    })?;
    unmount(at("merged"), UnmountFlags::DETACH).map_err(|error| io(error.into()))
}

/// Whether overlay mounts of this process need `userxattr`: inside a user namespace, on every kernel this runs on.
pub fn needs_userxattr() -> bool {
    // The initial user namespace maps all ids to themselves.
    fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_ascii_whitespace().eq(["0", "0", "4294967295"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: Kind, parents: &[u64], with_all: bool) -> Mount {
        let directories = Directories::new(Path::new("/r"));
        let parents: Vec<_> = parents.iter().copied().map(SnapshotId).collect();
        let extra = Extra {
            xino: with_all,
            userxattr: with_all,
            idmap: None,
        };
        mount_of(&directories, kind, SnapshotId(9), &parents, &extra)
    }

    #[test]
    fn a_full_disk_is_no_reason_not_to_start_again() {
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
    fn mounts_have_the_options_and_the_order_that_containerd_knows() {
        let bind = |source: &str, access: &str| Mount::bind(Path::new(source), access);
        let overlay = |options: &[&str]| Mount {
            kind: "overlay",
            source: "overlay".to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let work = "workdir=/r/snapshots/9/work";
        let upper = "upperdir=/r/snapshots/9/fs";
        let two = "lowerdir=/r/snapshots/2/fs:/r/snapshots/1/fs";
        let cases = [
            (
                options(Kind::Active, &[], false),
                bind("/r/snapshots/9/fs", "rw"),
            ),
            (
                options(Kind::View, &[], true),
                bind("/r/snapshots/9/fs", "ro"),
            ),
            (
                options(Kind::View, &[1], true),
                bind("/r/snapshots/1/fs", "ro"),
            ),
            (
                options(Kind::Active, &[1], false),
                overlay(&[work, upper, "lowerdir=/r/snapshots/1/fs"]),
            ),
            (
                options(Kind::Active, &[2, 1], true),
                overlay(&[work, upper, two, "xino=on", "userxattr"]),
            ),
            (options(Kind::View, &[2, 1], false), overlay(&[two])),
        ];
        for (found, wanted) in cases {
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn this_machine_supports_overlay() {
        let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        check_directory_types(root.path()).unwrap();
        check_overlay(root.path()).unwrap();
    }
}
