//! The open files of one layer: opens, checks, and rebuilds them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    time::Instant,
};

use soci_oci::Digest;
use soci_ztoc::{DetachedZtoc, Ztoc};

use super::{
    LayerKey, LayerNumber, MAX_SPAN, StoreError,
    present::Present,
    sealed::{Folder, Mapped, Sealed, missing_is_none},
    sources::Sources,
    sums::Sums,
};
use crate::{
    metrics::{self, Timed},
    places::{self, Places, Planned},
    sync::Arc,
};

/// The zTOC of a layer: the mapped bytes and the parsed structure.
#[derive(Debug)]
pub struct ZtocFile {
    bytes: Mapped,
    shape: DetachedZtoc,
}

impl ZtocFile {
    /// The zTOC.
    pub fn view(&self) -> Ztoc<'_> {
        self.shape.attach(self.bytes.as_ref())
    }

    /// Offsets and digests of the spans.
    pub fn spans(&self) -> &soci_ztoc::SpanMap {
        self.shape.spans()
    }

    /// Releases the memory of the mapping. A complete layer rarely needs its entries and windows.
    pub fn release(&self) {
        if let Err(error) = self.bytes.release() {
            tracing::debug!(error = %error, "cannot release the memory of a zTOC");
        }
    }
}

/// The open files of one layer.
#[derive(Debug)]
pub struct LayerFiles {
    /// The layer's number.
    pub number: LayerNumber,
    /// The layer's identity.
    pub key: LayerKey,
    /// The descriptors of the layer and the images that name it.
    pub sources: Sources,
    /// File contents.
    pub data: File,
    /// The rest of the tar.
    pub heads: File,
    /// Map from tar offset to `data` and `heads` offset.
    pub places: Places,
    /// Which spans are stored.
    pub present: Present,
    /// A checksum of each stored span.
    pub sums: Sums,
    /// `None` if the layer was downloaded whole.
    pub ztoc: Option<ZtocFile>,
    /// What an earlier process noted about the first reads of the layer.
    pub starts: Option<Vec<u8>>,
    /// The layer's directory.
    pub folder: Folder,
}

impl LayerFiles {
    /// The path of the EROFS image for a patch, if it exists and is intact.
    ///
    /// # Errors
    /// The system's.
    pub fn meta(&self, patch: &str) -> io::Result<Option<PathBuf>> {
        let name = meta_name(patch)?;
        let whole = self.folder.has(&name)?;
        Ok(whole.then(|| self.folder.file(&name)))
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
        self.folder.write_made(&name, content)?;
        Ok(self.folder.file(&name))
    }

    /// Updates the file `sources`, for example when another image names the layer.
    ///
    /// # Errors
    /// The system's.
    pub fn write_sources(&self, sources: &Sources) -> io::Result<()> {
        sources.write(&self.folder)
    }

    /// The path of `data`.
    pub fn data_path(&self) -> PathBuf {
        self.folder.file("data")
    }
}

/// Name of the file with notes about the first reads of a layer.
const STARTS: &str = "starts";

/// The notes about the first reads of a layer. `None` if there are none, or they are damaged.
pub(super) fn read_starts(folder: &Folder) -> io::Result<Option<Vec<u8>>> {
    Ok(match folder.read(STARTS)? {
        Sealed::Whole(bytes) => Some(bytes),
        Sealed::Missing | Sealed::Torn => None,
    })
}

/// Writes the notes about the first reads of a layer. They need not survive a power failure.
pub(super) fn write_starts(folder: &Folder, notes: &[u8]) -> io::Result<()> {
    folder
        .write_made(STARTS, |to| to.write_all(notes))
        .map(drop)
}

fn meta_name(patch: &str) -> io::Result<String> {
    let plain = patch.len() <= 128 && patch.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !plain {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the name of a patch must consist of letters and digits",
        ));
    }
    Ok(if patch.is_empty() {
        "meta".to_owned()
    } else {
        format!("meta-{patch}")
    })
}

pub(super) fn key_of(sources: &Sources) -> LayerKey {
    let ztoc = sources.ztoc.as_ref().map(|ztoc| ztoc.digest);
    LayerKey {
        layer: sources.layer.digest,
        ztoc,
    }
}

