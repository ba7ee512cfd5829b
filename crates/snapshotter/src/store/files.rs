//! One layer's files, open: how they are found, checked and made again from each other.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use soci_oci::Digest;
use soci_ztoc::{DetachedZtoc, Ztoc};

use super::{
    LayerKey, LayerNumber, MAX_SPAN, StoreError,
    present::Present,
    sealed::{Folder, Mapped, missing_is_none},
    sources::Sources,
    sums::Sums,
};
use crate::{
    places::{self, Places, Planned},
    sync::Arc,
};

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
    /// What their bytes must be.
    pub sums: Sums,
    /// None if the layer was pulled whole.
    pub ztoc: Option<ZtocFile>,
    /// Its folder.
    pub folder: Folder,
}

impl LayerFiles {
    /// The path of the EROFS image for a patch, if it is there and whole.
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

pub(super) fn key_of(sources: &Sources) -> LayerKey {
    let ztoc = sources.ztoc.as_ref().map(|ztoc| ztoc.digest);
    LayerKey {
        layer: sources.layer.digest,
        ztoc,
    }
}

/// Opens a layer's files. What a reboot has torn is made again where that needs nobody else.
pub(super) fn open(
    folder: Folder,
    number: LayerNumber,
    sources: Sources,
) -> Result<LayerFiles, StoreError> {
    let path = folder.path();
    let damaged = |file| StoreError::Damaged { number, file };
    let layer = sources.layer.digest;
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
    assemble(folder, number, sources, ztoc, places)
}

/// Opens the files whose sizes are known from the others.
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
        // Sizes are set before anything is visible: a file of another size was not ours to trust.
        if ztoc.is_none() {
            return Err(StoreError::Damaged {
                number,
                file: "data",
            });
        }
        missing_is_none(fs::remove_file(folder.file("present"))).map_err(StoreError::io(path))?;
        // Through nothing: what was there must not show behind the end of a file.
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
        folder,
    })
}

pub(super) fn read_ztoc(layer: &Digest, bytes: Mapped) -> Result<ZtocFile, StoreError> {
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

pub(super) fn write_places(
    folder: &Folder,
    layer: &Digest,
    ztoc: &ZtocFile,
) -> Result<Places, StoreError> {
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
        .write_made("places", |to| to.write_all(&table))
        .map_err(StoreError::io(folder.path()))?;
    let mapped = Mapped::open(&folder.file("places")).map_err(StoreError::io(folder.path()))?;
    Places::new(Arc::new(mapped)).map_err(|source| StoreError::Places {
        layer: Box::new(*layer),
        source,
    })
}
