//! Removes what the reference implementation left in the state directory: its mounts, which ended
//! with it, and its caches, which it builds again if it ever comes back. Its snapshot records stay.
//!
//! Names of the reference lead to what is removed, so no link is followed: an operator may have
//! moved a cache to another disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::cpu::{Cpu, Lane, Lost};
use crate::mount;
use crate::mount::table::MountTable;
use crate::mount::thread::MountThread;
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
/// Maximum number of entries that one job removes.
const STEP: usize = 200;
/// Directories that only held caches, removed when they are empty.
const EMPTY: &[&str] = &["soci"];

/// Detaches the mounts of layers that the reference served. Their files cannot be read any more.
pub(super) async fn detach(thread: &MountThread, root: &Path) {
    // An import may have moved snapshots, with their mounts, to another name in here.
    let state = root.join("snapshotter");
    match mount::detach_reference(thread, &state).await {
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
        let removed = remove_in_steps(&cpu, &root, &path).await;
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

/// Removes a cache in small jobs, so that syncs and the shutdown need not wait for all of it. Returns
/// whether there was anything to remove.
async fn remove_in_steps(cpu: &Cpu, root: &Path, path: &Path) -> Result<io::Result<bool>, Lost> {
    let (root, cache) = (root.to_owned(), path.to_owned());
    let begin = move || Removal::begin(&root, cache);
    let mut removal = match cpu.run(Lane::FilesBehind, begin).await? {
        Ok(Some(removal)) => removal,
        Ok(None) => return Ok(Ok(false)),
        Err(error) => return Ok(Err(error)),
    };
    while !removal.pending.is_empty() {
        let step = move || removal.step().map(|()| removal);
        removal = match cpu.run(Lane::FilesBehind, step).await? {
            Ok(removal) => removal,
            Err(error) => return Ok(Err(error)),
        };
    }
    Ok(Ok(true))
}

/// A directory tree that is being removed.
struct Removal {
    /// The root of the tree.
    path: PathBuf,
    /// Directories left to remove. Those above are in the ones below, or beside them.
    pending: Vec<PathBuf>,
}

impl Removal {
    /// Removes a file, or begins with a directory. `None` if there is neither.
    fn begin(root: &Path, path: PathBuf) -> io::Result<Option<Self>> {
        let below = path.parent().filter(|parent| *parent != root);
        if let Some(parent) = below
            && is_missing_or_link(parent)?
        {
            return Ok(None);
        }
        let pending = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(found) if found.is_dir() => vec![path.clone()],
            Ok(found) if found.is_file() => {
                fs::remove_file(&path)?;
                Vec::new()
            }
            Ok(_) => return Ok(None),
        };
        Ok(Some(Self { path, pending }))
    }

    /// Removes up to [`STEP`] entries.
    fn step(&mut self) -> io::Result<()> {
        // As in `remove_tree`: such a mount is foreign.
        if let Some(mounted) = MountTable::read()?.under(&self.path).first() {
            let at = mounted.mount_point.display();
            return Err(io::Error::other(format!("{at} is still mounted")));
        }
        let mut left = STEP;
        while let Some(directory) = self.pending.last().cloned() {
            let known = self.pending.len();
            if !is_missing_or_link(&directory)? {
                for entry in fs::read_dir(&directory)? {
                    if left == 0 {
                        return Ok(());
                    }
                    left -= 1;
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        self.pending.push(entry.path());
                    } else {
                        fs::remove_file(entry.path())?;
                    }
                }
                if self.pending.len() > known {
                    continue;
                }
                fs::remove_dir(&directory)?;
            }
            self.pending.pop();
        }
        Ok(())
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

    #[test]
    fn a_large_cache_is_removed_in_small_steps() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("metadata");
        for directory in 0..5 {
            let directory = cache.join(format!("{directory}/deep/deeper"));
            fs::create_dir_all(&directory).unwrap();
            for file in 0..100 {
                fs::write(directory.join(file.to_string()), "").unwrap();
            }
        }
        let count = |path: &Path| {
            let mut found = 0;
            let mut pending = vec![path.to_owned()];
            while let Some(path) = pending.pop() {
                for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                    found += 1;
                    pending.push(entry.path());
                }
            }
            found
        };
        let mut removal = Removal::begin(folder.path(), cache).unwrap().unwrap();
        let mut before = count(folder.path());
        while !removal.pending.is_empty() {
            removal.step().unwrap();
            let now = count(folder.path());
            // Directories count when they are found, not when they are removed.
            assert!((1..=STEP + 15).contains(&(before - now)), "{before} {now}");
            before = now;
        }
        assert_eq!(before, 0);
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
