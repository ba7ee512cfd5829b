//! Entries packed into two growing buffers, for archives that are scanned as a stream.

use super::{BLOCK, Entry, FileKind, Pax, Time};

/// The entries of an archive, in archive order. Each takes about 100 bytes plus its strings.
#[derive(Debug, Clone, Default)]
pub struct Toc {
    records: Vec<Record>,
    strings: Vec<u8>,
}

/// One entry. Its strings are contiguous in the shared buffer, from `at` on.
#[derive(Debug, Clone)]
struct Record {
    at: usize,
    name: u32,
    link: u32,
    uname: u32,
    gname: u32,
    pax: u32,
    kind: FileKind,
    uid: u32,
    gid: u32,
    offset: u64,
    size: u64,
    mode: i64,
    mtime: Time,
    dev_major: i64,
    dev_minor: i64,
}

impl Toc {
    /// Creates an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a copy of `entry`. Its `header_start` is not stored, but derived from the previous
    /// entry.
    ///
    /// # Panics
    /// If a string is 4 GiB or longer. Scanners never produce such strings (names are limited to 1
    /// MiB).
    pub fn push(&mut self, entry: &Entry<'_>) {
        let at = self.strings.len();
        let mut put = |bytes: &[u8]| {
            self.strings.extend_from_slice(bytes);
            u32::try_from(bytes.len()).expect("a tar string is at most a few MiB")
        };
        let (name, link) = (put(entry.name), put(entry.link));
        let (uname, gname) = (put(entry.uname), put(entry.gname));
        let before_pax = self.strings.len();
        for (key, value) in entry.pax.iter() {
            pack(&mut self.strings, key, value);
        }
        let pax = u32::try_from(self.strings.len() - before_pax).expect("PAX records end at 1 MiB");
        self.records.push(Record {
            at,
            name,
            link,
            uname,
            gname,
            pax,
            kind: entry.kind,
            uid: entry.uid,
            gid: entry.gid,
            offset: entry.offset,
            size: entry.size,
            mode: entry.mode,
            mtime: entry.mtime,
            dev_major: entry.dev_major,
            dev_minor: entry.dev_minor,
        });
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The entry at `index`, from 0 in archive order.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Entry<'_>> {
        let record = self.records.get(index)?;
        let before = index.checked_sub(1).and_then(|i| self.records.get(i));
        Some(self.view(record, before))
    }

    /// All entries in archive order.
    #[must_use]
    pub fn entries(&self) -> Entries<'_> {
        Entries {
            toc: self,
            range: 0..self.records.len(),
        }
    }

    fn view(&self, record: &Record, before: Option<&Record>) -> Entry<'_> {
        let mut rest = self.strings.get(record.at..).unwrap_or_default();
        let mut take = |len: u32| {
            let (head, tail) = rest.split_at_checked(len as usize).unwrap_or_default();
            rest = tail;
            head
        };
        Entry {
            name: take(record.name),
            link: take(record.link),
            uname: take(record.uname),
            gname: take(record.gname),
            pax: Pax::packed(take(record.pax)),
            kind: record.kind,
            header_start: before.map_or(0, |b| end_of(b.offset, b.size)),
            offset: record.offset,
            size: record.size,
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
            mtime: record.mtime,
            dev_major: record.dev_major,
            dev_minor: record.dev_minor,
        }
    }
}

/// The offset of the next header, by the rule that readers of a zTOC must use: the stated size,
/// padded.
pub(crate) fn end_of(offset: u64, size: u64) -> u64 {
    offset
        .saturating_add(size)
        .checked_next_multiple_of(BLOCK)
        .unwrap_or(u64::MAX)
}

/// Iterator over the entries of a [`Toc`].
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    toc: &'a Toc,
    range: std::ops::Range<usize>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        self.toc.get(self.range.next()?)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.range.size_hint()
    }
}

impl ExactSizeIterator for Entries<'_> {}

impl DoubleEndedIterator for Entries<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.toc.get(self.range.next_back()?)
    }
}

/// Appends one PAX record: two lengths (4 bytes each, little-endian), key, value.
pub(crate) fn pack(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        let len = u32::try_from(part.len()).expect("PAX records end at 1 MiB");
        into.extend_from_slice(&len.to_le_bytes());
    }
    into.extend_from_slice(key);
    into.extend_from_slice(value);
}

/// Iterates over the records that [`pack`] wrote.
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
    use super::*;

    #[test]
    fn entries_come_back_as_they_went_in() {
        let mut pax = Vec::new();
        pack(&mut pax, b"SCHILY.xattr.user.k", b"\0\xff");
        pack(&mut pax, b"path", b"");
        let mut toc = Toc::new();
        for (i, name) in [&b"d/"[..], b"d/\xff"].into_iter().enumerate() {
            toc.push(&Entry {
                name,
                kind: FileKind::Regular,
                header_start: 0,
                offset: 512 + 1024 * i as u64,
                size: 1,
                link: b"",
                mode: 0o644,
                uid: 7,
                gid: 8,
                uname: b"u",
                gname: b"gg",
                mtime: Time { secs: 1, nanos: 2 },
                dev_major: 0,
                dev_minor: -1,
                pax: Pax::packed(&pax),
            });
        }
        let second = toc.get(1).unwrap();
        assert_eq!(second.name, b"d/\xff");
        assert_eq!(second.gname, b"gg");
        assert_eq!(second.header(), 1024..1536);
        assert_eq!(
            second.xattrs().collect::<Vec<_>>(),
            [(&b"user.k"[..], &b"\0\xff"[..])]
        );
        assert_eq!(second.pax.get(b"path"), Some(&b""[..]));
        assert_eq!(
            toc.entries()
                .rev()
                .map(|e| e.name.len())
                .collect::<Vec<_>>(),
            [3, 2]
        );
    }
}
