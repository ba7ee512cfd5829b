//! The directories of the snapshots: `snapshots/<id>/fs`, and `work` for active ones.
//!
//! A directory is created under a temporary name (`new-…`) and renamed to its ID. This module never
//! accesses one of our mounts: the owner of a parent's root comes from the records, and a directory
//! is removed only after its mount.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use super::metadata::{Kind, Owner, SnapshotId, Usage};
use crate::mount::table::MountTable;
use crate::sync::{Arc, Mutex};

const TEMPORARY: &str = "new-";
/// Size of a block as stat(2) counts them, in bytes.
const STAT_BLOCK: u64 = 512;

/// The state directory of the snapshotter, `<root>/snapshotter`.
#[derive(Clone, Debug)]
pub(crate) struct Directories {
    root: PathBuf,
    busy: Arc<Mutex<BTreeMap<SnapshotId, usize>>>,
}

/// Protects a directory from cleanup while it is created or mounted on.
#[derive(Debug)]
pub(crate) struct Busy {
    id: SnapshotId,
    busy: Arc<Mutex<BTreeMap<SnapshotId, usize>>>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut busy = self.busy.lock();
        if let Some(count) = busy.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.id);
            }
        }
    }
}

impl Directories {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            busy: Arc::default(),
        }
    }

    /// Creates the state directory with access for its owner only.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.all())
    }

    /// The directory that contains one directory per snapshot.
    pub(crate) fn all(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("snapshots.redb")
    }

    /// The directory of one snapshot.
    pub(crate) fn of(&self, id: SnapshotId) -> PathBuf {
        self.all().join(id.to_string())
    }

    /// The file tree of a snapshot.
    pub(crate) fn fs(&self, id: SnapshotId) -> PathBuf {
        self.of(id).join("fs")
    }

    /// The work directory of overlayfs next to it.
    pub(crate) fn work(&self, id: SnapshotId) -> PathBuf {
        self.of(id).join("work")
    }

    /// Marks the directory as busy for [`Directories::idle`] until the value is dropped.
    pub(crate) fn busy(&self, id: SnapshotId) -> Busy {
        *self.busy.lock().entry(id).or_default() += 1;
        Busy {
            id,
            busy: Arc::clone(&self.busy),
        }
    }

    /// Whether the directory is in use.
    pub(crate) fn is_busy(&self, id: SnapshotId) -> bool {
        self.busy.lock().contains_key(&id)
    }

    /// Creates the directory of a new snapshot.
    pub(crate) fn create(&self, id: SnapshotId, kind: Kind, owner: Owner) -> io::Result<()> {
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(self.all())?;
        let fs = temporary.path().join("fs");
        make_directory(&fs, 0o755)?;
        if owner != Owner::default() {
            lchown(&fs, Some(owner.uid), Some(owner.gid))?;
        }
        if kind == Kind::Active {
            make_directory(&temporary.path().join("work"), 0o711)?;
        }
        fs::rename(temporary.path(), self.of(id))?;
        // The temporary name no longer exists, so there is nothing to delete.
        let _ = temporary.keep();
        Ok(())
    }

    /// Creates the mount point of a layer again if a crash lost it.
    pub(crate) fn restore(&self, id: SnapshotId) -> io::Result<PathBuf> {
        mount_point(&self.of(id))
    }

    /// Creates the mount point of the view that snapshot `id` has of `parent`, if it is missing.
    pub(crate) fn mapped(&self, parent: SnapshotId, id: SnapshotId) -> io::Result<PathBuf> {
        mount_point(&self.all().join(format!("{parent}_{id}")))
    }

    /// Owner of the root of a file tree that is a directory, not a mount.
    pub(crate) fn owner(&self, id: SnapshotId) -> io::Result<Owner> {
        let found = fs::symlink_metadata(self.fs(id))?;
        Ok(Owner {
            uid: found.uid(),
            gid: found.gid(),
        })
    }

    /// Disk usage of the file tree: blocks of distinct inodes, including the root directory.
    pub(crate) fn usage(&self, id: SnapshotId) -> io::Result<Usage> {
        let mut seen = BTreeSet::new();
        let mut usage = Usage::default();
        let mut pending = vec![self.fs(id)];
        while let Some(path) = pending.pop() {
            let found = match fs::symlink_metadata(&path) {
                // A container may be deleting files of an active snapshot.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            if !seen.insert((found.dev(), found.ino())) {
                continue;
            }
            usage.inodes += 1;
            usage.size += found.blocks() * STAT_BLOCK;
            if found.is_dir() {
                match fs::read_dir(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    entries => {
                        for entry in entries? {
                            pending.push(entry?.path());
                        }
                    }
                }
            }
        }
        Ok(usage)
    }

    /// The highest number of a directory.
    pub(crate) fn highest(&self) -> io::Result<u64> {
        Ok(self
            .entries()?
            .iter()
            .filter_map(|name| owner_of(name))
            .map(|id| id.0)
            .max()
            .unwrap_or(0))
    }

    /// The idle entries, each with the ID of its snapshot. Cleanup must read the records *after*
    /// this call: an idle entry has its record by then, or never gets one.
    pub(crate) fn idle(&self) -> io::Result<Vec<(Option<SnapshotId>, PathBuf)>> {
        let entries = self.entries()?;
        // After listing the names: an entry that was busy then and is idle now has its record.
        let busy: BTreeSet<_> = self.busy.lock().keys().copied().collect();
        let mut idle = Vec::new();
        for name in entries {
            let owner = owner_of(&name);
            let left_alone = match owner {
                Some(id) => busy.contains(&id),
                // A new directory is marked busy before it has its name.
                None => name.starts_with(TEMPORARY) && !busy.is_empty(),
            };
            if !left_alone {
                idle.push((owner, self.all().join(name)));
            }
        }
        Ok(idle)
    }

    fn entries(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.all())? {
            // Names that are not UTF-8 are not ours and are ignored.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }
}

