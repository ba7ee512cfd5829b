//! Writes results to disk atomically.
//!
//! A result is written under a temporary name next to its destination, and renamed when it is
//! complete and durable. Until then the previous content stays in place, also after a power
//! failure.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use soci_oci::Descriptor;
use soci_store::archive::Archive;
use soci_store::durable::{sync_name, sync_names};
use soci_store::layout::{INDEX_NAME, LAYOUT_NAME, Layout};
use soci_store::{Content, errno};

use crate::source::Either;

/// A file that is renamed to its destination when it is complete.
#[derive(Debug)]
pub(crate) struct NewFile {
    place: PathBuf,
    /// `None` if the destination is not a regular file (a pipe or a device), which is written
    /// directly.
    temporary: Option<Temporary>,
}

impl NewFile {
    /// Opens a file for the content of `path`.
    pub(crate) fn create(path: &Path) -> Result<(Self, File)> {
        let failed = |error: io::Error| {
            let path = path.display();
            anyhow::anyhow!(
                "failed to create output tar {path}: open {path}: {}",
                errno(&error)
            )
        };
        // A symlink stays: its target is replaced.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&place) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(failed(io::Error::from_raw_os_error(21)));
            }
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new()
                    .write(true)
                    .open(&place)
                    .map_err(failed)?;
                return Ok((
                    Self {
                        place,
                        temporary: None,
                    },
                    file,
                ));
            }
            _ => {}
        }
        let temporary = Temporary::beside(&place)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary.path);
        let file = file.map_err(failed)?;
        Ok((
            Self {
                place,
                temporary: Some(temporary),
            },
            file,
        ))
    }

    /// Renames the file to its destination.
    pub(crate) fn finish(self, file: &File) -> Result<()> {
        const FAILED: &str = "failed to write output tar";
        let Some(temporary) = self.temporary else {
            return Ok(());
        };
        file.sync_all().context(FAILED)?;
        fs::rename(&temporary.path, &self.place).context(FAILED)?;
        sync_name(&self.place).context(FAILED)
    }
}

/// A layout folder that is renamed to its destination when it is complete.
#[derive(Debug)]
pub(crate) struct NewFolder {
    place: PathBuf,
    temporary: Temporary,
    pub(crate) layout: Layout,
}

