//! The table of contents: the entries of the tar. This module does not depend on compression.
//!
//! An [`Entry`] is a small `Copy` view. Its strings are bytes, never text: real archives contain
//! names and attribute values that are not UTF-8, and rewriting them would change a zTOC's digest.
//! Entries are borrowed from the bytes of a zTOC or from a [`record`]. Users of the tar scanner
//! keep records in a [`Toc`], which needs no heap object per entry. Builders keep them in a
//! [`log`], which moves to a temporary file when it is long.

use std::fmt;
use std::ops::Range;

use crate::flat;

mod log;
mod packed;
mod record;
mod time;

pub(crate) use log::EntryLog;
pub use packed::{Entries, Toc};
pub(crate) use record::{end_of, pack};
pub use time::Time;

/// Prefix of the PAX records that contain extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Size of a tar block in bytes. Headers and padded file ends are aligned to it.
pub(crate) const BLOCK: u64 = 512;

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A file with content.
    Regular,
    /// A directory.
    Directory,
    /// A further name of an earlier entry.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

impl FileKind {
    /// The word for this kind in a zTOC.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "reg",
            Self::Directory => "dir",
            Self::Hardlink => "hardlink",
            Self::Symlink => "symlink",
            Self::Char => "char",
            Self::Block => "block",
            Self::Fifo => "fifo",
        }
    }

    pub(crate) fn from_word(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"reg" => Self::Regular,
            b"dir" => Self::Directory,
            b"hardlink" => Self::Hardlink,
            b"symlink" => Self::Symlink,
            b"char" => Self::Char,
            b"block" => Self::Block,
            b"fifo" => Self::Fifo,
            _ => return None,
        })
    }
}

/// One entry of the archive, as described by the tar and its PAX records.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    /// The name as in the archive: not cleaned, with any leading `./` or trailing `/`.
    pub name: &'a [u8],
    /// Kind of file.
    pub kind: FileKind,
    /// Offset of the entry's own headers in the uncompressed stream, which is the end of the padded
    /// data of the previous entry.
    pub header_start: u64,
    /// Offset of the content in the uncompressed stream, right after the header.
    pub offset: u64,
    /// The stated size in bytes, for every kind. Only a regular file has content; see
    /// [`Entry::content`].
    pub size: u64,
    /// The link target, unmodified.
    pub link: &'a [u8],
    /// The mode field: permission bits and any other bits that were set.
    pub mode: i64,
    /// Owner, modulo 2^32.
    pub uid: u32,
    /// Group, modulo 2^32.
    pub gid: u32,
    /// Owner's name.
    pub uname: &'a [u8],
    /// Group's name.
    pub gname: &'a [u8],
    /// Modification time.
    pub mtime: Time,
    /// Device numbers as parsed; also set for entries that are not devices.
    pub dev_major: i64,
    /// See `dev_major`.
    pub dev_minor: i64,
    /// All PAX records, ascending by key.
    pub pax: Pax<'a>,
}

impl<'a> Entry<'a> {
    /// The range of the tar that describes this entry: PAX and long-name blocks and the header
    /// itself.
    #[must_use]
    pub fn header(&self) -> Range<u64> {
        self.header_start..self.offset
    }

    /// The range of the tar that contains the content. Empty for everything except regular files,
    /// regardless of the stated size.
    #[must_use]
    pub fn content(&self) -> Range<u64> {
        match self.kind {
            FileKind::Regular => self.offset..self.offset.saturating_add(self.size),
            _ => self.offset..self.offset,
        }
    }

    /// Extended attributes: the `SCHILY.xattr.` PAX records, without that prefix.
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.pax
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?, value)))
    }

    /// Whether the PAX records make this a sparse file, whose stored bytes are not its content.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        SparseVersion::of(|key| self.pax.get(key)).is_some()
    }
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("name", &String::from_utf8_lossy(self.name))
            .field("kind", &self.kind)
            .field("header", &self.header())
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The PAX sparse format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SparseVersion {
    /// The map is in the records (0.0 and 0.1).
    InRecords,
    /// The map precedes the data (1.0).
    InData,
}

impl SparseVersion {
    /// Decides like Go's reader: by the version records, or by the map if there are none.
    pub(crate) fn of<'r>(record: impl Fn(&[u8]) -> Option<&'r [u8]>) -> Option<Self> {
        let value = |key: &str| record(key.as_bytes()).unwrap_or_default();
        match (value("GNU.sparse.major"), value("GNU.sparse.minor")) {
            (b"0", b"0" | b"1") => Some(Self::InRecords),
            (b"1", b"0") => Some(Self::InData),
            (b"", b"") if !value("GNU.sparse.map").is_empty() => Some(Self::InRecords),
            _ => None,
        }
    }
}

/// The PAX records of an entry: keys and raw values, ascending by key.
#[derive(Clone, Copy)]
pub struct Pax<'a>(Records<'a>);

#[derive(Clone, Copy)]
enum Records<'a> {
    Packed(&'a [u8]),
    Flat(flat::Vector<'a>),
}

impl<'a> Pax<'a> {
    /// No records.
    pub const EMPTY: Self = Self(Records::Packed(&[]));

    pub(crate) fn packed(bytes: &'a [u8]) -> Self {
        Self(Records::Packed(bytes))
    }

    pub(crate) fn flat(vector: flat::Vector<'a>) -> Self {
        Self(Records::Flat(vector))
    }

    /// All records in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let (packed, flat) = match self.0 {
            Records::Packed(bytes) => (bytes, None),
            Records::Flat(vector) => (&[][..], Some(vector)),
        };
        let flat = flat
            .into_iter()
            .flat_map(|vector| (0..vector.len()).map(move |i| vector.table(i)));
        record::unpack(packed).chain(flat.map(|record| (record.bytes(0), record.bytes(1))))
    }

    /// The value of one record.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// Whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self.0 {
            Records::Packed(bytes) => bytes.is_empty(),
            Records::Flat(vector) => vector.len() == 0,
        }
    }
}

impl fmt::Debug for Pax<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        f.debug_map()
            .entries(self.iter().map(|(k, v)| (text(k), text(v))))
            .finish()
    }
}
