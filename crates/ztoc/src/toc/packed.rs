//! Entries packed into a growing buffer, for archives that are scanned as a stream.

use super::{Entry, record};

/// The entries of an archive, in archive order. Each takes 85 bytes plus its strings.
#[derive(Debug, Clone, Default)]
pub struct Toc {
    records: Vec<u8>,
    /// Where each record begins.
    starts: Vec<usize>,
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
        self.starts.push(self.records.len());
        record::write(entry, &mut self.records);
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The entry at `index`, from 0 in archive order.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Entry<'_>> {
        let header_start = match index.checked_sub(1) {
            Some(before) => record::end(self.record(before)?)?,
            None => 0,
        };
        record::read(self.record(index)?, header_start)
    }

    /// All entries in archive order.
    #[must_use]
    pub fn entries(&self) -> Entries<'_> {
        Entries {
            toc: self,
            range: 0..self.starts.len(),
        }
    }

    fn record(&self, index: usize) -> Option<&[u8]> {
        let start = *self.starts.get(index)?;
        let end = self.starts.get(index + 1).copied();
        self.records.get(start..end.unwrap_or(self.records.len()))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toc::{FileKind, Pax, Time, pack};

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
        let headers: Vec<_> = toc.entries().map(|entry| entry.header()).collect();
        assert_eq!(headers, [0..512, 1024..1536]);
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
