//! Encodes a zTOC.
//!
//! FlatBuffers are built back to front: the entries, last one first, then the checkpoint table,
//! then digests and the root. The first two can be large and are not kept in memory: entries come
//! from a log and go to a spool, and only the length of the table is needed until everything is
//! written out.

use std::io::{self, Write};

use thiserror::Error;

use super::writer::{At, Writer};
use super::{ALGORITHM_GZIP, ALGORITHM_UNCOMPRESSED, MAX_ZTOC_SIZE, VERSION, field};
use crate::checkpoint::Compression;
use crate::span::SpanDigest;
use crate::toc::{Entry, EntryLog, FileKind};

/// Why a zTOC could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// It would be larger than [`MAX_ZTOC_SIZE`].
    #[error("zTOC of about {size} bytes is larger than 1 GiB; use a larger span size")]
    TooLarge {
        /// The size in bytes.
        size: u64,
    },
    /// There are more checkpoints than the table can hold.
    #[error("{count} checkpoints do not fit in a zTOC; use a larger span size")]
    TooManyCheckpoints {
        /// Number of checkpoints.
        count: usize,
    },
    /// The checkpoint table could not be read back, or the output could not be written.
    #[error("write zTOC")]
    Io(#[from] io::Error),
}

/// Everything except the checkpoint table.
pub(crate) struct Parts<'a> {
    pub(crate) tool: &'a str,
    pub(crate) entries: &'a mut EntryLog,
    pub(crate) layer_size: u64,
    pub(crate) archive_size: u64,
    pub(crate) digests: &'a [SpanDigest],
    pub(crate) max_span_id: i32,
    /// `None` omits the field; readers then assume gzip.
    pub(crate) compression: Option<Compression>,
    /// The words for file kinds; only the golden vector of an empty table needs different ones.
    pub(crate) kind_word: fn(FileKind) -> &'static str,
}

impl Parts<'_> {
    /// Writes the zTOC with a checkpoint table of `table_len` bytes, which `table` writes. Returns
    /// the number of bytes written.
    pub(crate) fn encode<W: Write>(
        mut self,
        out: &mut W,
        table_len: u64,
        table: impl FnOnce(&mut W) -> io::Result<()>,
    ) -> Result<u64, EncodeError> {
        let least = self.entries.size().saturating_add(table_len);
        let table_len = match u32::try_from(table_len) {
            Ok(len) if least <= MAX_ZTOC_SIZE => len,
            _ => return Err(EncodeError::TooLarge { size: least }),
        };
        let mut writer = Writer::new();
        let version = writer.string(VERSION.as_bytes())?;
        let tool = writer.string(self.tool.as_bytes())?;
        let toc = self.write_toc(&mut writer, table_len)?;
        writer.align(table_len as usize, 4)?;
        let back = writer.skip(table_len)?;
        let checkpoints = writer.vector_of_skipped(table_len)?;
        let info = self.write_info(&mut writer, checkpoints)?;
        writer.begin_table();
        writer.object(field::ZTOC_VERSION, version)?;
        writer.object(field::ZTOC_TOOL, tool)?;
        writer.object(field::ZTOC_TOC, toc)?;
        let (layer_size, archive_size) = (self.layer_size, self.archive_size);
        writer.number(field::ZTOC_COMPRESSED_SIZE, layer_size.cast_signed(), 0)?;
        writer.number(field::ZTOC_UNCOMPRESSED_SIZE, archive_size.cast_signed(), 0)?;
        writer.object(field::ZTOC_COMPRESSION, info)?;
        let root = writer.end_table()?;
        let front = writer.finish(root)?;
        let size = fits(&writer)?;
        front.copy_to(out)?;
        table(out)?;
        back.copy_to(out)?;
        Ok(size)
    }

    fn write_toc(&mut self, writer: &mut Writer, table_len: u32) -> Result<At, EncodeError> {
        let (kind_word, mut scratch) = (self.kind_word, Vec::new());
        let mut files = Vec::with_capacity(self.entries.len());
        self.entries.each_back(|entry| {
            files.push(write_entry(
                writer,
                entry,
                kind_word(entry.kind),
                &mut scratch,
            )?);
            let size = fits(writer)? + u64::from(table_len);
            if size > MAX_ZTOC_SIZE {
                return Err(EncodeError::TooLarge { size });
            }
            Ok(())
        })?;
        files.reverse();
        let files = writer.vector(&files)?;
        writer.begin_table();
        writer.object(field::TOC_METADATA, files)?;
        Ok(writer.end_table()?)
    }

    fn write_info(&self, writer: &mut Writer, checkpoints: At) -> io::Result<At> {
        let mut digests = Vec::with_capacity(self.digests.len());
        for digest in self.digests {
            digests.push(writer.string(digest_text(digest).as_bytes())?);
        }
        let digests = writer.vector(&digests)?;
        writer.begin_table();
        writer.number(field::COMPRESSION_MAX_SPAN_ID, self.max_span_id, 0)?;
        writer.object(field::COMPRESSION_SPAN_DIGESTS, digests)?;
        writer.object(field::COMPRESSION_CHECKPOINTS, checkpoints)?;
        let algorithm = match self.compression {
            Some(Compression::Plain) => ALGORITHM_UNCOMPRESSED,
            Some(Compression::Gzip) | None => ALGORITHM_GZIP,
        };
        writer.number(field::COMPRESSION_ALGORITHM, algorithm, ALGORITHM_GZIP)?;
        writer.end_table()
    }
}

