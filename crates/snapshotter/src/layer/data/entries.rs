//! The entries of a layer's tar, from the zTOC or from the stored headers.

use std::io;

use soci_ztoc::{Entry, Policy, TarScanner, TarSink, Toc};

use super::Data;
use crate::{places::Piece, store::LayerFiles, sync::Arc};

/// The entries of a layer's tar, for building its tree.
#[derive(Debug)]
pub struct Entries(Listed);

#[derive(Debug)]
enum Listed {
    Ztoc(Arc<Data>),
    Scanned(Toc),
}

impl Entries {
    /// All entries in tar order. The index of an entry is the argument of `Places::data_of`.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Entry<'_>> + '_> {
        match &self.0 {
            Listed::Scanned(toc) => Box::new(toc.entries()),
            Listed::Ztoc(data) => match data.ztoc() {
                Some(ztoc) => Box::new(ztoc.view().entries()),
                None => Box::new(std::iter::empty()),
            },
        }
    }
}

impl Data {
    /// The entries of the tar: from the zTOC or, for a layer that was downloaded whole, from a scan
    /// of its headers. Blocks on the disk.
    ///
    /// # Errors
    /// The system's; headers that no longer parse.
    pub(in crate::layer) fn entries(self: &Arc<Self>) -> io::Result<Entries> {
        if self.ztoc().is_some() {
            return Ok(Entries(Listed::Ztoc(Arc::clone(self))));
        }
        scan(&self.files).map(|toc| Entries(Listed::Scanned(toc)))
    }
}

struct Listing(Toc);

impl TarSink for Listing {
    fn entry(&mut self, entry: &Entry<'_>) {
        self.0.push(entry);
    }
}

/// Scans the headers of a tar in `heads`. File contents are replaced by zeros.
fn scan(files: &LayerFiles) -> io::Result<Toc> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; 1 << 16];
    let mut buffer = vec![0; 1 << 16];
    let (mut scanner, mut listing) = (TarScanner::new(Policy::Unpack), Listing(Toc::new()));
    for piece in files.places.pieces(0..files.places.archive_size()) {
        let (mut place, mut len, stored) = match piece {
            Piece::Data { len, .. } => (0, len, false),
            Piece::Heads { heads, len, .. } => (heads, len, true),
        };
        while len > 0 {
            let step = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
            let part = if stored {
                files.heads.read_exact_at(&mut buffer[..step], place)?;
                &buffer[..step]
            } else {
                &zeros[..step]
            };
            scanner.feed(part, &mut listing).map_err(io::Error::other)?;
            place += step as u64;
            len -= step as u64;
        }
    }
    Ok(listing.0)
}