/// Opens the files of a layer. Files that a reboot damaged are rebuilt if that does not need the
/// registry.
pub(super) fn open(
    folder: Folder,
    number: LayerNumber,
    sources: Sources,
) -> Result<LayerFiles, StoreError> {
    let path = folder.path();
    let damaged = |file| StoreError::Damaged { number, file };
    let layer = sources.layer.digest;
    // Without the notes, a layer works as well.
    let starts = read_starts(&folder).unwrap_or_default();
    let ztoc = match &sources.ztoc {
        None => None,
        Some(_) => {
            let mapped = folder.open("ztoc").map_err(StoreError::io(path))?;
            Some(read_ztoc(&layer, mapped.ok_or_else(|| damaged("ztoc"))?)?)
        }
    };
    let found = folder.open("places").map_err(StoreError::io(path))?;
    let found = found.map(|table| Places::new(Arc::new(table)));
    let places = match (found, &ztoc) {
        (Some(Ok(places)), _) => places,
        (Some(Err(_)), _) => {
            let file = "places";
            return Err(StoreError::Foreign { number, file });
        }
        (None, Some(ztoc)) => write_places(&folder, &layer, ztoc)?,
        (None, None) => return Err(damaged("places")),
    };
    let files = assemble(folder, number, sources, ztoc, places)?;
    Ok(LayerFiles { starts, ..files })
}

/// Opens the files whose expected sizes are known from the others.
pub(super) fn assemble(
    folder: Folder,
    number: LayerNumber,
    sources: Sources,
    ztoc: Option<ZtocFile>,
    places: Places,
) -> Result<LayerFiles, StoreError> {
    let path = folder.path();
    let open = |name, size| {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path.join(name))?;
        Ok((file.metadata()?.len() == size, file))
    };
    let (data_fits, data) = open("data", places.data_size()).map_err(StoreError::io(path))?;
    let (heads_fits, heads) = open("heads", places.heads_size()).map_err(StoreError::io(path))?;
    if !data_fits || !heads_fits {
        // Sizes are set before a layer becomes visible, so a wrong size means that the content
        // cannot be trusted.
        if ztoc.is_none() {
            return Err(StoreError::Damaged {
                number,
                file: "data",
            });
        }
        missing_is_none(fs::remove_file(folder.file("present"))).map_err(StoreError::io(path))?;
        // Truncate to zero first, so that no old bytes show after the end of a file.
        let resize = |file: &File, size| file.set_len(0).and_then(|()| file.set_len(size));
        resize(&data, places.data_size()).map_err(StoreError::io(path))?;
        resize(&heads, places.heads_size()).map_err(StoreError::io(path))?;
    }
    let spans = ztoc.as_ref().map_or(0, |ztoc| ztoc.spans().len());
    let present = Present::open(&folder.file("present"), spans, folder.boot())
        .map_err(StoreError::io(path))?;
    let sums = Sums::open(&folder.file("sums"), spans).map_err(StoreError::io(path))?;
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
        sums,
        ztoc,
        starts: None,
        folder,
    })
}

pub(super) fn read_ztoc(layer: &Digest, bytes: Mapped) -> Result<ZtocFile, StoreError> {
    let wrong = |source| StoreError::Ztoc {
        layer: Box::new(*layer),
        source,
    };
    let began = Instant::now();
    let ztoc = Ztoc::parse(bytes.as_ref()).map_err(wrong)?;
    ztoc.check_servable().map_err(wrong)?;
    let shape = ztoc.detach();
    let operations = &metrics::global().operations;
    operations.took(Timed::ZtocUnmarshal, layer, began.elapsed());
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

/// The table of places of a layer, according to its zTOC.
pub(super) fn table_of(layer: &Digest, ztoc: &ZtocFile) -> Result<Vec<u8>, StoreError> {
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
    // The iterator knows its length, so `plan` allocates the tables once.
    let table = places::plan(entries, ztoc.spans().archive_size());
    table.map_err(|source| StoreError::Places {
        layer: Box::new(*layer),
        source,
    })
}

pub(super) fn write_places(
    folder: &Folder,
    layer: &Digest,
    ztoc: &ZtocFile,
) -> Result<Places, StoreError> {
    let table = table_of(layer, ztoc)?;
    folder
        .write_made("places", |to| to.write_all(&table))
        .map_err(StoreError::io(folder.path()))?;
    let mapped = Mapped::open(&folder.file("places")).map_err(StoreError::io(folder.path()))?;
    Places::new(Arc::new(mapped)).map_err(|source| StoreError::Places {
        layer: Box::new(*layer),
        source,
    })
}
