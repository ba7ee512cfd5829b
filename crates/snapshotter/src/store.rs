//! The files of all layers: creates, finds, and removes them. The module `layer` reads and writes
//! their content.
//!
//! ```text
//! layers-2/next           a number larger than every one in use; numbers are never reused
//! layers-2/NUMBER/
//!     sources             identity of the layer and where to download it; written last
//!     data heads          the bytes (see `places`)
//!     places              map from tar offset to `data` and `heads` offset; sealed
//!     ztoc                the zTOC; sealed; absent if the layer was downloaded whole and not indexed
//!     present             which spans are stored
//!     sums                a checksum of each stored span
//!     meta-PATCH          EROFS images of the file tree; sealed
//!     starts              what was read first, and when; sealed; absent until something is read
//! ```
//!
//! A directory without `sources` is removed at start. A layer is identified by its digest *and*
//! that of its zTOC. A second zTOC for the same layer makes a second layer, so a false zTOC affects
//! only the images that use it.
//!
//! All functions block on the disk. Call them on the pool.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use soci_oci::{Descriptor, Digest};

use crate::{
    cpu::{Cpu, Lane},
    sync::{Arc, Mutex},
};

mod adopt;
mod aside;
mod error;
mod files;
mod indexed;
mod mapped;
pub mod present;
pub mod proofs;
pub mod sealed;
pub mod sources;
pub mod space;
pub mod sums;
#[cfg(test)]
mod tests;
mod times;
pub mod writeback;

pub use error::StoreError;
pub use files::{LayerFiles, ZtocFile};

use adopt::Found;
use aside::{Aside, Uses};
use files::{assemble, key_of, read_ztoc, write_places};
use present::Present;
use proofs::Proofs;
use sealed::{Folder, Mapped, missing_is_none};
use sources::{Origin, Sources};

/// Version of the on-disk format: the directory layout and the content of the files. Increment it
/// when either changes.
pub const VERSION: u32 = 2;

/// The directory of the store under the state root, named by the version.
pub const FOLDER: &str = "layers-2";

/// The permanent number of a layer in the store. The smallest is 2, so that it can serve as a FUSE
/// node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNumber(pub u64);

const FIRST_NUMBER: u64 = 2;

/// The largest span that is served, compressed or not, in bytes. A span is held in memory while it
/// is stored. Spans are 4 MiB by default and end at most a few MiB later, at the end of a deflate
/// block. A hostile zTOC must not exhaust the node's memory.
const MAX_SPAN: u64 = 128 << 20;

impl std::fmt::Display for LayerNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a layer in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerKey {
    /// Digest of the compressed layer.
    pub layer: Digest,
    /// Digest of its zTOC. `None` if the layer was downloaded whole and not indexed.
    pub ztoc: Option<Digest>,
}

/// What the files of a layer say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Size of the compressed layer in bytes.
    pub size: u64,
    /// Number of spans. 0 if the layer was downloaded whole.
    pub spans: usize,
    /// Spans that are stored.
    pub spans_present: usize,
    /// Every span is durable and every tar header matched.
    pub complete: bool,
}

/// A layer that is being downloaded whole. It becomes visible with [`LayerStore::finish_whole`].
/// Dropping it removes its files.
#[derive(Debug)]
pub struct Draft {
    number: LayerNumber,
    path: PathBuf,
    /// File contents, to be written sequentially.
    pub data: Arc<File>,
    /// The rest of the tar, also written sequentially.
    pub heads: Arc<File>,
    kept: bool,
    /// The pool that removes the files. `None`: whoever drops the draft.
    remover: Option<Arc<Cpu>>,
}

