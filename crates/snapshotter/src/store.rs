//! The files of all layers: make them, find them again, remove them. What a layer *does* with its files is in `layer`.
//!
//! ```text
//! layers/next             the first number that was never given
//! layers/NUMBER/
//!     sources             what the layer is and where it was named; written last: without it the folder is swept
//!     data heads          the bytes (see `places`)
//!     places              the shift; sealed
//!     ztoc                the zTOC; sealed; none if the layer was pulled whole
//!     present             which spans are there
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
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use soci_oci::{Descriptor, Digest};
use soci_ztoc::{DetachedZtoc, Ztoc};

use crate::{
    places::{self, PlaceError, Places, Planned},
    sync::{Arc, Mutex},
};

pub mod present;
pub mod sealed;
pub mod sources;

use present::Present;
use sealed::{Folder, Mapped, missing_is_none};
use sources::{Origin, Sources};

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

/// Why a layer's files cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system's account.
    #[error("{path}")]
    Io {
        /// What was being worked on.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The zTOC's bytes are not those its descriptor names.
    #[error("zTOC of {layer} does not have the digest {expected}")]
    ZtocDigest {
        /// The layer.
        layer: Box<Digest>,
        /// The zTOC's digest by its descriptor.
        expected: Box<Digest>,
    },
    /// The zTOC is malformed or describes what cannot be served.
    #[error("zTOC of {layer}")]
    Ztoc {
        /// The layer.
        layer: Box<Digest>,
        /// What is wrong with it.
        #[source]
        source: soci_ztoc::DecodeError,
    },
    /// A span that would have to lie in memory as a whole is too large for that.
    #[error("zTOC of {layer}: span {span} has {bytes} bytes, more than {MAX_SPAN}")]
    Span {
        /// The layer.
        layer: Box<Digest>,
        /// The span.
        span: u32,
        /// Its size, compressed or not.
        bytes: u64,
    },
    /// The zTOC is about a layer of another size.
    #[error("zTOC of {layer} is for a layer of {ztoc} bytes, not {size}")]
    Size {
        /// The layer.
        layer: Box<Digest>,
        /// Size by the zTOC.
        ztoc: u64,
        /// Size by the manifest.
        size: u64,
    },
    /// The entries have no places.
    #[error("entries of {layer}")]
    Places {
        /// The layer.
        layer: Box<Digest>,
        /// What is wrong with them.
        #[source]
        source: PlaceError,
    },
    /// A file that cannot be made again without the registry is torn.
    #[error("layer {number} of the store is damaged: {file}")]
    Damaged {
        /// Its number.
        number: LayerNumber,
        /// Which file.
        file: &'static str,
    },
}

impl StoreError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<'_> {
        |source| StoreError::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// The zTOC of a layer: mapped bytes and what parsing found out.
#[derive(Debug)]
pub struct ZtocFile {
    bytes: Mapped,
    shape: DetachedZtoc,
}

impl ZtocFile {
    /// The view.
    pub fn view(&self) -> Ztoc<'_> {
        self.shape.attach(self.bytes.as_ref())
    }

    /// Offsets and digests of the spans.
    pub fn spans(&self) -> &soci_ztoc::SpanMap {
        self.shape.spans()
    }

    /// The layer is complete: entries and windows are hardly needed any more, and need not count as memory.
    pub fn release(&self) {
        if let Err(error) = self.bytes.release() {
            tracing::debug!(error = %error, "a zTOC stays in memory");
        }
    }
}

/// One layer's files, open.
#[derive(Debug)]
pub struct LayerFiles {
    /// Its number.
    pub number: LayerNumber,
    /// What it is known by.
    pub key: LayerKey,
    /// What it is and where it was named.
    pub sources: Sources,
    /// File contents.
    pub data: File,
    /// The rest of the tar.
    pub heads: File,
    /// The shift.
    pub places: Places,
    /// Which spans are there.
    pub present: Present,
    /// None if the layer was pulled whole.
    pub ztoc: Option<ZtocFile>,
    /// Its folder.
    pub folder: Folder,
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
}

/// The files of all layers under one folder.
#[derive(Debug)]
pub struct LayerStore {
    root: PathBuf,
    boot: String,
    known: Mutex<Known>,
}

