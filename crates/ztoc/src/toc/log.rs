//! Entries in archive order, in a temporary file if there are many.
//!
//! A layer can have hundreds of thousands of entries, and the zTOC is written at the end, last
//! entry first. So an entry is a byte record with its length at both ends, and the log can be read
//! forward and backward through a small buffer.

use std::io::{self, Read, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use super::Entry;
use super::record::{self, end_of};

/// Bytes that stay in memory, enough for about 6,000 entries.
const SPOOL_SIZE: usize = 1 << 20;

/// Bytes written or read at a time.
const BLOCK: usize = 64 * 1024;

/// The log of entries.
#[derive(Debug)]
pub(crate) struct EntryLog {
    spool: SpooledTempFile,
    /// Records that are not in the spool yet.
    recent: Vec<u8>,
    count: usize,
    /// Bytes of all records, including those that were not kept.
    size: u64,
    max_size: u64,
    /// The first error; nothing is kept afterwards.
    error: Option<io::Error>,
}

impl EntryLog {
    /// Creates a log that keeps at most `max_size` bytes. It still counts the entries and bytes
    /// beyond that.
    pub(crate) fn new(max_size: u64) -> Self {
        Self {
            spool: SpooledTempFile::new(SPOOL_SIZE),
            recent: Vec::new(),
            count: 0,
            size: 0,
            max_size,
            error: None,
        }
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Bytes of its records. The same entries take more bytes in a zTOC.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Takes the first error that occurred while storing entries.
    pub(crate) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// Appends an entry. Its `header_start` is not stored, but derived from the previous entry.
    pub(crate) fn push(&mut self, entry: &Entry<'_>) {
        let start = self.recent.len();
        append(entry, &mut self.recent);
        self.count += 1;
        self.size += (self.recent.len() - start) as u64;
        if self.size > self.max_size || self.error.is_some() {
            self.recent.truncate(start);
        } else if self.recent.len() >= BLOCK {
            self.error = self.flush().err();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.recent.is_empty() {
            self.spool.seek(SeekFrom::End(0))?;
            self.spool.write_all(&self.recent)?;
            self.recent.clear();
        }
        Ok(())
    }

    /// Calls `take` with all entries in archive order.
    pub(crate) fn each(&mut self, mut take: impl FnMut(&Entry<'_>)) -> io::Result<()> {
        let mut reader = self.reader()?;
        let (mut at, mut header_start) = (0, 0);
        while at < reader.end {
            let (entry, next) = reader.next(at, header_start)?;
            header_start = end_of(entry.offset, entry.size);
            take(&entry);
            at = next;
        }
        Ok(())
    }

    /// Calls the callback with all entries, last one first, without their `header_start`.
    pub(crate) fn each_back<E: From<io::Error>>(
        &mut self,
        mut take: impl FnMut(&Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = self.reader()?;
        let mut at = reader.end;
        while at > 0 {
            let (entry, before) = reader.previous(at)?;
            take(&entry)?;
            at = before;
        }
        Ok(())
    }

    fn reader(&mut self) -> io::Result<Reader<'_>> {
        self.flush()?;
        let end = self.spool.seek(SeekFrom::End(0))?;
        Ok(Reader {
            spool: &mut self.spool,
            end,
            buffer: Vec::new(),
            at: 0,
        })
    }
}

/// The direction of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Toward {
    Start,
    End,
}

/// A buffer that moves over the log.
struct Reader<'l> {
    spool: &'l mut SpooledTempFile,
    end: u64,
    buffer: Vec<u8>,
    /// Offset of the buffer in the log.
    at: u64,
}

impl Reader<'_> {
    /// The record at `at`, and the offset of the next one.
    fn next(&mut self, at: u64, header_start: u64) -> io::Result<(Entry<'_>, u64)> {
        let len = self.length(at, Toward::End)?;
        let record = self.get(at + 4, len, Toward::End)?;
        let entry = record::read(record, header_start).ok_or(io::ErrorKind::InvalidData)?;
        Ok((entry, at + 8 + len))
    }

    /// The record that ends at `end`, and the offset at which it begins.
    fn previous(&mut self, end: u64) -> io::Result<(Entry<'_>, u64)> {
        let before = |at: u64, len| at.checked_sub(len).ok_or(io::ErrorKind::InvalidData);
        let last = before(end, 4)?;
        let len = self.length(last, Toward::Start)?;
        let start = before(last, len)?;
        let record = self.get(start, len, Toward::Start)?;
        let entry = record::read(record, 0).ok_or(io::ErrorKind::InvalidData)?;
        Ok((entry, before(start, 4)?))
    }

    fn length(&mut self, at: u64, toward: Toward) -> io::Result<u64> {
        let bytes = self.get(at, 4, toward)?;
        let bytes = bytes.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        Ok(u32::from_le_bytes(*bytes).into())
    }

    fn get(&mut self, from: u64, len: u64, toward: Toward) -> io::Result<&[u8]> {
        let until = from + len;
        if until > self.end {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if from < self.at || until > self.at + self.buffer.len() as u64 {
            let (start, end) = match toward {
                Toward::Start => (from.min(until.saturating_sub(BLOCK as u64)), until),
                Toward::End => (from, until.max(from + BLOCK as u64).min(self.end)),
            };
            let len = usize::try_from(end - start).map_err(|_| io::ErrorKind::InvalidData)?;
            self.buffer.resize(len, 0);
            self.at = start;
            self.spool.seek(SeekFrom::Start(start))?;
            self.spool.read_exact(&mut self.buffer)?;
        }
        let start = usize::try_from(from - self.at).map_err(|_| io::ErrorKind::InvalidData)?;
        let end = usize::try_from(until - self.at).map_err(|_| io::ErrorKind::InvalidData)?;
        let bytes = self.buffer.get(start..end);
        bytes.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Appends a record between its length and its length again.
fn append(entry: &Entry<'_>, into: &mut Vec<u8>) {
    let start = into.len();
    into.extend([0; 4]);
    record::write(entry, into);
    let len = into.len() - start - 4;
    let len = u32::try_from(len).expect("the strings of a tar entry are at most a few MiB");
    let len = len.to_le_bytes();
    if let Some(front) = into.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
        *front = len;
    }
    into.extend(len);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::toc::record::KINDS;
    use crate::toc::{Pax, Time, pack};

    /// Calls `see` with an entry made from this number.
    fn with_entry(number: u64, see: impl FnOnce(&Entry<'_>)) {
        let mut pax = Vec::new();
        for record in 0..number % 3 {
            pack(&mut pax, format!("key{record}").as_bytes(), &vec![7; 900]);
        }
        let name = format!("name/{number}").repeat(if number == 500 { 30_000 } else { 1 });
        see(&Entry {
            name: name.as_bytes(),
            kind: KINDS[usize::try_from(number).unwrap() % KINDS.len()],
            header_start: 512 * number,
            offset: 512 * (number + 1),
            size: 0,
            link: b"l\xff",
            mode: -1,
            uid: 1,
            gid: u32::MAX,
            uname: b"",
            gname: b"gg",
            mtime: Time { secs: -5, nanos: 6 },
            dev_major: i64::MIN,
            dev_minor: 9,
            pax: Pax::packed(&pax),
        });
    }

    fn text(entry: &Entry<'_>) -> String {
        let pax: Vec<_> = entry.pax.iter().collect();
        let numbers = (
            entry.mode,
            entry.uid,
            entry.gid,
            entry.dev_major,
            entry.dev_minor,
        );
        let strings = (entry.link, entry.uname, entry.gname, pax);
        format!(
            "{entry:?} {} {numbers:?} {:?} {strings:?}",
            entry.offset, entry.mtime
        )
    }

    #[test]
    fn entries_come_back_in_both_directions() {
        for count in [0, 1, 3, 2000] {
            let mut log = EntryLog::new(u64::MAX);
            (0..count).for_each(|number| with_entry(number, |entry| log.push(entry)));
            assert!(log.take_error().is_none());
            assert_eq!(log.len() as u64, count);
            let mut number = 0;
            log.each(|found| {
                with_entry(number, |entry| assert_eq!(text(found), text(entry)));
                number += 1;
            })
            .unwrap();
            assert_eq!(number, count);
            log.each_back::<io::Error>(|found| {
                number -= 1;
                with_entry(number, |entry| assert_eq!(found.name, entry.name));
                Ok(())
            })
            .unwrap();
            assert_eq!(number, 0);
        }
    }

    #[test]
    fn a_log_that_is_full_counts_on() {
        let mut log = EntryLog::new(1000);
        (0..500).for_each(|number| with_entry(number, |entry| log.push(entry)));
        assert!(log.size() > 1000 && log.recent.len() <= 1000);
        assert_eq!(log.len(), 500);
    }
}
