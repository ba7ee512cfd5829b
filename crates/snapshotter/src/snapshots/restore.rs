//! Mounts that an earlier process left behind.
//!
//! A mount of a dead process still lists and stats, and fails only when bytes are read. So none is judged by
//! looking at it: at start all mounts on `snapshots/<id>/fs` are detached by what `/proc/self/mountinfo` says,
//! which leaves running containers what they have, and a layer is mounted again when its snapshot is used
//! first. Neither step needs a registry.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// The mount points `<folder>/<one name>/fs`, in the order in which they were mounted.
pub(crate) fn mounted(folder: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(select(&fs::read("/proc/self/mountinfo")?, folder))
}

fn select(mountinfo: &[u8], folder: &Path) -> Vec<PathBuf> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(unescape)
        .filter(|path| {
            path.file_name() == Some("fs".as_ref())
                && path.parent().and_then(Path::parent) == Some(folder)
        })
        .collect()
}

/// A field of mountinfo: blank, tab, newline and backslash are written as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Detaches every mount on a snapshot of `folder`; returns those that would not go, with the reason.
pub(crate) fn detach_all(folder: &Path) -> io::Result<Vec<(PathBuf, io::Error)>> {
    // The last mounted first: there may be more than one on a mount point.
    let failed = mounted(folder)?.into_iter().rev().filter_map(|path| {
        let done = detach(&path);
        done.err().map(|error| (path, error))
    });
    Ok(failed.collect())
}

/// Detaches the top-most mount on `path`. What has it open keeps it.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    Ok(unmount(
        path,
        UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mount_points_of_snapshots_are_selected() {
        let mountinfo = b"\
21 1 8:1 / / rw - ext4 /dev/sda rw
22 21 0:40 / /s/snapshots/1/fs ro,relatime shared:1 - erofs none ro
23 21 0:41 / /s/snapshots-old/1/fs ro - erofs none ro
24 21 0:42 / /s/snapshots/2/fs/below ro - tmpfs none ro
25 21 0:43 / /s/snapshots/2/fs ro - erofs none ro
26 21 0:43 / /s/snapshots/2/fs ro - erofs none ro
27 21 0:44 / /s/snapshots/7_3/fs ro - erofs none ro
28 21 0:44 / /s/snapshots/fs ro - erofs none ro
";
        let found = select(mountinfo, Path::new("/s/snapshots"));
        let found: Vec<_> = found.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(
            found,
            [
                "/s/snapshots/1/fs",
                "/s/snapshots/2/fs",
                "/s/snapshots/2/fs",
                "/s/snapshots/7_3/fs"
            ]
        );
    }

    #[test]
    fn blanks_in_mount_points_are_found() {
        let found = select(
            b"1 2 0:1 / /a\\040b/c\\134/1/fs ro\n",
            Path::new("/a b/c\\"),
        );
        assert_eq!(found, [Path::new("/a b/c\\/1/fs")]);
    }
}