impl LayerStore {
    /// Opens the store at `root/layers`, sweeping what a crash left behind. `boot` is this boot's id (tests bring their own).
    ///
    /// # Errors
    /// The system's.
    pub fn open(root: &Path, boot: Option<&str>) -> Result<LayerStore, StoreError> {
        let root = root.join("layers");
        fs::create_dir_all(&root).map_err(StoreError::io(&root))?;
        // Contents of images: nobody but us has business here.
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&root, private).map_err(StoreError::io(&root))?;
        let boot = match boot {
            Some(boot) => boot.to_owned(),
            None => sealed::boot_id().map_err(StoreError::io(Path::new("/proc")))?,
        };
        let folder = Folder::new(&root, &boot);
        let next = folder.open("next").map_err(StoreError::io(&root))?;
        let next =
            next.and_then(|text| std::str::from_utf8(text.as_ref()).ok()?.trim().parse().ok());
        let mut known = Known {
            by_key: HashMap::new(),
            next: next.unwrap_or(FIRST_NUMBER),
        };
        for entry in fs::read_dir(&root).map_err(StoreError::io(&root))? {
            let entry = entry.map_err(StoreError::io(&root))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                adopt(&entry.path(), &boot, &mut known)?;
            }
        }
        Ok(LayerStore {
            root,
            boot,
            known: Mutex::new(known),
        })
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
        self.assemble(draft.number, sources, Some(parsed), places)
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
        self.open_at(draft.number, sources)
    }

    /// Opens a layer's files. What a reboot has torn is made again where that needs nobody else.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it needs the registry: the layer is to be removed and made again. The system's.
    pub fn open_layer(&self, key: &LayerKey) -> Result<Option<LayerFiles>, StoreError> {
        let Some(number) = self.number(key) else {
            return Ok(None);
        };
        let path = self.root.join(number.to_string());
        let folder = Folder::new(&path, &self.boot);
        let sources = Sources::read(&folder).map_err(StoreError::io(&path))?;
        let sources = sources.ok_or(StoreError::Damaged {
            number,
            file: sources::NAME,
        })?;
        self.open_at(number, sources).map(Some)
    }

    fn open_at(&self, number: LayerNumber, sources: Sources) -> Result<LayerFiles, StoreError> {
        let path = self.root.join(number.to_string());
        let folder = Folder::new(&path, &self.boot);
        let layer = sources.layer.digest;
        let ztoc = match &sources.ztoc {
            None => None,
            Some(_) => {
                let mapped = folder.open("ztoc").map_err(StoreError::io(&path))?;
                let mapped = mapped.ok_or(StoreError::Damaged {
                    number,
                    file: "ztoc",
                })?;
                Some(read_ztoc(&layer, mapped)?)
            }
        };
        let found = folder.open("places").map_err(StoreError::io(&path))?;
        let places = match (
            found.and_then(|found| Places::new(Arc::new(found)).ok()),
            &ztoc,
        ) {
            (Some(places), _) => places,
            (None, Some(ztoc)) => write_places(&folder, &layer, ztoc)?,
            (None, None) => {
                return Err(StoreError::Damaged {
                    number,
                    file: "places",
                });
            }
        };
        self.assemble(number, sources, ztoc, places)
    }

    /// Opens the files whose sizes are known from the others.
    fn assemble(
        &self,
        number: LayerNumber,
        sources: Sources,
        ztoc: Option<ZtocFile>,
        places: Places,
    ) -> Result<LayerFiles, StoreError> {
        let path = self.root.join(number.to_string());
        let folder = Folder::new(&path, &self.boot);
        let open = |name, size| {
            let file = File::options()
                .read(true)
                .write(true)
                .open(path.join(name))?;
            Ok((file.metadata()?.len() == size, file))
        };
        let (data_fits, data) = open("data", places.data_size()).map_err(StoreError::io(&path))?;
        let (heads_fits, heads) =
            open("heads", places.heads_size()).map_err(StoreError::io(&path))?;
        if !data_fits || !heads_fits {
            // Sizes are set before anything is visible: a file of another size was not ours to trust.
            if ztoc.is_none() {
                return Err(StoreError::Damaged {
                    number,
                    file: "data",
                });
            }
            missing_is_none(fs::remove_file(folder.file("present")))
                .map_err(StoreError::io(&path))?;
            data.set_len(places.data_size())
                .map_err(StoreError::io(&path))?;
            heads
                .set_len(places.heads_size())
                .map_err(StoreError::io(&path))?;
        }
        let spans = ztoc.as_ref().map_or(0, |ztoc| ztoc.spans().len());
        let present = Present::open(&folder.file("present"), spans, &self.boot)
            .map_err(StoreError::io(&path))?;
        if ztoc.is_none() && !present.is_complete() {
            return Err(StoreError::Damaged {
                number,
                file: "present",
            });
        }
        Ok(LayerFiles {
            number,
            key: key_of(&sources),
            sources,
            data,
            heads,
            places,
            present,
            ztoc,
            folder,
        })
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

    /// Bytes free for the store, in its file system.
    ///
    /// # Errors
    /// The system's.
    pub fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn keep(&self, draft: &mut Draft, key: &LayerKey) {
        draft.kept = true;
        self.known.lock().by_key.insert(*key, draft.number);
    }

    /// A number that was never given, noted before it is used. Numbers are noted in blocks, so that few writes are needed.
    fn next_number(&self) -> Result<LayerNumber, StoreError> {
        const BLOCK: u64 = 64;
        let number = {
            let mut known = self.known.lock();
            let number = known.next;
            known.next += 1;
            number
        };
        if number % BLOCK == 0 || number == FIRST_NUMBER {
            let folder = Folder::new(&self.root, &self.boot);
            let noted = number - number % BLOCK + BLOCK;
            folder
                .write("next", |to| writeln!(to, "{noted}"))
                .and_then(|_| folder.sync())
                .map_err(StoreError::io(&self.root))?;
        }
        Ok(LayerNumber(number))
    }
}

