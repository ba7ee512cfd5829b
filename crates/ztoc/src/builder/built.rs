//! The result of a build.

use std::io::{self, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use super::Warning;
use super::contents::Found;
use crate::checkpoint::Compression;
use crate::codec::encode::{EncodeError, Parts};
use crate::span::{Span, SpanDigest, SpanMap};
use crate::tar::TarEnd;
use crate::toc::{Entry, EntryLog, FileKind};
use crate::zinfo::HEADER_SIZE;

/// The checkpoint table of a built zTOC.
#[derive(Debug)]
pub(super) enum Zinfo {
    Gzip {
        header: [u8; HEADER_SIZE],
        records: SpooledTempFile,
        len: u64,
    },
    Plain(Vec<u8>),
}

impl Zinfo {
    fn len(&self) -> u64 {
        match self {
            Self::Gzip { len, .. } => HEADER_SIZE as u64 + len,
            Self::Plain(bytes) => bytes.len() as u64,
        }
    }

    fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Plain(bytes) => out.write_all(bytes),
            Self::Gzip {
                header,
                records,
                len,
            } => {
                out.write_all(header)?;
                records.seek(SeekFrom::Start(0))?;
                let copied = io::copy(records, out)?;
                if copied != *len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(())
            }
        }
    }
}

/// A zTOC that is ready to be written.
#[derive(Debug)]
pub struct BuiltZtoc {
    pub(super) tool: String,
    pub(super) compression: Compression,
    pub(super) pass: Pass,
    pub(super) zinfo: Zinfo,
}

impl BuiltZtoc {
    /// Writes the zTOC and returns its size in bytes. Can be called more than once.
    ///
    /// # Errors
    /// [`EncodeError`] if the zTOC is too large or cannot be written.
    pub fn encode(&mut self, out: &mut impl Write) -> Result<u64, EncodeError> {
        let count = self.pass.digests.len();
        let max_span_id = i64::try_from(count).unwrap_or(i64::MAX) - 1;
        let parts = Parts {
            tool: &self.tool,
            entries: &mut self.pass.entries,
            layer_size: self.pass.layer_size,
            archive_size: self.pass.archive_size,
            digests: &self.pass.digests,
            max_span_id: i32::try_from(max_span_id)
                .map_err(|_| EncodeError::TooManyCheckpoints { count })?,
            compression: Some(self.compression),
            kind_word: FileKind::as_str,
        };
        let zinfo = &mut self.zinfo;
        parts.encode(out, zinfo.len(), |out| zinfo.write(out))
    }

    /// Number of entries.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.pass.entries.len()
    }

    /// Calls `see` with all entries, in archive order.
    ///
    /// # Errors
    /// An I/O error if the temporary file of entries cannot be read back.
    pub fn each_entry(&mut self, see: impl FnMut(&Entry<'_>)) -> io::Result<()> {
        self.pass.entries.each(see)
    }

    /// Offsets and digests of the spans.
    #[must_use]
    pub fn spans(&self) -> SpanMap {
        SpanMap::new(
            self.pass.spans.clone(),
            self.pass.layer_size,
            self.pass.archive_size,
        )
    }

    /// Size of the layer in bytes.
    #[must_use]
    pub fn layer_size(&self) -> u64 {
        self.pass.layer_size
    }

    /// Size of the archive in bytes.
    #[must_use]
    pub fn archive_size(&self) -> u64 {
        self.pass.archive_size
    }

    /// Offset in the layer of the first member that is not gzip. It follows the end of the archive,
    /// so the zTOC does not depend on it, but decompressing the whole layer fails there.
    #[must_use]
    pub fn foreign_member(&self) -> Option<u64> {
        self.pass.foreign
    }

    /// The first few warnings about the layer.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.pass.warnings
    }
}

/// The result of a pass, for any compression.
#[derive(Debug)]
pub(super) struct Pass {
    entries: EntryLog,
    warnings: Vec<Warning>,
    foreign: Option<u64>,
    spans: Vec<Span>,
    digests: Vec<SpanDigest>,
    layer_size: u64,
    archive_size: u64,
}

impl Pass {
    pub(super) fn new(
        found: Found,
        end: TarEnd,
        spans: Vec<Span>,
        digests: Vec<SpanDigest>,
        layer_size: u64,
    ) -> Self {
        Self {
            entries: found.entries,
            warnings: found.warnings,
            foreign: found.foreign,
            spans,
            digests,
            layer_size,
            archive_size: end.archive_size,
        }
    }
}
