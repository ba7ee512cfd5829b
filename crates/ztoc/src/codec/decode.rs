//! Decodes a zTOC into a borrowed, verified view.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

mod spans;

use std::sync::Arc;

use spans::{check_spans, checkpoints, span_map};

use super::{DecodeError, EntryProblem, MAX_ZTOC_SIZE, field, verify};
use crate::checkpoint::{Checkpoint, Compression};
use crate::flat;
use crate::span::{SpanId, SpanMap};
use crate::toc::{Entry, FileKind, Pax, Time, end_of};
use crate::zinfo::GzipTable;

/// A verified view of a zTOC's bytes, usually a mapped file.
///
/// Only span offsets and digests are copied; 100,000 entries need no heap memory.
#[derive(Debug, Clone)]
pub struct Ztoc<'a> {
    bytes: &'a [u8],
    shape: DetachedZtoc,
}

/// The result of [`Ztoc::parse`] without the bytes. Keep it next to a mapping and [`attach`] it to
/// the same bytes again at no cost.
///
/// [`attach`]: DetachedZtoc::attach
#[derive(Debug, Clone)]
pub struct DetachedZtoc {
    spans: SpanMap,
    compression: Compression,
    span_size: u64,
    entries: usize,
    /// Indexes of the entries by ascending offset, if the file has a different order.
    order: Option<Arc<[u32]>>,
}

impl DetachedZtoc {
    /// A view of `bytes`, which must be the bytes that were parsed. With other bytes the results
    /// are meaningless, but no access is out of bounds.
    #[must_use]
    pub fn attach<'a>(&self, bytes: &'a [u8]) -> Ztoc<'a> {
        Ztoc {
            bytes,
            shape: self.clone(),
        }
    }

    /// Offsets and digests of the spans.
    #[must_use]
    pub fn spans(&self) -> &SpanMap {
        &self.spans
    }
}