impl LayerFiles {
    /// The path of the EROFS image for a patch, if it is there and whole.
    ///
    /// # Errors
    /// The system's.
    pub fn meta(&self, patch: &str) -> io::Result<Option<PathBuf>> {
        let name = meta_name(patch)?;
        Ok(self.folder.open(&name)?.map(|_| self.folder.file(&name)))
    }

    /// Writes the EROFS image for a patch.
    ///
    /// # Errors
    /// The system's and the writer's.
    pub fn write_meta(
        &self,
        patch: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        let name = meta_name(patch)?;
        self.folder.write(&name, content)?;
        self.folder.sync()?;
        Ok(self.folder.file(&name))
    }

    /// The image was named once more.
    ///
    /// # Errors
    /// The system's.
    pub fn write_sources(&self, sources: &Sources) -> io::Result<()> {
        sources.write(&self.folder)
    }

    /// Where the bytes are.
    pub fn data_path(&self) -> PathBuf {
        self.folder.file("data")
    }
}

fn meta_name(patch: &str) -> io::Result<String> {
    let plain = patch.len() <= 128 && patch.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !plain {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a patch is named by letters and digits",
        ));
    }
    Ok(if patch.is_empty() {
        "meta".to_owned()
    } else {
        format!("meta-{patch}")
    })
}

fn key_of(sources: &Sources) -> LayerKey {
    let ztoc = sources.ztoc.as_ref().map(|ztoc| ztoc.digest);
    LayerKey {
        layer: sources.layer.digest,
        ztoc,
    }
}

fn adopt(path: &Path, boot: &str, known: &mut Known) -> Result<(), StoreError> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str()?.parse::<u64>().ok());
    let sources = Sources::read(&Folder::new(path, boot)).map_err(StoreError::io(path))?;
    let (Some(number), Some(sources)) = (name.filter(|name| *name >= FIRST_NUMBER), sources) else {
        tracing::info!(path = %path.display(), "removing what an unfinished layer left");
        return fs::remove_dir_all(path).map_err(StoreError::io(path));
    };
    sweep_unfinished(path).map_err(StoreError::io(path))?;
    known.next = known.next.max(number + 1);
    known.by_key.insert(key_of(&sources), LayerNumber(number));
    Ok(())
}

/// Files that a crash left half written.
fn sweep_unfinished(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        if entry
            .extension()
            .is_some_and(|extension| extension == "new")
        {
            fs::remove_file(entry)?;
        }
    }
    Ok(())
}

fn read_ztoc(layer: &Digest, bytes: Mapped) -> Result<ZtocFile, StoreError> {
    let wrong = |source| StoreError::Ztoc {
        layer: Box::new(*layer),
        source,
    };
    let ztoc = Ztoc::parse(bytes.as_ref()).map_err(wrong)?;
    ztoc.check_servable().map_err(wrong)?;
    let shape = ztoc.detach();
    let spans = shape.spans();
    for id in spans.ids() {
        let (packed, plain) = (spans.compressed(id), spans.uncompressed(id));
        let bytes = (packed.end - packed.start).max(plain.end - plain.start);
        if bytes > MAX_SPAN {
            return Err(StoreError::Span {
                layer: Box::new(*layer),
                span: id.0,
                bytes,
            });
        }
    }
    Ok(ZtocFile { bytes, shape })
}

fn write_places(folder: &Folder, layer: &Digest, ztoc: &ZtocFile) -> Result<Places, StoreError> {
    let entries = ztoc.view();
    let entries = entries.entries().map(|entry| {
        let content = entry.content();
        let size = content.end - content.start;
        Planned {
            header: entry.header(),
            offset: content.start,
            size,
        }
    });
    // The zTOC's iterator knows its length: the tables are made in place.
    let table = places::plan(entries, ztoc.spans().archive_size());
    let table = table.map_err(|source| StoreError::Places {
        layer: Box::new(*layer),
        source,
    })?;
    folder
        .write("places", |to| to.write_all(&table))
        .map_err(StoreError::io(folder.path()))?;
    let mapped = Mapped::open(&folder.file("places")).map_err(StoreError::io(folder.path()))?;
    Places::new(Arc::new(mapped)).map_err(|source| StoreError::Places {
        layer: Box::new(*layer),
        source,
    })
}