/// The size so far, or an error if it exceeds the limit.
fn fits(writer: &Writer) -> Result<u64, EncodeError> {
    let size = writer.used().into();
    if size > MAX_ZTOC_SIZE {
        return Err(EncodeError::TooLarge { size });
    }
    Ok(size)
}

fn write_entry(
    writer: &mut Writer,
    entry: &Entry<'_>,
    kind: &str,
    scratch: &mut Vec<At>,
) -> io::Result<At> {
    let name = writer.string(entry.name)?;
    let kind = writer.string(kind.as_bytes())?;
    let link = writer.string(entry.link)?;
    let uname = writer.string(entry.uname)?;
    let gname = writer.string(entry.gname)?;
    let mtime = writer.string(entry.mtime.to_rfc3339().as_bytes())?;
    scratch.clear();
    for (key, value) in entry.pax.iter() {
        let key = writer.string(key)?;
        let value = writer.string(value)?;
        writer.begin_table();
        writer.object(field::XATTR_KEY, key)?;
        writer.object(field::XATTR_VALUE, value)?;
        scratch.push(writer.end_table()?);
    }
    let xattrs = writer.vector(scratch)?;

    writer.begin_table();
    writer.object(field::FILE_NAME, name)?;
    writer.object(field::FILE_TYPE, kind)?;
    writer.number(field::FILE_OFFSET, entry.offset.cast_signed(), 0)?;
    writer.number(field::FILE_SIZE, entry.size.cast_signed(), 0)?;
    writer.object(field::FILE_LINKNAME, link)?;
    writer.number(field::FILE_MODE, entry.mode, 0)?;
    writer.number(field::FILE_UID, entry.uid, 0)?;
    writer.number(field::FILE_GID, entry.gid, 0)?;
    writer.object(field::FILE_UNAME, uname)?;
    writer.object(field::FILE_GNAME, gname)?;
    writer.object(field::FILE_MOD_TIME, mtime)?;
    writer.number(field::FILE_DEVMAJOR, entry.dev_major, 0)?;
    writer.number(field::FILE_DEVMINOR, entry.dev_minor, 0)?;
    writer.object(field::FILE_XATTRS, xattrs)?;
    writer.end_table()
}

fn digest_text(digest: &SpanDigest) -> String {
    use std::fmt::Write as _;
    digest
        .iter()
        .fold(String::from("sha256:"), |mut text, byte| {
            // Writing to a `String` cannot fail.
            write!(text, "{byte:02x}").unwrap_or_default();
            text
        })
}

