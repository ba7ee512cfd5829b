//! The stored form of an entry: numbers, lengths of strings, strings, and PAX records.
//!
//! It is the only form besides a zTOC in which entries are kept, in memory ([`Toc`](super::Toc))
//! and in temporary files ([`EntryLog`](super::EntryLog)). A record does not contain its own length.
//! Numbers are little-endian. `header_start` is not stored; it is the end of the previous entry.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use super::{BLOCK, Entry, FileKind, Pax, Time};

/// Length of the numbers and lengths at the start.
const HEAD: usize = 77;

pub(super) const KINDS: [FileKind; 7] = [
    FileKind::Regular,
    FileKind::Directory,
    FileKind::Hardlink,
    FileKind::Symlink,
    FileKind::Char,
    FileKind::Block,
    FileKind::Fifo,
];

/// Appends the record of an entry.
///
/// # Panics
/// If a string is 4 GiB or longer. Scanners never produce such strings (names are limited to 1
/// MiB).
pub(super) fn write(entry: &Entry<'_>, into: &mut Vec<u8>) {
    let strings = [entry.name, entry.link, entry.uname, entry.gname];
    into.reserve(HEAD);
    for word in [entry.offset, entry.size] {
        into.extend_from_slice(&word.to_le_bytes());
    }
    for word in [
        entry.mode,
        entry.mtime.secs,
        entry.dev_major,
        entry.dev_minor,
    ] {
        into.extend_from_slice(&word.to_le_bytes());
    }
    for word in [entry.uid, entry.gid, entry.mtime.nanos] {
        into.extend_from_slice(&word.to_le_bytes());
    }
    for text in strings {
        into.extend_from_slice(&length(text).to_le_bytes());
    }
    into.push(entry.kind as u8);
    for text in strings {
        into.extend_from_slice(text);
    }
    for (key, value) in entry.pax.iter() {
        pack(into, key, value);
    }
}

/// The entry of a record; `None` if it is not one that [`write()`] made.
pub(super) fn read(record: &[u8], header_start: u64) -> Option<Entry<'_>> {
    let (head, mut strings) = record.split_first_chunk::<HEAD>()?;
    let head = &mut head.as_slice();
    let (offset, size) = (
        u64::from_le_bytes(take(head)?),
        u64::from_le_bytes(take(head)?),
    );
    let mut signed = || take(head).map(i64::from_le_bytes);
    let (mode, secs) = (signed()?, signed()?);
    let (dev_major, dev_minor) = (signed()?, signed()?);
    let mut word = || take(head).map(u32::from_le_bytes);
    let (uid, gid, nanos) = (word()?, word()?, word()?);
    let lengths = [word()?, word()?, word()?, word()?];
    let [kind] = take(head)?;
    let [name, link, uname, gname] = lengths.map(|length| {
        let (text, rest) = strings.split_at_checked(length as usize)?;
        strings = rest;
        Some(text)
    });
    Some(Entry {
        name: name?,
        kind: *KINDS.get(usize::from(kind))?,
        header_start,
        offset,
        size,
        link: link?,
        mode,
        uid,
        gid,
        uname: uname?,
        gname: gname?,
        mtime: Time { secs, nanos },
        dev_major,
        dev_minor,
        pax: Pax::packed(strings),
    })
}

/// The offset of the header after the entry of a record.
pub(super) fn end(record: &[u8]) -> Option<u64> {
    let head = &mut &*record;
    let (offset, size) = (take(head)?, take(head)?);
    Some(end_of(u64::from_le_bytes(offset), u64::from_le_bytes(size)))
}

/// The offset of the next header, by the rule that readers of a zTOC must use: the stated size,
/// padded.
pub(crate) fn end_of(offset: u64, size: u64) -> u64 {
    offset
        .saturating_add(size)
        .checked_next_multiple_of(BLOCK)
        .unwrap_or(u64::MAX)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

fn length(text: &[u8]) -> u32 {
    u32::try_from(text.len()).expect("the strings of a tar entry are at most a few MiB")
}

/// Appends one PAX record: two lengths (4 bytes each, little-endian), key, value.
pub(crate) fn pack(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        into.extend_from_slice(&length(part).to_le_bytes());
    }
    into.extend_from_slice(key);
    into.extend_from_slice(value);
}

/// Iterates over the PAX records that [`pack`] wrote.
pub(super) fn unpack(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (key_len, rest) = bytes.split_first_chunk::<4>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_len) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
        bytes = rest;
        Some((key, value))
    })
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test may panic"
    )]

    use super::*;

    #[test]
    fn an_entry_of_each_kind_comes_back() {
        let mut pax = Vec::new();
        pack(&mut pax, b"key", b"\xff");
        for kind in KINDS {
            let entry = Entry {
                name: b"name",
                kind,
                header_start: 512,
                offset: u64::MAX,
                size: 2,
                link: b"link",
                mode: -3,
                uid: u32::MAX,
                gid: 5,
                uname: b"",
                gname: b"gname",
                mtime: Time { secs: -6, nanos: 7 },
                dev_major: i64::MIN,
                dev_minor: 8,
                pax: Pax::packed(&pax),
            };
            let mut record = Vec::new();
            write(&entry, &mut record);
            let same = read(&record, 512).unwrap();
            assert_eq!((same.name, same.link), (entry.name, entry.link));
            assert_eq!((same.uname, same.gname), (entry.uname, entry.gname));
            assert_eq!((same.kind, same.header_start), (kind, 512));
            assert_eq!((same.offset, same.size), (u64::MAX, 2));
            assert_eq!((same.mode, same.uid, same.gid), (-3, u32::MAX, 5));
            assert_eq!(same.mtime, entry.mtime);
            assert_eq!((same.dev_major, same.dev_minor), (i64::MIN, 8));
            assert_eq!(same.pax.get(b"key"), Some(&b"\xff"[..]));
            assert_eq!(record[HEAD..].len(), 13 + pax.len());
            assert_eq!(end(&record), Some(u64::MAX));
        }
    }

    #[test]
    fn records_of_other_bytes_are_none() {
        let mut record = vec![0; HEAD];
        assert!(read(&record, 0).is_some());
        assert!(read(&record[1..], 0).is_none());
        record[HEAD - 1] = 7;
        assert!(read(&record, 0).is_none(), "no such kind");
        record[HEAD - 1] = 0;
        record[HEAD - 2] = 1;
        assert!(read(&record, 0).is_none(), "strings that are not there");
    }
}
