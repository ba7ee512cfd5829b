//! Layers that were downloaded whole and indexed in passing: like those with a zTOC of the image,
//! except that every span is present from the start.

use std::{fs, io, io::Write};

use soci_oci::{Descriptor, Digest, media_type};
use soci_ztoc::BuiltZtoc;

use super::{
    Draft, LayerStore, StoreError,
    files::{read_ztoc, table_of},
    present::Present,
    sealed::{Folder, Mapped, missing_is_none},
};

/// Name of the file with the zTOC.
const ZTOC: &str = "ztoc";

impl LayerStore {
    /// Writes the zTOC of a draft and returns its descriptor. `table` is the table of places of the
    /// bytes that were written. `None` if the zTOC places files elsewhere, or describes another
    /// layer.
    ///
    /// # Errors
    /// A zTOC that cannot serve the layer; the system's. The draft then has no zTOC.
    pub fn index(
        &self,
        draft: &Draft,
        layer: &Descriptor,
        mut ztoc: BuiltZtoc,
        table: &[u8],
    ) -> Result<Option<Descriptor>, StoreError> {
        let folder = Folder::new(&draft.path, &self.boot);
        let mut size = 0;
        let encode = |mut to: &mut dyn Write| {
            size = ztoc.encode(&mut to).map_err(io::Error::other)?;
            Ok(())
        };
        let sum = folder
            .write(ZTOC, encode)
            .map_err(StoreError::io(&draft.path))?;
        // The seal is a SHA-256 as well.
        let digest = format!("sha256:{sum}").parse().ok();
        let fits = digest.is_some() && self.fits(&folder, layer, table)?;
        let ztoc = digest.filter(|_| fits);
        if ztoc.is_none() {
            remove(&folder)?;
        }
        Ok(ztoc.map(|digest| Descriptor::new(media_type::OCTET_STREAM, digest, size)))
    }

    /// Whether the zTOC in a directory describes this layer and places its files like `table`.
    fn fits(&self, folder: &Folder, layer: &Descriptor, table: &[u8]) -> Result<bool, StoreError> {
        let fits = || {
            let mapped = Mapped::open(&folder.file(ZTOC)).map_err(StoreError::io(folder.path()))?;
            let parsed = read_ztoc(&layer.digest, mapped)?;
            let size = parsed.spans().layer_size();
            Ok(size == layer.size && table_of(&layer.digest, &parsed)? == table)
        };
        fits().inspect_err(|_| drop(remove(folder)))
    }

    /// Marks every span of a layer as written, according to its zTOC.
    pub(super) fn mark_all(&self, folder: &Folder, layer: &Digest) -> io::Result<()> {
        let ztoc = read_ztoc(layer, Mapped::open(&folder.file(ZTOC))?).map_err(io::Error::other)?;
        let spans = ztoc.spans();
        let present = Present::open(&folder.file("present"), spans.len(), &self.boot)?;
        spans.ids().try_for_each(|span| present.written(span.0))
    }
}

fn remove(folder: &Folder) -> Result<(), StoreError> {
    let removed = missing_is_none(fs::remove_file(folder.file(ZTOC)));
    removed.map(drop).map_err(StoreError::io(folder.path()))
}
