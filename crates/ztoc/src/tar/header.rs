//! Parses one header block: format, fields, numbers.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use crate::toc::Time;

pub(super) const BLOCK_SIZE: usize = 512;

pub(super) type Block = [u8; BLOCK_SIZE];

/// Position of a field in the block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field(usize, usize);

impl Field {
    pub(super) fn of(self, block: &Block) -> &[u8] {
        block.get(self.0..self.1).unwrap_or_default()
    }
}

const NAME: Field = Field(0, 100);
const MODE: Field = Field(100, 108);
const UID: Field = Field(108, 116);
const GID: Field = Field(116, 124);
const SIZE: Field = Field(124, 136);
const MTIME: Field = Field(136, 148);
const CHECKSUM: Field = Field(148, 156);
const TYPEFLAG: usize = 156;
pub(super) const LINKNAME: Field = Field(157, 257);
const MAGIC: Field = Field(257, 263);
const VERSION: Field = Field(263, 265);
const UNAME: Field = Field(265, 297);
const GNAME: Field = Field(297, 329);
const DEVMAJOR: Field = Field(329, 337);
const DEVMINOR: Field = Field(337, 345);
const USTAR_PREFIX: Field = Field(345, 500);
const STAR_PREFIX: Field = Field(345, 476);
const STAR_ATIME: Field = Field(476, 488);
const STAR_CTIME: Field = Field(488, 500);
const STAR_TRAILER: Field = Field(508, 512);
const GNU_ATIME: Field = Field(345, 357);
const GNU_CTIME: Field = Field(357, 369);

/// The tar dialect of a header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    /// The prefix area contains two times, or a prefix written by a buggy writer.
    Gnu {
        has_prefix: bool,
    },
}

/// A parsed block, without its strings.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) format: Format,
    pub(super) flag: u8,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) dev_major: i64,
    pub(super) dev_minor: i64,
}

impl Header {
    /// Whether no content follows, regardless of the size.
    pub(super) fn is_header_only(&self) -> bool {
        matches!(self.flag, b'1'..=b'6')
    }

    /// Number of bytes after the header; `None` if the size is negative and matters.
    pub(super) fn stored(&self) -> Option<u64> {
        if self.is_header_only() {
            Some(0)
        } else {
            u64::try_from(self.size).ok()
        }
    }

    pub(super) fn uname<'b>(&self, block: &'b Block) -> &'b [u8] {
        self.text(block, UNAME)
    }

    pub(super) fn gname<'b>(&self, block: &'b Block) -> &'b [u8] {
        self.text(block, GNAME)
    }

    fn text<'b>(&self, block: &'b Block, field: Field) -> &'b [u8] {
        if self.format == Format::V7 {
            &[]
        } else {
            cut_at_nul(field.of(block))
        }
    }
}

/// Parses a block; `None` if its checksum or one of its numbers is wrong.
pub(super) fn parse(block: &Block) -> Option<Header> {
    let stated = octal(CHECKSUM.of(block))?;
    let (unsigned, signed) = checksums(block);
    if stated != unsigned && stated != signed {
        return None;
    }
    let format = format(block);
    if format == Format::Star {
        numeric(STAR_ATIME.of(block))?;
        numeric(STAR_CTIME.of(block))?;
    }
    let (dev_major, dev_minor) = match format {
        Format::V7 => (0, 0),
        _ => (numeric(DEVMAJOR.of(block))?, numeric(DEVMINOR.of(block))?),
    };
    Some(Header {
        format,
        flag: block.get(TYPEFLAG).copied()?,
        size: numeric(SIZE.of(block))?,
        mode: numeric(MODE.of(block))?,
        uid: low_bits(numeric(UID.of(block))?),
        gid: low_bits(numeric(GID.of(block))?),
        mtime: Time {
            secs: numeric(MTIME.of(block))?,
            nanos: 0,
        },
        dev_major,
        dev_minor,
    })
}

