//! The archive of a layer as seen by a pass: its entries, its warnings, or why it is rejected.

use super::{BuildError, MAX_WARNINGS, Warning, WarningKind};
use crate::codec::MAX_ZTOC_SIZE;
use crate::tar::{Policy, TarEnd, TarError, TarScanner, TarSink};
use crate::toc::{BLOCK, Entry, EntryLog, FileKind};

/// Scans the archive and keeps its entries.
///
/// A rejected archive does not end the pass: if the stream turns out to be damaged, that is the
/// cause, and the error that the reference reports.
pub(super) struct Contents {
    scanner: TarScanner,
    found: Found,
    refused: Option<TarError>,
}

/// Receives the bytes of an archive, in order.
pub(super) trait Archive: Send {
    fn take(&mut self, bytes: &[u8]);
}

/// A caller's receiver of an archive.
pub(super) type Receiver<'a> = &'a mut (dyn FnMut(&[u8]) + Send + 'a);

impl Archive for Receiver<'_> {
    fn take(&mut self, bytes: &[u8]) {
        self(bytes);
    }
}

#[derive(Debug)]
pub(super) struct Found {
    pub(super) entries: EntryLog,
    pub(super) warnings: Vec<Warning>,
    /// Compressed offset of the first member that is not gzip.
    pub(super) foreign: Option<u64>,
}

impl TarSink for Found {
    fn entry(&mut self, entry: &Entry<'_>) {
        let kind = if entry.is_sparse() {
            Some(WarningKind::Sparse)
        } else if entry.kind != FileKind::Regular && entry.size != 0 {
            Some(WarningKind::SizeWithoutContent {
                size: entry.size.cast_signed(),
            })
        } else {
            None
        };
        if let Some(kind) = kind
            && self.warnings.len() < MAX_WARNINGS
        {
            let name = entry.name.to_vec();
            self.warnings.push(Warning { name, kind });
        }
        self.entries.push(entry);
    }
}

impl Contents {
    pub(super) fn new() -> Self {
        Self {
            scanner: TarScanner::new(Policy::Ztoc),
            found: Found {
                entries: EntryLog::new(MAX_ZTOC_SIZE),
                warnings: Vec::new(),
                foreign: None,
            },
            refused: None,
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.refused.is_none() {
            self.refused = self.scanner.feed(bytes, &mut self.found).err();
        }
    }

    /// Handles a member that is not gzip, at this offset of the layer. The checkpoint search accepts
    /// a zlib stream, but the archive reader rejects its bytes.
    pub(super) fn refuse_foreign(&mut self, at: u64) {
        self.found.foreign.get_or_insert(at);
        if self.refused.is_none() && !self.scanner.has_ended() {
            let offset = self.scanner.position() / BLOCK * BLOCK;
            self.refused = Some(TarError::InvalidHeader { offset });
        }
    }

    pub(super) fn finish(mut self) -> Result<(Found, TarEnd), BuildError> {
        if let Some(error) = self.refused {
            return Err(error.into());
        }
        let end = self.scanner.finish()?;
        match self.found.entries.take_error() {
            Some(error) => Err(BuildError::Spool(error)),
            None => Ok((self.found, end)),
        }
    }
}
