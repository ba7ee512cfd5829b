//! The mounts that containerd makes for a snapshot.
//!
//! | kind | parents | mount |
//! |--|--|--|
//! | active | none | bind of its own `fs`, `rw` |
//! | view | none | bind of its own `fs`, `ro` |
//! | view | one | bind of the parent's `fs`, `ro` |
//! | active | one or more | overlay: `workdir`, `upperdir`, `lowerdir`, in this order (tests depend on it) |
//! | view | two or more | overlay: `lowerdir` |
//!
//! With an ID map (`ids`), the directories of the parents are their ID-mapped copies. With one of
//! our layers among the parents and kernel support, `xino=on` gives the root file system a single
//! `st_dev`. `userxattr` comes last,
//! and only in a user namespace, where the kernel does not allow `trusted.*`. There is no
//! `index=off`.

use std::fs;
use std::path::{Path, PathBuf};

use super::directories::Directories;
use super::metadata::{Kind, SnapshotId};

/// One mount for containerd: the arguments of mount(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// File system type, or `bind`.
    pub kind: &'static str,
    /// Source of the mount.
    pub source: String,
    /// Options, in order.
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

/// Options that depend on the machine and on the parents.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extra {
    pub(crate) xino: bool,
    pub(crate) userxattr: bool,
}

/// The mount of a snapshot on these directories of its parents, topmost first.
pub(crate) fn mount_of(
    directories: &Directories,
    kind: Kind,
    id: SnapshotId,
    parents: &[PathBuf],
    extra: Extra,
) -> Mount {
    match (kind, parents) {
        (Kind::Active, []) => Mount::bind(&directories.fs(id), "rw"),
        (_, []) => Mount::bind(&directories.fs(id), "ro"),
        (Kind::View | Kind::Committed, [parent]) => Mount::bind(parent, "ro"),
        (_, parents) => {
            let mut options = Vec::with_capacity(5);
            if kind == Kind::Active {
                options.push(format!("workdir={}", directories.work(id).display()));
                options.push(format!("upperdir={}", directories.fs(id).display()));
            }
            let lower: Vec<_> = parents
                .iter()
                .map(|parent| parent.display().to_string())
                .collect();
            options.push(format!("lowerdir={}", lower.join(":")));
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

/// Whether overlay mounts of this process need `userxattr`: inside a user namespace.
pub fn needs_userxattr() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_initial(&map))
}

/// Whether this is the map of the initial user namespace, which maps all IDs to themselves.
fn is_initial(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: Kind, parents: &[u64], with_all: bool) -> Mount {
        let directories = Directories::new(Path::new("/r"));
        let parents: Vec<_> = parents
            .iter()
            .map(|id| directories.fs(SnapshotId(*id)))
            .collect();
        let extra = Extra {
            xino: with_all,
            userxattr: with_all,
        };
        mount_of(&directories, kind, SnapshotId(9), &parents, extra)
    }

    #[test]
    fn only_the_initial_user_namespace_allows_trusted_attributes() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0     100000      65536\n"));
        assert!(!is_initial("0 0 1000\n1000 1000 4294966295\n"));
    }

    #[test]
    fn mounts_have_the_options_and_order_that_containerd_expects() {
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
}