impl Draft {
    /// Leaves the removal to the pool. For owners that must not wait: deleting many gigabytes takes
    /// long.
    #[must_use]
    pub fn remove_on(mut self, cpu: &Arc<Cpu>) -> Draft {
        self.remover = Some(Arc::clone(cpu));
        self
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let path = std::mem::take(&mut self.path);
        // The space is released when the last of them is closed.
        let files = (Arc::clone(&self.data), Arc::clone(&self.heads));
        let remove = move || {
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), error = %error, "cannot remove an unfinished layer; it is removed at the next start");
            }
            drop(files);
        };
        match &self.remover {
            Some(cpu) => cpu.spawn(Lane::FilesBehind, remove),
            None => remove(),
        }
    }
}

#[derive(Debug)]
struct Known {
    by_key: HashMap<LayerKey, LayerNumber>,
    next: u64,
    /// Numbers below this are recorded as used.
    noted: u64,
}

/// The files of all layers under one directory.
#[derive(Debug)]
pub struct LayerStore {
    root: PathBuf,
    boot: String,
    aside: Aside,
    proofs: Proofs,
    known: Mutex<Known>,
}

impl LayerStore {
    /// Opens the store under the state root and removes leftovers of a crash. Unreadable layers are
    /// set aside. Stores of other versions are not touched. `boot` replaces the id of this boot in
    /// tests.
    ///
    /// # Errors
    /// The system's, about the directory of the store itself.
    pub fn open(state: &Path, boot: Option<&str>) -> Result<LayerStore, StoreError> {
        let root = state.join(FOLDER);
        fs::create_dir_all(&root).map_err(StoreError::io(&root))?;
        // Image contents: only root may read them.
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&root, private).map_err(StoreError::io(&root))?;
        let boot = match boot {
            Some(boot) => boot.to_owned(),
            None => sealed::boot_id().map_err(StoreError::io(Path::new("/proc")))?,
        };
        let aside = Aside::new(state);
        let Found { by_key, next } =
            adopt::all(&root, &boot, &aside).map_err(StoreError::io(&root))?;
        aside.report();
        let noted = noted(&Folder::new(&root, &boot)).unwrap_or_else(|error| {
            tracing::error!(path = %root.display(), error = %error, "cannot read the next layer number; it is derived from the existing layers");
            None
        });
        let known = Known {
            by_key,
            next: next.max(noted.unwrap_or(FIRST_NUMBER)),
            noted: noted.unwrap_or(0),
        };
        Ok(LayerStore {
            root,
            boot,
            aside,
            proofs: Proofs::open(state),
            known: Mutex::new(known),
        })
    }

    /// The results of verifying whole layers.
    pub fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// All layers, by number.
    pub fn list(&self) -> Vec<(LayerNumber, LayerKey)> {
        let known = self.known.lock();
        let mut all: Vec<_> = known
            .by_key
            .iter()
            .map(|(key, number)| (*number, *key))
            .collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all
    }

    /// The forms in which a layer is stored: with one or more zTOCs, or whole.
    pub fn find(&self, layer: &Digest) -> Vec<LayerKey> {
        let known = self.known.lock();
        known
            .by_key
            .keys()
            .filter(|key| key.layer == *layer)
            .copied()
            .collect()
    }

    /// The number of a layer.
    pub fn number(&self, key: &LayerKey) -> Option<LayerNumber> {
        self.known.lock().by_key.get(key).copied()
    }

    /// Creates the files of a layer with a zTOC and checks `bytes` against the zTOC's descriptor.
    /// The layer has no spans yet.
    ///
    /// # Errors
    /// A zTOC that does not match its descriptor, is malformed, or describes a layer that cannot be
    /// served; the system's. All files are removed on error.
    pub fn create_lazy(
        &self,
        layer: &Descriptor,
        ztoc: &Descriptor,
        bytes: impl AsRef<[u8]>,
        origin: Origin,
    ) -> Result<LayerFiles, StoreError> {
        let wrong = || StoreError::ZtocDigest {
            layer: Box::new(layer.digest),
            expected: Box::new(ztoc.digest),
        };
        let mut draft = self.draft()?;
        let folder = Folder::new(&draft.path, &self.boot);
        let sum = folder
            .write("ztoc", |to| to.write_all(bytes.as_ref()))
            .map_err(StoreError::io(&draft.path))?;
        // The seal is a SHA-256 as well, so the bytes are hashed only once.
        if ztoc.digest.hex() != sum && !ztoc.digest.matches(bytes.as_ref()) {
            return Err(wrong());
        }
        drop(bytes);
        let mapped = Mapped::open(&folder.file("ztoc")).map_err(StoreError::io(&draft.path))?;
        let parsed = read_ztoc(&layer.digest, mapped)?;
        let size = parsed.spans().layer_size();
        if size != layer.size {
            return Err(StoreError::Size {
                layer: Box::new(layer.digest),
                ztoc: size,
                size: layer.size,
            });
        }
        let places = write_places(&folder, &layer.digest, &parsed)?;
        draft
            .data
            .set_len(places.data_size())
            .map_err(StoreError::io(&draft.path))?;
        draft
            .heads
            .set_len(places.heads_size())
            .map_err(StoreError::io(&draft.path))?;
        let sources = Sources {
            layer: layer.clone(),
            ztoc: Some(ztoc.clone()),
            diff_id: None,
            origins: [origin].into(),
        };
        sources
            .write(&folder)
            .map_err(StoreError::io(&draft.path))?;
        self.keep(&mut draft, &key_of(&sources));
        assemble(folder, draft.number, sources, Some(parsed), places)
    }

    /// Starts a layer that is downloaded whole.
    ///
    /// # Errors
    /// The system's.
    pub fn draft(&self) -> Result<Draft, StoreError> {
        let number = self.next_number()?;
        let path = self.root.join(number.to_string());
        fs::create_dir(&path).map_err(StoreError::io(&path))?;
        let create = |name| {
            let mut options = File::options();
            options
                .read(true)
                .write(true)
                .create_new(true)
                .open(path.join(name))
        };
        let files = create("data").and_then(|data| Ok((data, create("heads")?)));
        let (data, heads) = files.map_err(StoreError::io(&path))?;
        Ok(Draft {
            number,
            path,
            data: Arc::new(data),
            heads: Arc::new(heads),
            kept: false,
            remover: None,
        })
    }

    /// Turns a draft into a layer. The caller has written all bytes and verified both digests. This
    /// function syncs them. `table` is the table of places. With `sources.ztoc`, the spans are
    /// present, and the layer has yet to be completed.
    ///
    /// # Errors
    /// The system's. All files are removed on error.
    pub fn finish_whole(
        &self,
        mut draft: Draft,
        sources: Sources,
        table: &[u8],
    ) -> Result<LayerFiles, StoreError> {
        let path = draft.path.clone();
        let folder = Folder::new(&path, &self.boot);
        let write = || -> io::Result<()> {
            draft.data.sync_all()?;
            draft.heads.sync_all()?;
            folder.write("places", |to| to.write_all(table))?;
            match sources.ztoc {
                None => Present::open(&folder.file("present"), 0, &self.boot)?.set_complete()?,
                Some(_) => self.mark_all(&folder, &sources.layer.digest)?,
            }
            sources.write(&folder)
        };
        write().map_err(StoreError::io(&path))?;
        self.keep(&mut draft, &key_of(&sources));
        files::open(folder, draft.number, sources)
    }

    /// Opens the files of a layer. Files that a reboot damaged are rebuilt if that does not need
    /// the registry.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the repair needs the registry: remove the layer and create it
    /// again. On any other error for which [`StoreError::is_lasting`] holds, set it aside. The
    /// system's.
    pub fn open_layer(&self, key: &LayerKey) -> Result<Option<LayerFiles>, StoreError> {
        let Some(number) = self.number(key) else {
            return Ok(None);
        };
        let folder = self.layer_folder(number);
        let file = sources::NAME;
        let sources = adopt::read_sources(&folder, number)?;
        let sources = sources.ok_or(StoreError::Damaged { number, file })?;
        files::open(folder, number, sources).map(Some)
    }

    /// Describes a layer without opening it. `None` if the store does not have it, or its files
    /// cannot be read.
    pub fn describe(&self, key: &LayerKey) -> Option<Stored> {
        let folder = self.layer_folder(self.number(key)?);
        let sources = Sources::read(&folder).ok()??;
        let marks = present::peek(&folder.file("present"), &self.boot).ok()??;
        Some(Stored {
            size: sources.layer.size,
            spans: marks.spans,
            spans_present: marks.present,
            complete: marks.complete,
        })
    }

    /// What was noted about the first reads of a layer. `None` if there are no notes.
    ///
    /// # Errors
    /// The system's.
    pub fn starts(&self, number: LayerNumber) -> io::Result<Option<Vec<u8>>> {
        files::read_starts(&self.layer_folder(number))
    }

    /// Replaces the notes about the first reads of a layer.
    ///
    /// # Errors
    /// The system's, for example because the layer was removed meanwhile.
    pub fn write_starts(&self, number: LayerNumber, notes: &[u8]) -> io::Result<()> {
        files::write_starts(&self.layer_folder(number), notes)
    }

    fn layer_folder(&self, number: LayerNumber) -> Folder {
        Folder::new(self.root.join(number.to_string()), &self.boot)
    }

    /// Removes a layer from the store but keeps its files next to it, because this version cannot
    /// use them.
    pub fn set_aside(&self, key: &LayerKey, why: &StoreError) {
        if let Some(number) = self.forget(key) {
            self.aside.put(self.layer_folder(number).path(), why);
        }
    }

    /// Deletes one unmounted layer of an older version. Returns false if there is none. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn delete_an_older(&self) -> io::Result<bool> {
        self.aside.delete_an_older(&Uses::read()?)
    }

    /// Removes a layer from the list. Later requests create a new layer. The files stay until
    /// [`LayerStore::delete`].
    pub fn forget(&self, key: &LayerKey) -> Option<LayerNumber> {
        self.known.lock().by_key.remove(key)
    }

    /// Deletes the files of a forgotten layer. Their space is released when the last open file is
    /// closed.
    ///
    /// # Errors
    /// The system's. Leftovers are removed at the next start.
    pub fn delete(&self, number: LayerNumber) -> Result<(), StoreError> {
        let path = self.root.join(number.to_string());
        // Without `sources` the directory is not a layer, even if the removal below fails.
        missing_is_none(fs::remove_file(path.join(sources::NAME)))
            .map_err(StoreError::io(&path))?;
        missing_is_none(fs::remove_dir_all(&path)).map_err(StoreError::io(&path))?;
        Ok(())
    }

    fn keep(&self, draft: &mut Draft, key: &LayerKey) {
        draft.kept = true;
        self.known.lock().by_key.insert(*key, draft.number);
    }

    /// Returns a number that was never used. It is recorded before it is used, in blocks, to save
    /// writes.
    fn next_number(&self) -> Result<LayerNumber, StoreError> {
        const BLOCK: u64 = 64;
        let (number, noted) = {
            let mut known = self.known.lock();
            let number = known.next;
            known.next += 1;
            (number, known.noted)
        };
        if number >= noted {
            let folder = Folder::new(&self.root, &self.boot);
            let noted = number - number % BLOCK + BLOCK;
            folder
                .write("next", |to| writeln!(to, "{noted}"))
                .and_then(|_| folder.sync())
                .map_err(StoreError::io(&self.root))?;
            let mut known = self.known.lock();
            known.noted = known.noted.max(noted);
        }
        Ok(LayerNumber(number))
    }
}

/// The first unused number according to the file `next`.
fn noted(folder: &Folder) -> io::Result<Option<u64>> {
    let next = folder.open("next")?;
    Ok(next.and_then(|text| std::str::from_utf8(text.as_ref()).ok()?.trim().parse().ok()))
}
