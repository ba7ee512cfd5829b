//! A layout folder at its destination, and the copy of another layout into it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use soci_oci::Descriptor;
use soci_store::archive::Archive;
use soci_store::durable::{sync_name, sync_names};
use soci_store::layout::{INDEX_NAME, LAYOUT_NAME, Layout};

use super::Temporary;
use crate::standalone::error::OutputError;
use crate::standalone::local::Form;
use crate::standalone::stop::{Stop, Stoppable};

/// A layout folder that is renamed to its destination when it is complete.
#[derive(Debug)]
pub(in crate::standalone) struct NewFolder {
    place: PathBuf,
    temporary: Temporary,
    pub(in crate::standalone) layout: Layout,
}

impl NewFolder {
    /// Creates a folder for the content of `path`. Fails if `path` is a non-empty folder that is
    /// not an OCI layout, so that no other data is lost.
    pub(in crate::standalone) fn create(path: &Path) -> Result<Self, OutputError> {
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if place.is_dir() && !place.join(LAYOUT_NAME).is_file() {
            let entries = fs::read_dir(&place).map_err(|source| OutputError::ReadFolder {
                path: path.to_owned(),
                source,
            });
            if entries?.next().is_some() {
                return Err(OutputError::NotALayout(path.to_owned()));
            }
        }
        let failed = |source| OutputError::CreateFolder {
            path: path.to_owned(),
            source,
        };
        let unmade = |error: io::Error| failed(error.into());
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(unmade)?;
        }
        let temporary = Temporary::beside(&place)?;
        DirBuilder::new()
            .mode(0o755)
            .create(&temporary.path)
            .map_err(unmade)?;
        let layout = Layout::create(&temporary.path).map_err(|error| failed(error.into()))?;
        Ok(Self {
            place,
            temporary,
            layout,
        })
    }

    /// Copies everything that the source has and this folder lacks, as the reference does.
    pub(in crate::standalone) fn copy(
        &self,
        source: &Form,
        copier: &Copier,
    ) -> Result<(), OutputError> {
        match source {
            Form::Folder(layout) => self.copy_folder(layout, Path::new(""), copier),
            Form::Archive(archive) => self.copy_archive(archive, copier),
            // A docker archive is not a layout: its blobs are copied one by one.
            Form::Docker(_) => Ok(()),
        }
    }

    /// Copies a folder of a layout. Links are copied as links, except links to blobs, which are
    /// followed.
    fn copy_folder(&self, from: &Layout, below: &Path, copier: &Copier) -> Result<(), OutputError> {
        let failed = |source| OutputError::Copy {
            path: from.root().to_owned(),
            source,
        };
        for entry in fs::read_dir(from.root().join(below)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = below.join(entry.file_name());
            let place = self.temporary.path.join(&name);
            let kind = entry.file_type().map_err(failed)?;
            if is_replaced(&name) || self.is_own(&entry.path()) {
                continue;
            }
            if kind.is_dir() {
                fs::create_dir_all(&place).map_err(failed)?;
                self.copy_folder(from, &name, copier)?;
            } else if kind.is_file() && !place.exists() {
                let file = File::open(entry.path()).map_err(failed)?;
                let mode = file.metadata().map_err(failed)?.permissions();
                copier.copy(file, &place, mode).map_err(failed)?;
            } else if kind.is_symlink() && name.starts_with("blobs") {
                self.copy_linked(from, &name, copier)?;
            } else if kind.is_symlink() && fs::symlink_metadata(&place).is_err() {
                let target = fs::read_link(entry.path()).map_err(failed)?;
                std::os::unix::fs::symlink(target, &place).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Copies blobs that are reached through a link (to one blob, a folder of blobs, or all of
    /// them). A link may point anywhere, so only content that matches the digest in its name is
    /// copied.
    fn copy_linked(&self, from: &Layout, name: &Path, copier: &Copier) -> Result<(), OutputError> {
        let path = from.root().join(name);
        let failed = |source| OutputError::ReadLinked {
            path: path.clone(),
            source,
        };
        copier.stop.check().map_err(failed)?;
        if path.is_dir() {
            if name.components().count() > 2 {
                return Ok(());
            }
            for entry in fs::read_dir(&path).map_err(failed)? {
                let name = name.join(entry.map_err(failed)?.file_name());
                self.copy_linked(from, &name, copier)?;
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
        let blob = Descriptor::new("", digest, file.metadata().map_err(failed)?.len());
        let reader = Stoppable::of(file, copier.stop.clone());
        self.layout.receive(&blob, reader, &copier.count)?;
        Ok(())
    }

    /// Whether this is the folder that is being written, which may be inside the source.
    fn is_own(&self, path: &Path) -> bool {
        fs::canonicalize(path).ok() == fs::canonicalize(&self.temporary.path).ok()
    }

    fn copy_archive(&self, archive: &Archive, copier: &Copier) -> Result<(), OutputError> {
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
            let failed = |source| OutputError::Extract {
                name: name.to_owned(),
                source,
            };
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent).map_err(failed)?;
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
            copier.copy(blob.reader, &place, mode).map_err(failed)?;
        }
        Ok(())
    }

    /// Renames the folder to its destination if that is free. If another process has created a
    /// layout there meanwhile, moves the blobs into it. Returns whether the destination was free.
    pub(in crate::standalone) fn finish_or_join(self) -> Result<bool, OutputError> {
        let failed = |source| OutputError::Write {
            path: self.place.clone(),
            source,
        };
        sync_names(&self.temporary.path).map_err(failed)?;
        match fs::rename(&self.temporary.path, &self.place) {
            Ok(()) => {
                sync_name(&self.place).map_err(failed)?;
                return Ok(true);
            }
            Err(error) if is_taken(error.kind()) && self.place.join(LAYOUT_NAME).is_file() => {}
            Err(error) => return Err(failed(error)),
        }
        for folder in fs::read_dir(self.temporary.path.join("blobs")).map_err(failed)? {
            let folder = folder.map_err(failed)?;
            let to = self.place.join("blobs").join(folder.file_name());
            fs::create_dir_all(&to).map_err(failed)?;
            for blob in fs::read_dir(folder.path()).map_err(failed)? {
                let blob = blob.map_err(failed)?;
                fs::rename(blob.path(), to.join(blob.file_name())).map_err(failed)?;
            }
        }
        Ok(false)
    }

    /// Renames the folder to its destination and deletes the previous content.
    pub(in crate::standalone) fn finish(self) -> Result<(), OutputError> {
        let Self {
            place,
            temporary,
            layout: _,
        } = self;
        let failed = |source| OutputError::Replace {
            path: place.clone(),
            source,
        };
        sync_names(&temporary.path).map_err(failed)?;
        let named = || sync_name(&place).map_err(failed);
        if fs::symlink_metadata(&place).is_err() {
            fs::rename(&temporary.path, &place).map_err(failed)?;
            return named();
        }
        match renameat_with(CWD, &temporary.path, CWD, &place, RenameFlags::EXCHANGE) {
            // The temporary name now refers to the previous content, which is removed with it.
            Ok(()) => named(),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                replace_in_steps(&temporary.path, &place, Temporary::beside(&place)?)
                    .map_err(failed)?;
                named()
            }
            Err(error) => Err(failed(error.into())),
        }
    }
}

/// Replaces a folder on a file system that cannot exchange names. If the new folder cannot be
/// renamed, the previous one gets its name back.
fn replace_in_steps(new: &Path, place: &Path, mut old: Temporary) -> io::Result<()> {
    fs::rename(place, &old.path)?;
    fs::rename(new, place).inspect_err(|_| {
        if let Err(error) = fs::rename(&old.path, place) {
            let path = old.keep();
            tracing::error!("{} is now at {}: {error}", place.display(), path.display());
        }
    })
}

/// Copies files until it is stopped.
pub(in crate::standalone) struct Copier {
    /// Set when the copies are no longer needed.
    pub(in crate::standalone) stop: Stop,
    /// Called with the number of bytes copied.
    pub(in crate::standalone) count: Box<dyn Fn(u64) + Send>,
}

impl Copier {
    fn copy<R: Read>(&self, mut from: R, to: &Path, mode: Permissions) -> io::Result<()> {
        /// Bytes between two checks of `stop`.
        const STEP: u64 = 32 << 20;
        let mut file = File::create(to)?;
        loop {
            self.stop.check()?;
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

/// Whether a file of a layout is rewritten, or is an incomplete blob of another process.
fn is_replaced(name: &Path) -> bool {
    [INDEX_NAME, LAYOUT_NAME]
        .iter()
        .any(|own| name == Path::new(own))
        || name.starts_with("ingest")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standalone::stop::StopOnDrop;

    #[test]
    fn a_folder_that_cannot_be_replaced_stays() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("layout");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("old"), "old").unwrap();
        let absent = folder.path().join("absent");
        let old = Temporary::beside(&place).unwrap();
        replace_in_steps(&absent, &place, old).unwrap_err();
        assert!(place.join("old").is_file());
        let new = folder.path().join("new");
        fs::create_dir(&new).unwrap();
        let old = Temporary::beside(&place).unwrap();
        replace_in_steps(&new, &place, old).unwrap();
        assert!(!place.join("old").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_stopped_copy_of_linked_blobs_stores_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let digest = soci_oci::Digest::sha256(b"blob");
        let source = Layout::create(folder.path().join("from")).unwrap();
        fs::write(folder.path().join("elsewhere"), "blob").unwrap();
        let link = source.blob_path(&digest);
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), link).unwrap();
        let output = NewFolder::create(&folder.path().join("to")).unwrap();
        let stop = StopOnDrop::default();
        let copier = Copier {
            stop: stop.flag(),
            count: Box::new(|_| {}),
        };
        let form = Form::Folder(source);
        drop(stop);
        output.copy(&form, &copier).unwrap_err();
        assert!(!output.layout.blob_path(&digest).exists());
        let stop = StopOnDrop::default();
        let copier = Copier {
            stop: stop.flag(),
            ..copier
        };
        output.copy(&form, &copier).unwrap();
        assert!(output.layout.blob_path(&digest).is_file());
    }
}
