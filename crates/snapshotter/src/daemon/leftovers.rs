//! Removes what the reference implementation left in the state directory: its mounts, which ended
//! with it, and its caches, which it builds again if it ever comes back. Its snapshot records stay.
//!
//! Names of the reference lead to what is removed, so no link is followed: an operator may have
//! moved a cache to another disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::cpu::{Cpu, Lane};
use crate::mount;
use crate::mount::thread::MountThread;
use crate::snapshots::directories::remove_tree;
use crate::sync::Arc;

/// Metadata of lazily loaded layers, their spans, and scratch of parallel pulls, below the state
/// directory.
const CACHES: &[&str] = &[
    "metadata.db",
    "metadata",
    "soci/spancache",
    "soci/httpcache",
    "unpack",
];
/// Directories that only held caches, removed when they are empty.
const EMPTY: &[&str] = &["soci"];

/// Detaches the mounts of layers that the reference served. Their files cannot be read any more.
pub(super) async fn detach(thread: &MountThread, root: &Path) {
    let snapshots = root.join("snapshotter/snapshots");
    match mount::detach_reference(thread, &snapshots).await {
        Ok(0) => {}
        Ok(count) => info!(
            count,
            "detached the dead mounts of the SOCI snapshotter; its lazily loaded layers are mounted again when they are needed"
        ),
        Err(error) => warn!(
            error = &error as &dyn std::error::Error,
            "cannot detach the dead mounts of the SOCI snapshotter"
        ),
    }
}

/// Removes the caches. Failures are only logged: they cost disk space, and the next start tries
/// again.
pub(super) async fn remove(cpu: Arc<Cpu>, root: PathBuf) {
    for cache in CACHES {
        let path = root.join(cache);
        let removed = {
            let (root, path) = (root.clone(), path.clone());
            cpu.run(Lane::FilesBehind, move || remove_cache(&root, &path))
                .await
        };
        match removed {
            Ok(Ok(true)) => {
                info!(path = %path.display(), "removed a cache of the SOCI snapshotter")
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => warn!(
                path = %path.display(),
                error = &error as &dyn std::error::Error,
                "cannot remove a cache of the SOCI snapshotter"
            ),
            // The daemon ends.
            Err(_) => return,
        }
    }
    for name in EMPTY {
        // It may be absent, a link, or in use by something else.
        let _ = fs::remove_dir(root.join(name));
    }
}

/// Returns whether there was anything to remove.
fn remove_cache(root: &Path, path: &Path) -> io::Result<bool> {
    let below = path.parent().filter(|parent| *parent != root);
    if let Some(parent) = below
        && is_missing_or_link(parent)?
    {
        return Ok(false);
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => remove_tree(path).map(|()| true),
        Ok(found) if found.is_file() => fs::remove_file(path).map(|()| true),
        Ok(_) => Ok(false),
    }
}

fn is_missing_or_link(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        found => Ok(!found?.is_dir()),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn caches_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for path in [
            "soci/spancache/1/2",
            "soci/httpcache",
            "unpack/abc/fs",
            "metadata",
            "content/blobs",
            "snapshotter/snapshots/1/fs",
        ] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        for path in [
            "metadata.db",
            "artifacts.db",
            "metadata/metadata-1.db",
            "snapshotter/metadata.db",
        ] {
            fs::write(root.join(path), path).unwrap();
        }
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        symlink(&outside, root.join("unpack/abc/fs/link")).unwrap();

        let cpu = Cpu::new(NonZeroUsize::MIN).unwrap();
        remove(cpu, root.clone()).await;
        let mut left: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["artifacts.db", "content", "snapshotter"]);
        assert!(root.join("snapshotter/metadata.db").exists());
        assert!(outside.join("kept").exists());
    }

    #[tokio::test]
    async fn a_cache_behind_a_link_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (root, disk) = (folder.path().join("root"), folder.path().join("disk"));
        fs::create_dir_all(disk.join("spancache/1")).unwrap();
        fs::create_dir_all(disk.join("unpack/2")).unwrap();
        fs::create_dir(&root).unwrap();
        symlink(&disk, root.join("soci")).unwrap();
        symlink(disk.join("unpack"), root.join("unpack")).unwrap();
        remove(Cpu::new(NonZeroUsize::MIN).unwrap(), root.clone()).await;
        assert!(disk.join("spancache/1").exists());
        assert!(disk.join("unpack/2").exists());
        assert!(fs::symlink_metadata(root.join("unpack")).is_ok());
    }
}
