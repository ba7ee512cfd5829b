//! Builds the tables: assigns each file of a tar an offset in `data`. Rejects entries that cannot
//! be placed.

use std::ops::Range;

use super::{BLOCK, FILE, HEAD, HEADER, LEAD, MAGIC, MAX_DATA, MOST_ENTRIES, TAIL};

/// One entry of the tar, as input for [`plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Range of its header in the tar, including long names, PAX records, and the padding of the
    /// previous entry.
    pub header: Range<u64>,
    /// Offset of its content in the tar.
    pub offset: u64,
    /// Size of its content. 0 for everything except regular files.
    pub size: u64,
}

/// Entries that cannot be placed, or tables that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Entries overlap or are out of order.
    #[error(
        "entry {entry} starts at offset {offset} of the tar, before the end of the previous entry at {free}"
    )]
    Overlap {
        /// Ordinal of the entry.
        entry: u32,
        /// Offset at which the entry starts.
        offset: u64,
        /// First byte that no earlier entry occupies.
        free: u64,
    },
    /// An entry reaches past the end of the archive.
    #[error("entry {entry} ends outside the tar of {archive} bytes")]
    Outside {
        /// Ordinal of the entry.
        entry: u32,
        /// Size of the tar.
        archive: u64,
    },
    /// More than an EROFS device can hold.
    #[error("the files need more than 16 TiB of space")]
    TooLarge,
    /// More entries than a layer may have.
    #[error("more than {MOST_ENTRIES} entries")]
    TooMany,
    /// Not the tables of this version.
    #[error("not a table of places in the format of this version")]
    Foreign,
}

/// Builds the tables from the entries in tar order.
///
/// # Errors
/// Entries that overlap, reach past the end of the archive, or need too much space.
pub fn plan(
    entries: impl ExactSizeIterator<Item = Planned>,
    archive_size: u64,
) -> Result<Vec<u8>, PlaceError> {
    let mut tables = Tables::new(entries.len(), archive_size)?;
    for planned in entries {
        tables.push(&planned)?;
    }
    Ok(tables.finish())
}

/// Tables under construction, one entry after the other.
struct Tables {
    bytes: Vec<u8>,
    /// Offset of the file records in `bytes`.
    files: usize,
    archive_size: u64,
    /// Number of entries so far.
    entries: u32,
    /// First byte of the tar that no entry occupies.
    free: u64,
    /// Offset in `data` of the next file.
    data: u64,
    /// Bytes of file content so far.
    content: u64,
}

impl Tables {
    fn new(entries: usize, archive_size: u64) -> Result<Tables, PlaceError> {
        if entries > MOST_ENTRIES {
            return Err(PlaceError::TooMany);
        }
        let files = HEADER + entries * HEAD;
        let mut bytes = Vec::with_capacity(files + entries * FILE);
        bytes.resize(files, 0);
        Ok(Tables {
            bytes,
            files,
            archive_size,
            entries: 0,
            free: 0,
            data: LEAD,
            content: 0,
        })
    }

    fn push(&mut self, planned: &Planned) -> Result<(), PlaceError> {
        let Planned {
            header,
            offset,
            size,
        } = planned;
        let (offset, size, free) = (*offset, *size, self.free);
        let entry = self.entries;
        self.entries = entry.checked_add(1).ok_or(PlaceError::TooMany)?;
        if header.start > header.end || header.end > offset || offset < free {
            return Err(PlaceError::Overlap {
                entry,
                offset,
                free,
            });
        }
        let archive = self.archive_size;
        let end = offset.checked_add(size).filter(|end| *end <= archive);
        self.free = end.ok_or(PlaceError::Outside { entry, archive })?;
        let at = HEADER + entry as usize * HEAD;
        let slot = self.bytes.get_mut(at..at + HEAD);
        let slot = slot.ok_or(PlaceError::TooMany)?;
        slot[..8].copy_from_slice(&header.start.to_le_bytes());
        slot[8..].copy_from_slice(&header.end.to_le_bytes());
        if size > 0 {
            self.push_file(entry, offset, size)?;
        }
        Ok(())
    }

    fn push_file(&mut self, entry: u32, offset: u64, size: u64) -> Result<(), PlaceError> {
        let heads = offset - self.content;
        for number in [offset, self.data, heads, u64::from(entry)] {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.content += size;
        self.data = size
            .checked_next_multiple_of(BLOCK)
            .and_then(|room| self.data.checked_add(room))
            .filter(|data| *data <= MAX_DATA - TAIL)
            .ok_or(PlaceError::TooLarge)?;
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        let files = (self.bytes.len() - self.files) / FILE;
        let numbers = [
            files as u64,
            u64::from(self.entries),
            self.archive_size,
            self.data + TAIL,
            self.archive_size - self.content,
        ];
        self.bytes[..8].copy_from_slice(MAGIC);
        let slots = self.bytes[8..HEADER].chunks_exact_mut(8);
        for (slot, number) in slots.zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        self.bytes
    }
}
