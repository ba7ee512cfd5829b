//! The file system of the state directory.

use std::io;
use std::path::Path;

use super::row::Row;
use crate::args::Part;

const NAME: &str = "state directory";
/// Below this many free bytes, not even small images fit.
const TOO_LITTLE: u64 = 64 << 20;
/// A usual image fits into this many free bytes.
const LITTLE: u64 = 2 << 30;

/// Magic numbers of file systems (`linux/magic.h`) with their names.
const KNOWN: [(u64, &str); 8] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x2FC1_2FC1, "zfs"),
    (0x0102_1994, "tmpfs"),
    (0x794C_7630, "overlay"),
    (0x6969, "nfs"),
    (0x6573_5546, "fuse"),
];

/// What the machine says about the file system.
#[derive(Clone, Copy, Debug)]
struct Facts {
    kind: u64,
    free: u64,
    size: u64,
}

impl Facts {
    fn read(path: &Path) -> io::Result<Self> {
        let found = rustix::fs::statfs(path)?;
        let space = rustix::fs::statvfs(path)?;
        Ok(Self {
            // Signed with some C libraries.
            kind: u64::try_from(found.f_type).unwrap_or(0),
            free: space.f_bavail.saturating_mul(space.f_frsize),
            size: space.f_blocks.saturating_mul(space.f_frsize),
        })
    }
}

/// The nearest directory that exists: before the first start, the state directory does not.
pub(super) fn existing(root: &Path) -> &Path {
    let mut folders = root.ancestors();
    folders
        .find(|folder| folder.is_dir())
        .unwrap_or_else(|| Path::new("/"))
}

pub(super) fn row(root: &Path) -> Row {
    let folder = existing(root);
    match Facts::read(folder) {
        Ok(facts) => judged(folder, facts),
        Err(error) => Row::problem(
            Part::Disk,
            NAME,
            format!("cannot look at {}: {error}", folder.display()),
            "check the path given with --root",
        ),
    }
}

fn judged(folder: &Path, facts: Facts) -> Row {
    let known = KNOWN.iter().find(|(kind, _)| *kind == facts.kind);
    let kind = match known {
        Some((_, name)) => (*name).to_owned(),
        None => format!("file system {:#x}", facts.kind),
    };
    let found = format!(
        "{} is on {kind}, {} MiB of {} MiB free",
        folder.display(),
        facts.free >> 20,
        facts.size >> 20
    );
    if matches!(kind.as_str(), "overlay" | "nfs" | "fuse") {
        return Row::problem(
            Part::Disk,
            NAME,
            found,
            "overlayfs needs a local disk below it: mount one there, or set --root",
        );
    }
    if facts.free < TOO_LITTLE {
        return Row::problem(
            Part::Disk,
            NAME,
            found,
            "free space, or set --root to a larger disk",
        );
    }
    if kind == "tmpfs" {
        return Row::warning(
            Part::Disk,
            NAME,
            found,
            "layers take memory and are gone after a restart of the machine: set --root to a disk",
        );
    }
    if facts.free < LITTLE {
        return Row::warning(
            Part::Disk,
            NAME,
            found,
            "free space, or limit the cache with [cache] max_bytes",
        );
    }
    Row::ok(Part::Disk, NAME, found)
}

#[cfg(test)]
mod tests {
    use super::super::row::Level;
    use super::*;

    #[test]
    fn a_local_disk_with_space_is_ok() {
        let judge = |kind, free| {
            let facts = Facts {
                kind,
                free,
                size: 100 << 30,
            };
            judged(Path::new("/r"), facts).level
        };
        assert_eq!(judge(0xEF53, 50 << 30), Level::Ok);
        assert_eq!(judge(0x1234_5678, 50 << 30), Level::Ok);
        assert_eq!(judge(0xEF53, 1 << 30), Level::Warning);
        assert_eq!(judge(0xEF53, 1 << 20), Level::Problem);
        assert_eq!(judge(0x0102_1994, 50 << 30), Level::Warning);
        assert_eq!(judge(0x794C_7630, 50 << 30), Level::Problem);
    }

    #[test]
    fn a_state_directory_that_does_not_exist_yet_is_looked_at_where_it_will_be() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("a/b")), folder.path());
        let row = row(&folder.path().join("a/b"));
        assert!(
            row.found.contains(&folder.path().display().to_string()),
            "{row:?}"
        );
    }
}