impl<'a> Ztoc<'a> {
    /// Verifies `bytes` completely. Afterwards spans ascend and lie within the layer, each has a
    /// digest and a checkpoint, and none claims more output than its bytes can give. Entries ascend
    /// and do not overlap, and regular files lie within the archive.
    ///
    /// # Errors
    /// [`DecodeError`] names the invalid part.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() as u64 > MAX_ZTOC_SIZE {
            return Err(DecodeError::TooLarge(bytes.len() as u64));
        }
        verify(bytes)?;
        let root = flat::Table::root(bytes);
        let size = |field, id| {
            let value = root.i64(id);
            u64::try_from(value).map_err(|_| DecodeError::Negative { field, value })
        };
        let layer_size = size("compressed size", field::ZTOC_COMPRESSED_SIZE)?;
        let archive_size = size("uncompressed size", field::ZTOC_UNCOMPRESSED_SIZE)?;
        let info = root
            .table(field::ZTOC_COMPRESSION)
            .ok_or(DecodeError::Missing("compression info"))?;
        let (compression, span_size, starts) = checkpoints(&info, layer_size)?;
        let spans = span_map(&info, starts, layer_size, archive_size)?;
        if compression == Compression::Gzip {
            check_spans(&spans)?;
        }
        let files = files(bytes)?;
        let shape = DetachedZtoc {
            spans,
            compression,
            span_size,
            entries: files.len(),
            order: order(files),
        };
        let ztoc = Self { bytes, shape };
        ztoc.check_entries(archive_size)?;
        Ok(ztoc)
    }

    /// The result of parsing, to be kept separately from the bytes.
    #[must_use]
    pub fn detach(&self) -> DetachedZtoc {
        self.shape.clone()
    }

    /// All entries by ascending offset, which is archive order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry<'a>> + use<'a> {
        let this = self.clone();
        let files = this.files();
        let mut next_header = 0;
        (0..this.shape.entries).map(move |index| {
            let entry = this.view(&files.table(this.position(index)), next_header);
            next_header = end_of(entry.offset, entry.size);
            entry
        })
    }

    /// One entry, by its index in archive order.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<Entry<'a>> {
        if index >= self.shape.entries {
            return None;
        }
        let files = self.files();
        let header_start = index.checked_sub(1).map_or(0, |before| {
            let before = self.view(&files.table(self.position(before)), 0);
            end_of(before.offset, before.size)
        });
        Some(self.view(&files.table(self.position(index)), header_start))
    }

    /// Number of entries.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.shape.entries
    }

    /// Offsets and digests of the spans.
    #[must_use]
    pub fn spans(&self) -> SpanMap {
        self.shape.spans.clone()
    }

    /// How the layer is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.shape.compression
    }

    /// The requested span size of the build, in bytes.
    #[must_use]
    pub fn span_size(&self) -> u64 {
        self.shape.span_size
    }

    /// The format version, unmodified.
    #[must_use]
    pub fn version(&self) -> &'a [u8] {
        flat::Table::root(self.bytes).bytes(field::ZTOC_VERSION)
    }

    /// The identifier of the tool that built the zTOC, unmodified.
    #[must_use]
    pub fn tool(&self) -> &'a [u8] {
        flat::Table::root(self.bytes).bytes(field::ZTOC_TOOL)
    }

    /// The bytes of the checkpoint table, of version 1 or 2.
    #[must_use]
    pub fn checkpoint_table(&self) -> &'a [u8] {
        flat::Table::root(self.bytes)
            .table(field::ZTOC_COMPRESSION)
            .map(|info| info.bytes(field::COMPRESSION_CHECKPOINTS))
            .unwrap_or_default()
    }

    /// The checkpoint at which a span begins. Its window is borrowed from the bytes.
    #[must_use]
    pub fn checkpoint(&self, id: SpanId) -> Checkpoint<'a> {
        match self.shape.compression {
            Compression::Plain => Checkpoint::Plain,
            Compression::Gzip => {
                let row = GzipTable::trusted(self.checkpoint_table(), self.shape.spans.len())
                    .and_then(|table| table.row(id.0 as usize));
                row.map_or(
                    Checkpoint::Gzip {
                        bits: 0,
                        window: &[],
                    },
                    |row| Checkpoint::Gzip {
                        bits: row.bits,
                        window: row.window,
                    },
                )
            }
        }
    }

    /// Checks that the layer can be served file by file. A well-formed zTOC can describe an archive
    /// that cannot: entries other than regular files that state a size (the headers after them
    /// cannot be found), and sparse files (their stored bytes are not their content).
    ///
    /// # Errors
    /// Names the first such entry.
    pub fn check_servable(&self) -> Result<(), DecodeError> {
        for (index, entry) in self.entries().enumerate() {
            let problem = if entry.is_sparse() {
                EntryProblem::Sparse
            } else if entry.kind != FileKind::Regular && entry.size != 0 {
                EntryProblem::SizeWithoutContent
            } else {
                continue;
            };
            return Err(wrong_entry(index, entry.name, problem));
        }
        Ok(())
    }

    /// Checks that entries do not overlap: each begins, after its headers, behind the padded end of
    /// the previous one.
    fn check_entries(&self, archive_size: u64) -> Result<(), DecodeError> {
        let files = self.files();
        let mut next_header = 0u64;
        for index in 0..self.shape.entries {
            let file = files.table(self.position(index));
            let wrong = |problem| wrong_entry(index, file.bytes(field::FILE_NAME), problem);
            let kind = FileKind::from_word(file.bytes(field::FILE_TYPE))
                .ok_or_else(|| wrong(EntryProblem::Kind))?;
            let extent = (
                u64::try_from(file.i64(field::FILE_OFFSET)),
                u64::try_from(file.i64(field::FILE_SIZE)),
            );
            let (Ok(offset), Ok(size)) = extent else {
                return Err(wrong(EntryProblem::Extent));
            };
            if offset < next_header {
                return Err(wrong(EntryProblem::Overlap));
            }
            let end = offset
                .checked_add(size)
                .ok_or_else(|| wrong(EntryProblem::Extent))?;
            if kind == FileKind::Regular && end > archive_size {
                return Err(wrong(EntryProblem::BehindEnd));
            }
            next_header = end_of(offset, size);
        }
        Ok(())
    }

    fn files(&self) -> flat::Vector<'a> {
        flat::Table::root(self.bytes)
            .table(field::ZTOC_TOC)
            .map_or(flat::Vector::EMPTY, |toc| toc.vector(field::TOC_METADATA))
    }

    /// Position in the file of the entry with this index in archive order.
    fn position(&self, index: usize) -> usize {
        match &self.shape.order {
            Some(order) => order.get(index).map_or(usize::MAX, |&place| place as usize),
            None => index,
        }
    }

    fn view(&self, file: &flat::Table<'a>, header_start: u64) -> Entry<'a> {
        let time = Time::from_rfc3339(file.bytes(field::FILE_MOD_TIME)).unwrap_or(Time::YEAR_ONE);
        Entry {
            name: file.bytes(field::FILE_NAME),
            kind: FileKind::from_word(file.bytes(field::FILE_TYPE)).unwrap_or(FileKind::Regular),
            header_start,
            offset: file.i64(field::FILE_OFFSET).cast_unsigned(),
            size: file.i64(field::FILE_SIZE).cast_unsigned(),
            link: file.bytes(field::FILE_LINKNAME),
            mode: file.i64(field::FILE_MODE),
            uid: file.u32(field::FILE_UID),
            gid: file.u32(field::FILE_GID),
            uname: file.bytes(field::FILE_UNAME),
            gname: file.bytes(field::FILE_GNAME),
            mtime: time,
            dev_major: file.i64(field::FILE_DEVMAJOR),
            dev_minor: file.i64(field::FILE_DEVMINOR),
            pax: Pax::flat(file.vector(field::FILE_XATTRS)),
        }
    }
}

fn wrong_entry(index: usize, name: &[u8], problem: EntryProblem) -> DecodeError {
    DecodeError::Entry {
        index,
        name: name.to_vec(),
        problem,
    }
}

fn files(bytes: &[u8]) -> Result<flat::Vector<'_>, DecodeError> {
    flat::Table::root(bytes)
        .table(field::ZTOC_TOC)
        .map(|toc| toc.vector(field::TOC_METADATA))
        .ok_or(DecodeError::Missing("table of contents"))
}

/// The order by ascending offset; `None` if the file already has it.
fn order(files: flat::Vector<'_>) -> Option<Arc<[u32]>> {
    let offset = |place: u32| files.table(place as usize).i64(field::FILE_OFFSET);
    let len = u32::try_from(files.len()).unwrap_or(u32::MAX);
    if (0..len).map(offset).is_sorted() {
        return None;
    }
    let mut places: Vec<u32> = (0..len).collect();
    places.sort_by_cached_key(|&place| offset(place));
    Some(places.into())
}