fn format(block: &Block) -> Format {
    match (MAGIC.of(block), VERSION.of(block)) {
        (b"ustar\0", _) if STAR_TRAILER.of(block) == b"tar\0" => Format::Star,
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu {
            has_prefix: gnu_has_prefix(block),
        },
        _ => Format::V7,
    }
}

/// Old versions of Go's writer put a prefix where GNU tar has two times. The area counts as a
/// prefix if the times do not parse and it is ASCII.
fn gnu_has_prefix(block: &Block) -> bool {
    let is_bad = |field: Field| {
        let bytes = field.of(block);
        !bytes.starts_with(&[0]) && numeric(bytes).is_none()
    };
    (is_bad(GNU_ATIME) || is_bad(GNU_CTIME)) && cut_at_nul(USTAR_PREFIX.of(block)).is_ascii()
}

/// Stores the entry's name, including the prefix, in `into`.
pub(super) fn name(block: &Block, format: Format, into: &mut Vec<u8>) {
    let prefix = match format {
        Format::Ustar | Format::Gnu { has_prefix: true } => cut_at_nul(USTAR_PREFIX.of(block)),
        Format::Star => cut_at_nul(STAR_PREFIX.of(block)),
        Format::V7 | Format::Gnu { has_prefix: false } => &[],
    };
    into.clear();
    if !prefix.is_empty() {
        into.extend_from_slice(prefix);
        into.push(b'/');
    }
    into.extend_from_slice(cut_at_nul(NAME.of(block)));
}

/// The bytes before the first NUL.
pub(super) fn cut_at_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// Owner and group are stored modulo 2^32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the format keeps the low 32 bits"
)]
pub(super) fn low_bits(id: i64) -> u32 {
    id.cast_unsigned() as u32
}

/// The sum of all bytes as unsigned and as signed numbers, with the checksum field counted as
/// spaces.
fn checksums(block: &Block) -> (i64, i64) {
    let mut unsigned = 0i64;
    let mut signed = 0i64;
    for (index, &byte) in block.iter().enumerate() {
        let byte = if (CHECKSUM.0..CHECKSUM.1).contains(&index) {
            b' '
        } else {
            byte
        };
        unsigned = unsigned.wrapping_add(i64::from(byte));
        signed = signed.wrapping_add(i64::from(byte.cast_signed()));
    }
    (unsigned, signed)
}

/// Parses a number: base 256 if the top bit of the first byte is set, otherwise octal.
pub(super) fn numeric(field: &[u8]) -> Option<i64> {
    match field.split_first() {
        Some((&first, rest)) if first & 0x80 != 0 => {
            let invert = if first & 0x40 != 0 { 0xff } else { 0 };
            let mut value = u64::from((first ^ invert) & 0x7f);
            for byte in rest {
                if value >> 56 != 0 {
                    return None;
                }
                value = (value << 8) | u64::from(byte ^ invert);
            }
            let value = i64::try_from(value).ok()?;
            Some(if invert == 0 { value } else { !value })
        }
        _ => octal(field),
    }
}

/// Parses an octal number between spaces and NULs; an empty one is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let is_pad = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !is_pad(b)).unwrap_or(field.len());
    let end = field
        .iter()
        .rposition(|b| !is_pad(b))
        .map_or(start, |last| last.saturating_add(1));
    let digits = cut_at_nul(field.get(start..end).unwrap_or_default());
    let value = digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)?
            .checked_add(u64::from(digit.wrapping_sub(b'0'))),
        _ => None,
    })?;
    Some(value.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_go_reads_them() {
        for (field, value) in [
            (&b""[..], Some(0)),
            (b"\0\0\0", Some(0)),
            (b" 0000644\0", Some(0o644)),
            (b"12\x0034", Some(0o12)),
            (b"+12", None),
            (b"8", None),
            (b"1 2", None),
            (b"\x80\x00\x00\x01", Some(1)),
            (b"\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(numeric(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn owners_keep_32_bits() {
        assert_eq!(low_bits(1 << 32), 0);
        assert_eq!(low_bits(-1), u32::MAX);
    }
}
