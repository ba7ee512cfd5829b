//! The files of all layers: make them, find them again, remove them. What a layer *does* with its files is in `layer`.
//!
//! ```text
//! layers-2/next           the first number that was never given
//! layers-2/NUMBER/
//!     sources             what the layer is and where it was named; written last: without it the folder is swept
//!     data heads          the bytes (see `places`)
//!     places              the shift; sealed
//!     ztoc                the zTOC; sealed; none if the layer was pulled whole
//!     present             which spans are there
//!     sums                what their bytes must be
//!     meta-PATCH          EROFS images of its tree; sealed
//! ```
//!
//! A layer is known by its digest *and* its zTOC's: another zTOC of the same layer is another layer here, so that a
//! zTOC that lies can hurt only the images that brought it. Numbers are never used again.
//!
//! Everything here blocks on the disk: call it on the pool.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use soci_oci::{Descriptor, Digest};

use crate::sync::Mutex;

mod adopt;
mod aside;
mod error;
mod files;
mod mapped;
pub mod present;
pub mod proofs;
mod scrubbed;
pub mod sealed;
pub mod sources;
pub mod space;
pub mod sums;
#[cfg(test)]
mod tests;
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

/// Version of the form of the store: of its folders, and of what is in their files. What changes either changes this.
pub const VERSION: u32 = 2;

/// Its folder under the state root, named by the version.
pub const FOLDER: &str = "layers-2";

/// A layer's stable number in the store; the smallest is 2, so that it can be a FUSE node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNumber(pub u64);

const FIRST_NUMBER: u64 = 2;

/// The largest span that is served, compressed and not: it lies in memory while it is filled. Spans have 4 MiB by default and
/// end a deflate block later, a few MiB at most; a hostile zTOC must not take the node's memory.
const MAX_SPAN: u64 = 128 << 20;

impl std::fmt::Display for LayerNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a layer is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerKey {
    /// Digest of the compressed layer.
    pub layer: Digest,
    /// Digest of its zTOC; none if it was pulled whole.
    pub ztoc: Option<Digest>,
}

/// A layer that is being pulled whole: nothing of it is visible until [`LayerStore::finish_whole`]. Dropping it removes
/// its files.
#[derive(Debug)]
pub struct Draft {
    number: LayerNumber,
    path: PathBuf,
    /// File contents, to be written from the start.
    pub data: File,
    /// The rest of the tar, likewise.
    pub heads: File,
    kept: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), error = %error, "a draft stays until the next start");
        }
    }
}

#[derive(Debug)]
struct Known {
    by_key: HashMap<LayerKey, LayerNumber>,
    next: u64,
    /// Numbers below are noted as given.
    noted: u64,
}

/// The files of all layers under one folder.
#[derive(Debug)]
pub struct LayerStore {
    root: PathBuf,
    boot: String,
    aside: Aside,
    proofs: Proofs,
    known: Mutex<Known>,
}

impl LayerStore {
    /// Opens the store under the state root, sweeping what a crash left behind. What cannot be read is set aside, what is of
    /// another version is left alone. `boot` is this boot's id (tests bring their own).
    ///
    /// # Errors
    /// The system's, about the store's own folder.
    pub fn open(state: &Path, boot: Option<&str>) -> Result<LayerStore, StoreError> {
        let root = state.join(FOLDER);
        fs::create_dir_all(&root).map_err(StoreError::io(&root))?;
        // Contents of images: nobody but us has business here.
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
            tracing::error!(path = %root.display(), error = %error, "the next number of a layer cannot be read");
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

    /// What the tars of layers were found to be.
    pub fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// Everything that is there, by number.
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

    /// The forms in which a layer is there: with a zTOC (one or several), or whole.
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

    /// Makes the files of a layer with a zTOC. Bytes are checked against their descriptor; the layer has none of its spans.
    ///
    /// # Errors
    /// A zTOC that is not the one, is malformed, or describes what cannot be served; the system's. Nothing is left then.
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
        // The seal is the same hash: the bytes are hashed once.
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

    /// Begins a layer that is pulled whole.
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
            data,
            heads,
            kept: false,
        })
    }

    /// Makes a draft a layer: its bytes were checked against both digests and everything is written. The bytes are synced
    /// here. `table` is the table of places.
    ///
    /// # Errors
    /// The system's. Nothing is left then.
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
            Present::open(&folder.file("present"), 0, &self.boot)?.set_complete()?;
            sources.write(&folder)
        };
        write().map_err(StoreError::io(&path))?;
        self.keep(&mut draft, &key_of(&sources));
        files::open(folder, draft.number, sources)
    }

    /// Opens a layer's files. What a reboot has torn is made again where that needs nobody else.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it needs the registry: the layer is to be removed and made again. For any other that
    /// [`StoreError::is_lasting`] it is to be set aside. The system's.
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

    fn layer_folder(&self, number: LayerNumber) -> Folder {
        Folder::new(self.root.join(number.to_string()), &self.boot)
    }

    /// Takes a layer out of the store and keeps its files beside it: they are not what this version can use.
    pub fn set_aside(&self, key: &LayerKey, why: &StoreError) {
        if let Some(number) = self.forget(key) {
            self.aside.put(self.layer_folder(number).path(), why);
        }
    }

    /// Deletes one layer that an older version has left and that nothing mounts; false if there is none. Blocks on the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn delete_an_older(&self) -> io::Result<bool> {
        self.aside.delete_an_older(&Uses::read()?)
    }

    /// Takes a layer out of the list at once: who asks for it from now on makes a new one. Its files stay until
    /// [`LayerStore::delete`].
    pub fn forget(&self, key: &LayerKey) -> Option<LayerNumber> {
        self.known.lock().by_key.remove(key)
    }

    /// Deletes the files of a forgotten layer. Their space comes back when the last open file is closed.
    ///
    /// # Errors
    /// The system's; what is left is swept at the next start.
    pub fn delete(&self, number: LayerNumber) -> Result<(), StoreError> {
        let path = self.root.join(number.to_string());
        // Without it the folder is no layer, whatever happens below.
        missing_is_none(fs::remove_file(path.join(sources::NAME)))
            .map_err(StoreError::io(&path))?;
        missing_is_none(fs::remove_dir_all(&path)).map_err(StoreError::io(&path))?;
        Ok(())
    }

    fn keep(&self, draft: &mut Draft, key: &LayerKey) {
        draft.kept = true;
        self.known.lock().by_key.insert(*key, draft.number);
    }

    /// A number that was never given, noted before it is used. Numbers are noted in blocks, so that few writes are needed.
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

/// The first number that nobody was given, as it was noted.
fn noted(folder: &Folder) -> io::Result<Option<u64>> {
    let next = folder.open("next")?;
    Ok(next.and_then(|text| std::str::from_utf8(text.as_ref()).ok()?.trim().parse().ok()))
}