impl NewFolder {
    /// Creates a folder for the content of `path`. Fails if `path` is a non-empty folder that is
    /// not an OCI layout, so that no other data is lost.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if place.is_dir() && !place.join(LAYOUT_NAME).is_file() {
            let mut entries = fs::read_dir(&place)
                .with_context(|| format!("failed to read output directory {}", path.display()))?;
            if entries.next().is_some() {
                bail!(
                    "output {} is a directory that is not an OCI image layout; it is not replaced",
                    path.display()
                );
            }
        }
        let failed = || format!("failed to create output directory {}", path.display());
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).with_context(failed)?;
        }
        let temporary = Temporary::beside(&place)?;
        DirBuilder::new()
            .mode(0o755)
            .create(&temporary.path)
            .with_context(failed)?;
        let layout = Layout::create(&temporary.path).with_context(failed)?;
        Ok(Self {
            place,
            temporary,
            layout,
        })
    }

    /// Copies everything that the source has and this folder lacks, as the reference does.
    pub(crate) fn copy(&self, source: &Either, copier: &Copier) -> Result<()> {
        match source {
            Either::Folder(layout) => self.copy_folder(layout, Path::new(""), copier),
            Either::Archive(archive) => self.copy_archive(archive, copier),
            // A docker archive is not a layout: its blobs are copied one by one.
            Either::Docker(_) => Ok(()),
        }
    }

    /// Copies a folder of a layout. Links are copied as links, except links to blobs, which are
    /// followed.
    fn copy_folder(&self, from: &Layout, below: &Path, copier: &Copier) -> Result<()> {
        let failed = || {
            format!(
                "failed to copy OCI image layout from {}",
                from.root().display()
            )
        };
        for entry in fs::read_dir(from.root().join(below)).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let name = below.join(entry.file_name());
            let place = self.temporary.path.join(&name);
            let kind = entry.file_type().with_context(failed)?;
            if is_replaced(&name) || self.is_own(&entry.path()) {
                continue;
            }
            if kind.is_dir() {
                fs::create_dir_all(&place).with_context(failed)?;
                self.copy_folder(from, &name, copier)?;
            } else if kind.is_file() && !place.exists() {
                let file = File::open(entry.path()).with_context(failed)?;
                let mode = file.metadata().with_context(failed)?.permissions();
                copier.copy(file, &place, mode).with_context(failed)?;
            } else if kind.is_symlink() && name.starts_with("blobs") {
                self.copy_linked(from, &name)?;
            } else if kind.is_symlink() && fs::symlink_metadata(&place).is_err() {
                let target = fs::read_link(entry.path()).with_context(failed)?;
                std::os::unix::fs::symlink(target, &place).with_context(failed)?;
            }
        }
        Ok(())
    }

    /// Copies blobs that are reached through a link (to one blob, a folder of blobs, or all of
    /// them). A link may point anywhere, so only content that matches the digest in its name is
    /// copied.
    fn copy_linked(&self, from: &Layout, name: &Path) -> Result<()> {
        let path = from.root().join(name);
        if path.is_dir() {
            if name.components().count() > 2 {
                return Ok(());
            }
            let failed = || format!("failed to read {}", path.display());
            for entry in fs::read_dir(&path).with_context(failed)? {
                self.copy_linked(from, &name.join(entry.with_context(failed)?.file_name()))?;
            }
            return Ok(());
        }
        let parts: Vec<_> = name.iter().map(|part| part.to_string_lossy()).collect();
        let digest = match parts.as_slice() {
            [_, algorithm, hex] => format!("{algorithm}:{hex}").parse().ok(),
            _ => None,
        };
        let Some(digest) = digest.filter(|_| path.is_file()) else {
            return Ok(());
        };
        let file = from.open_file(&digest)?;
        let blob = Descriptor::new("", digest, file.metadata()?.len());
        self.layout.store(&blob, Content::File(file))?;
        Ok(())
    }

    /// Whether this is the folder that is being written, which may be inside the source.
    fn is_own(&self, path: &Path) -> bool {
        fs::canonicalize(path).ok() == fs::canonicalize(&self.temporary.path).ok()
    }

    fn copy_archive(&self, archive: &Archive, copier: &Copier) -> Result<()> {
        for name in archive.names() {
            let relative = Path::new(name);
            // Names were cleaned when the archive was opened. The check is repeated here, because
            // this code depends on it.
            let is_inside = relative
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            let place = self.temporary.path.join(relative);
            if !is_inside || is_replaced(relative) || place.exists() {
                continue;
            }
            let failed = || format!("failed to extract {name}");
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent).with_context(failed)?;
            }
            let Some(blob) = archive.member(name) else {
                continue;
            };
            let mode = if relative.starts_with("blobs") {
                0o444
            } else {
                0o644
            };
            let mode = Permissions::from_mode(mode);
            copier
                .copy(blob.reader, &place, mode)
                .with_context(failed)?;
        }
        Ok(())
    }

    /// Renames the folder to its destination if that is free. If another process has created a
    /// layout there meanwhile, moves the blobs into it. Returns whether the destination was free.
    pub(crate) fn finish_or_join(self) -> Result<bool> {
        let failed = || format!("failed to write to {}", self.place.display());
        sync_names(&self.temporary.path).with_context(failed)?;
        match fs::rename(&self.temporary.path, &self.place) {
            Ok(()) => {
                sync_name(&self.place).with_context(failed)?;
                return Ok(true);
            }
            Err(error) if is_taken(error.kind()) && self.place.join(LAYOUT_NAME).is_file() => {}
            Err(error) => return Err(error).with_context(failed),
        }
        for folder in fs::read_dir(self.temporary.path.join("blobs")).with_context(failed)? {
            let folder = folder.with_context(failed)?;
            let to = self.place.join("blobs").join(folder.file_name());
            fs::create_dir_all(&to).with_context(failed)?;
            for blob in fs::read_dir(folder.path()).with_context(failed)? {
                let blob = blob.with_context(failed)?;
                fs::rename(blob.path(), to.join(blob.file_name())).with_context(failed)?;
            }
        }
        Ok(false)
    }

    /// Renames the folder to its destination and deletes the previous content.
    pub(crate) fn finish(self) -> Result<()> {
        let Self {
            place,
            temporary,
            layout: _,
        } = self;
        let failed = || format!("failed to replace {}", place.display());
        sync_names(&temporary.path).with_context(failed)?;
        let named = || sync_name(&place).with_context(failed);
        if fs::symlink_metadata(&place).is_err() {
            fs::rename(&temporary.path, &place).with_context(failed)?;
            return named();
        }
        match renameat_with(CWD, &temporary.path, CWD, &place, RenameFlags::EXCHANGE) {
            // The temporary name now refers to the previous content, which is removed with it.
            Ok(()) => named(),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                let old = Temporary::beside(&place)?;
                fs::rename(&place, &old.path).with_context(failed)?;
                fs::rename(&temporary.path, &place).with_context(failed)?;
                named()
            }
            Err(error) => Err(error).with_context(failed),
        }
    }
}

/// Copies files until it is stopped.
pub(crate) struct Copier {
    /// Set when the copies are no longer needed.
    pub(crate) stop: Arc<AtomicBool>,
    /// Called with the number of bytes copied.
    pub(crate) count: Box<dyn Fn(u64) + Send>,
}

impl Copier {
    fn copy<R: Read>(&self, mut from: R, to: &Path, mode: Permissions) -> io::Result<()> {
        /// Bytes between two checks of `stop`.
        const STEP: u64 = 32 << 20;
        let mut file = File::create(to)?;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let copied = io::copy(&mut from.by_ref().take(STEP), &mut file)?;
            if copied == 0 {
                file.set_permissions(mode)?;
                return file.sync_all();
            }
            (self.count)(copied);
        }
    }
}

fn is_taken(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty};
    matches!(kind, AlreadyExists | DirectoryNotEmpty)
}

/// Locks a layout, so that only one process at a time changes its index. The lock is held until the
/// file is closed.
pub(crate) fn turn(layout: &Path) -> Result<File> {
    let folder = File::open(layout).with_context(|| format!("open {}", layout.display()))?;
    if let Err(error) = folder.lock() {
        // Some network file systems do not support locks.
        tracing::warn!(
            "{} cannot be locked: {error}; let only one process write to it at a time",
            layout.display()
        );
    }
    Ok(folder)
}

/// Whether a file of a layout is rewritten, or is an incomplete blob of another process.
fn is_replaced(name: &Path) -> bool {
    [INDEX_NAME, LAYOUT_NAME]
        .iter()
        .any(|own| name == Path::new(own))
        || name.starts_with("ingest")
}

/// A temporary path that is removed on drop, unless it has been renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(place: &Path) -> Result<Self> {
        let name = place
            .file_name()
            .with_context(|| format!("{} cannot be written: it has no name", place.display()))?;
        let number = std::hash::RandomState::new().build_hasher().finish();
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{number:016x}.tmp"));
        Ok(Self {
            path: place.with_file_name(hidden),
        })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let removed = match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&self.path),
            Ok(_) => fs::remove_file(&self.path),
            Err(_) => return,
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), %error, "temporary files stay behind");
        }
    }
}