#[cfg(test)]
mod oracle;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::toc::{Pax, Time, Toc};
    use crate::{BuildOptions, Builder, SpanMap, Ztoc};

    const NOTHING: Entry<'_> = Entry {
        name: b"",
        kind: FileKind::Regular,
        header_start: 0,
        offset: 0,
        size: 0,
        link: b"",
        mode: 0,
        uid: 0,
        gid: 0,
        uname: b"",
        gname: b"",
        mtime: Time::YEAR_ONE,
        dev_major: 0,
        dev_minor: 0,
        pax: Pax::EMPTY,
    };

    /// The vector of the reference's own unit test, with all optional fields omitted.
    #[test]
    fn two_empty_files_and_a_table_of_zeros() {
        let mut entries = EntryLog::new(u64::MAX);
        entries.push(&NOTHING);
        entries.push(&NOTHING);
        let parts = Parts {
            tool: "AWS SOCI CLI",
            entries: &mut entries,
            layer_size: 2_000_000,
            archive_size: 2_500_000,
            digests: &[],
            max_span_id: 3,
            compression: None,
            kind_word: |_| "",
        };
        let mut bytes = Vec::new();
        let table = [0; 65_536];
        let size = parts
            .encode(&mut bytes, 65_536, |out| out.write_all(&table))
            .unwrap();
        assert_eq!((size, bytes.len()), (65_928, 65_928));
        let digest: SpanDigest = Sha256::digest(&bytes).into();
        let expected = "sha256:eba28fdf50b1b57543f57dd051b2468c1d4f57b64d2006c75aa4de1d03e6c7ec";
        assert_eq!(digest_text(&digest), expected);
    }

    #[test]
    fn the_writer_makes_what_the_official_runtime_makes() {
        for (count, table_len) in [(0, 0), (1, 1), (3, 66), (20, 32_797), (20_000, 7)] {
            let (mut toc, mut log) = (Toc::new(), EntryLog::new(u64::MAX));
            for number in 0..count {
                let mut pax = Vec::new();
                for key in (b'a'..b'd').take(number % 4) {
                    crate::toc::pack(&mut pax, &[key], &vec![0xff; number % 90]);
                }
                let when = |bit: usize| i64::from(number & bit != 0) * 77;
                let entry = Entry {
                    name: &vec![b'n'; number % 61],
                    offset: number as u64 * 512,
                    size: when(1).unsigned_abs(),
                    mode: when(2),
                    uid: u32::from(number & 4 != 0),
                    gid: u32::from(number & 8 != 0),
                    dev_major: when(16),
                    dev_minor: when(32),
                    pax: Pax::packed(&pax),
                    ..NOTHING
                };
                toc.push(&entry);
                log.push(&entry);
            }
            let (digests, table) = (vec![[7; 32]; count % 100], vec![9; table_len]);
            let parts = Parts {
                tool: "t",
                entries: &mut log,
                layer_size: 1_000_000,
                archive_size: 2_000_000,
                digests: &digests,
                max_span_id: i32::try_from(digests.len()).unwrap() - 1,
                compression: Some(Compression::Gzip),
                kind_word: FileKind::as_str,
            };
            let mut bytes = Vec::new();
            let write_table = |out: &mut Vec<u8>| out.write_all(&table);
            parts
                .encode(&mut bytes, table_len as u64, write_table)
                .unwrap();
            assert!(
                bytes == oracle::encode("t", &toc, &digests, &table),
                "{count}"
            );
        }
    }

    /// Writes the decoded zTOC again.
    fn again(ztoc: &Ztoc<'_>) -> Vec<u8> {
        with_table(ztoc, ztoc.checkpoint_table())
    }

    /// Writes the decoded zTOC with another checkpoint table.
    fn with_table(ztoc: &Ztoc<'_>, table: &[u8]) -> Vec<u8> {
        let mut entries = EntryLog::new(u64::MAX);
        ztoc.entries().for_each(|entry| entries.push(&entry));
        let spans: SpanMap = ztoc.spans();
        let digests: Vec<SpanDigest> = spans.ids().map(|id| *spans.digest(id)).collect();
        let parts = Parts {
            tool: std::str::from_utf8(ztoc.tool()).unwrap(),
            entries: &mut entries,
            layer_size: spans.layer_size(),
            archive_size: spans.archive_size(),
            digests: &digests,
            max_span_id: i32::try_from(digests.len()).unwrap() - 1,
            compression: Some(ztoc.compression()),
            kind_word: FileKind::as_str,
        };
        let mut bytes = Vec::new();
        parts
            .encode(&mut bytes, table.len() as u64, |out| out.write_all(table))
            .unwrap();
        bytes
    }

    /// Old zTOCs omit the first checkpoint; re-encoding preserves that.
    #[test]
    fn tables_of_version_1_are_kept() {
        let layers = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/layers");
        let layer = std::fs::read(format!("{layers}/t-sync.gz")).unwrap();
        let options = BuildOptions {
            span_size: 65_536,
            ..BuildOptions::default()
        };
        let mut built = Builder::new(options)
            .build(&layer[..], Compression::Gzip)
            .unwrap();
        let mut bytes = Vec::new();
        built.encode(&mut bytes).unwrap();
        let new = Ztoc::parse(&bytes).unwrap();
        let table = new.checkpoint_table();
        let (header, first_record) = (12, 12 + 32_785);
        let old = [&table[..header], &table[first_record..]].concat();
        let old_bytes = with_table(&new, &old);
        let ztoc = Ztoc::parse(&old_bytes).unwrap();
        assert!(ztoc.checkpoint_table() == old);
        assert!(again(&ztoc) == old_bytes);
        for id in new.spans().ids() {
            assert_eq!(ztoc.spans().compressed(id), new.spans().compressed(id));
            assert_eq!(ztoc.spans().uncompressed(id), new.spans().uncompressed(id));
        }
    }

    #[test]
    fn what_was_read_is_written_as_it_stood() {
        let layers = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/layers");
        for (file, compression) in [
            ("v-a.tar.gz", Compression::Gzip),
            ("v-a.tar", Compression::Plain),
            ("v-mm.tar.gz", Compression::Gzip),
            ("t-part.gz", Compression::Gzip),
        ] {
            for span_size in [1000, 1003, 65_536] {
                let layer = std::fs::read(format!("{layers}/{file}")).unwrap();
                let options = BuildOptions {
                    span_size,
                    ..BuildOptions::default()
                };
                let mut built = Builder::new(options)
                    .build(&layer[..], compression)
                    .unwrap();
                let mut bytes = Vec::new();
                built.encode(&mut bytes).unwrap();
                assert!(
                    again(&Ztoc::parse(&bytes).unwrap()) == bytes,
                    "{file} {span_size}"
                );
            }
        }
    }
}