/// Deletes a directory tree; a missing one is not an error. Fails if the kernel's mount table
/// contains a mount in it: the mount is foreign, or a layer whose READs would have to be answered.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    if let Some(mounted) = MountTable::read()?.under(path).first() {
        return Err(io::Error::other(format!(
            "{} is still mounted",
            mounted.mount_point.display()
        )));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The snapshot of a directory: its number, or the number after the underscore (the view that one
/// container has of a layer).
fn owner_of(name: &str) -> Option<SnapshotId> {
    let number = name
        .split_once('_')
        .map_or(name, |(_, container)| container);
    number.parse().ok().map(SnapshotId)
}

/// Creates `fs` in the directory of a snapshot, unless both exist.
fn mount_point(directory: &Path) -> io::Result<PathBuf> {
    let fs = directory.join("fs");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    match make_directory(&fs, 0o755) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(fs),
    }
}

/// Creates a directory with exactly this mode, whatever the umask.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (Directories, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::new(&root.path().join("snapshotter"));
        directories.prepare().unwrap();
        (directories, root)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn an_active_snapshot_has_fs_and_work() {
        let (directories, _root) = fixture();
        directories
            .create(SnapshotId(1), Kind::Active, Owner { uid: 5, gid: 6 })
            .unwrap();
        directories
            .create(SnapshotId(2), Kind::View, Owner::default())
            .unwrap();
        assert_eq!(mode(&directories.fs(SnapshotId(1))), 0o755);
        assert_eq!(mode(&directories.work(SnapshotId(1))), 0o711);
        assert_eq!(mode(&directories.all()), 0o700);
        assert_eq!(
            directories.owner(SnapshotId(1)).unwrap(),
            Owner { uid: 5, gid: 6 }
        );
        assert!(!directories.work(SnapshotId(2)).exists());
        assert_eq!(directories.entries().unwrap().len(), 2);
    }

    #[test]
    fn usage_counts_blocks_of_distinct_inodes() {
        let (directories, _root) = fixture();
        let id = SnapshotId(1);
        directories
            .create(id, Kind::Active, Owner::default())
            .unwrap();
        let fs = directories.fs(id);
        fs::write(fs.join("a"), vec![1; 10_000]).unwrap();
        fs::hard_link(fs.join("a"), fs.join("b")).unwrap();
        let sparse = fs::File::create(fs.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let usage = directories.usage(id).unwrap();
        assert_eq!(usage.inodes, 3);
        assert!((12_288..100_000).contains(&usage.size), "{usage:?}");
    }

    #[test]
    fn directories_being_created_or_mounted_on_are_not_idle() {
        let (directories, _root) = fixture();
        for name in ["1", "2", "7_2", "7_9", "new-left", "odd"] {
            fs::create_dir(directories.all().join(name)).unwrap();
        }
        let names = || -> BTreeSet<String> {
            let idle = directories.idle().unwrap();
            idle.iter()
                .map(|(_, path)| path.file_name().unwrap().to_str().unwrap().into())
                .collect()
        };
        let busy = directories.busy(SnapshotId(2));
        let again = directories.busy(SnapshotId(2));
        drop(again);
        assert_eq!(names(), ["1", "7_9", "odd"].map(str::to_owned).into());
        drop(busy);
        assert_eq!(
            names(),
            ["1", "2", "7_2", "7_9", "new-left", "odd"]
                .map(str::to_owned)
                .into()
        );
        assert_eq!(directories.highest().unwrap(), 9);
    }

    #[test]
    fn usage_of_a_changing_tree_is_not_an_error() {
        let (directories, _root) = fixture();
        let id = SnapshotId(1);
        directories
            .create(id, Kind::Active, Owner::default())
            .unwrap();
        let at = directories.fs(id).join("coming/and/going");
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::create_dir_all(&at).unwrap();
                    fs::remove_dir_all(directories.fs(id).join("coming")).unwrap();
                }
            });
            let measured: io::Result<Vec<_>> = (0..20_000).map(|_| directories.usage(id)).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            measured.unwrap();
        });
    }

    #[test]
    fn nothing_is_deleted_through_a_mount() {
        if std::env::var_os("SOCI_SANDBOX").is_none() {
            return;
        }
        let (directories, _root) = fixture();
        let id = SnapshotId(1);
        directories
            .create(id, Kind::View, Owner::default())
            .unwrap();
        let fs = directories.fs(id);
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &fs, "tmpfs", flags, None).unwrap();
        fs::write(fs.join("another's"), b"file").unwrap();
        let kept = remove_tree(&directories.of(id));
        let still = fs.join("another's").exists();
        rustix::mount::unmount(&fs, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(kept.unwrap_err().to_string().contains("still mounted"));
        assert!(still);
        remove_tree(&directories.of(id)).unwrap();
        assert!(!directories.of(id).exists());
    }
}
