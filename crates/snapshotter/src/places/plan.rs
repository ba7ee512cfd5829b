//! Makes the tables: each file of a tar gets the next place in `data`. Lists of entries that have no places are refused.

use std::ops::Range;

use super::{BLOCK, FILE, HEAD, HEADER, LEAD, MAGIC, MAX_DATA, MOST_ENTRIES, TAIL};

/// One entry of the tar, as planning needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Bytes of the tar that are its header (with long names and PAX records, and the padding of the entry before).
    pub header: Range<u64>,
    /// First byte of its content in the tar.
    pub offset: u64,
    /// Bytes of content; 0 for everything that is not a regular file.
    pub size: u64,
}

/// A list of entries that has no places, or tables that cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Entries overlap or are out of order.
    #[error("entry {entry} at {offset} of the tar begins before {free}, where the one before ends")]
    Overlap {
        /// Ordinal of the entry.
        entry: u32,
        /// Where it says it begins.
        offset: u64,
        /// First byte that is not taken.
        free: u64,
    },
    /// An entry does not lie in the archive.
    #[error("entry {entry} ends outside the archive's {archive} bytes")]
    Outside {
        /// Ordinal of the entry.
        entry: u32,
        /// Size of the tar.
        archive: u64,
    },
    /// More than an EROFS device holds.
    #[error("the files need more than 16 TiB")]
    TooLarge,
    /// More entries than a tree is made of.
    #[error("more than {MOST_ENTRIES} entries")]
    TooMany,
    /// Not tables of this version.
    #[error("not a table of places of this version")]
    Foreign,
}

/// Makes the tables from the entries in the order of the tar.
///
/// # Errors
/// Entries that overlap, leave the archive or need too much room.
pub fn plan(
    entries: impl ExactSizeIterator<Item = Planned>,
    archive_size: u64,
) -> Result<Vec<u8>, PlaceError> {
    if entries.len() > MOST_ENTRIES {
        return Err(PlaceError::TooMany);
    }
    let headers = entries.len().checked_mul(HEAD).ok_or(PlaceError::TooMany)?;
    let mut table = Vec::with_capacity(HEADER + headers + entries.len() * FILE);
    table.resize(HEADER + headers, 0);
    let (mut free, mut data, mut content) = (0_u64, LEAD, 0_u64);
    let mut count = 0_u32;
    for planned in entries {
        let entry = count;
        count = count.checked_add(1).ok_or(PlaceError::TooMany)?;
        let Planned {
            header,
            offset,
            size,
        } = planned;
        if header.start > header.end || header.end > offset || offset < free {
            return Err(PlaceError::Overlap {
                entry,
                offset,
                free,
            });
        }
        let outside = PlaceError::Outside {
            entry,
            archive: archive_size,
        };
        let end = offset
            .checked_add(size)
            .filter(|end| *end <= archive_size)
            .ok_or(outside)?;
        let at = HEADER + entry as usize * HEAD;
        let slot = table.get_mut(at..at + HEAD).ok_or(PlaceError::TooMany)?;
        slot[..8].copy_from_slice(&header.start.to_le_bytes());
        slot[8..].copy_from_slice(&header.end.to_le_bytes());
        free = end;
        if size > 0 {
            for number in [offset, data, offset - content, u64::from(entry)] {
                table.extend_from_slice(&number.to_le_bytes());
            }
            content += size;
            data = size
                .checked_next_multiple_of(BLOCK)
                .and_then(|room| data.checked_add(room))
                .filter(|data| *data <= MAX_DATA - TAIL)
                .ok_or(PlaceError::TooLarge)?;
        }
    }
    let files = (table.len() - HEADER - headers) / FILE;
    let numbers = [
        files as u64,
        u64::from(count),
        archive_size,
        data + TAIL,
        archive_size - content,
    ];
    table[..8].copy_from_slice(MAGIC);
    for (slot, number) in table[8..HEADER].chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    Ok(table)
}
