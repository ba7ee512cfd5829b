//! zTOC → bytes.
//!
//! FlatBuffers are built back to front, and the checkpoint table, by far the largest part, lies in the
//! middle. So that it need not be in memory, a short stand-in is built in its place; then what lies in
//! front of it is written with the length and the three offsets that reach across it put right, the real
//! table is streamed, and what lies behind follows. The stand-in's length is congruent to the table's
//! modulo 8, the largest alignment of the schema, so padding is the same.

use std::io::{self, Write};

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, WIPOffset};
use thiserror::Error;

use super::{ALGORITHM_GZIP, ALGORITHM_UNCOMPRESSED, MAX_ZTOC_SIZE, VERSION, field, slot};
use crate::checkpoint::Compression;
use crate::flat;
use crate::span::SpanDigest;
use crate::toc::{Entry, FileKind, Toc};

/// A zTOC that could not be written.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// It would be larger than [`MAX_ZTOC_SIZE`].
    #[error("zTOC of about {size} bytes is larger than 1 GiB; use a larger span size")]
    TooLarge {
        /// Bytes it would have.
        size: u64,
    },
    /// More checkpoints than their table can hold.
    #[error("{count} checkpoints do not fit in a zTOC; use a larger span size")]
    TooManyCheckpoints {
        /// Checkpoints there are.
        count: usize,
    },
    /// The checkpoint table could not be read back, or the output not be written.
    #[error("write zTOC")]
    Io(#[from] io::Error),
}

/// Everything but the checkpoint table.
pub(crate) struct Parts<'a> {
    pub(crate) tool: &'a str,
    pub(crate) toc: &'a Toc,
    pub(crate) layer_size: u64,
    pub(crate) archive_size: u64,
    pub(crate) digests: &'a [SpanDigest],
    pub(crate) max_span_id: i32,
    /// `None` leaves the field out, which readers take for gzip.
    pub(crate) compression: Option<Compression>,
    /// How kinds are written; only the golden vector of an empty table needs another way.
    pub(crate) kind_word: fn(FileKind) -> &'static str,
}

type Table = WIPOffset<TableFinishedWIPOffset>;

impl Parts<'_> {
    /// Writes the zTOC with a checkpoint table of `table_len` bytes, which `table` writes. Returns the
    /// number of bytes written.
    pub(crate) fn encode<W: Write>(
        &self,
        out: &mut W,
        table_len: u64,
        table: impl FnOnce(&mut W) -> io::Result<()>,
    ) -> Result<u64, EncodeError> {
        let estimate = self.size_without_table();
        let too_large = |size| {
            if size > MAX_ZTOC_SIZE {
                Err(EncodeError::TooLarge { size })
            } else {
                Ok(())
            }
        };
        too_large(estimate.saturating_add(table_len))?;
        let stand_in = table_len % 8;
        let missing = table_len - stand_in;
        let (mut buffer, start, table_at) = self.build(estimate, stand_in);
        let built = buffer.get_mut(start..).unwrap_or_default();
        let size = built.len() as u64 + missing;
        too_large(size)?;
        let missing = u32::try_from(missing).map_err(|_| EncodeError::TooLarge { size })?;
        stretch(built, table_at, missing);
        let (front, hole) = built.split_at(table_at + 4);
        let back = hole
            .get(usize::try_from(stand_in).unwrap_or(0)..)
            .unwrap_or_default();
        out.write_all(front)?;
        table(out)?;
        out.write_all(back)?;
        Ok(size)
    }

    /// About how many bytes the buffer takes, never less than two thirds of what it does.
    fn size_without_table(&self) -> u64 {
        let entries = self.toc.len() as u64;
        let strings = self.toc.string_bytes() as u64;
        1024 + entries * 224
            + strings
            + self.toc.pax_records() as u64 * 40
            + self.digests.len() as u64 * 88
    }

    /// Creates every object in the reference's order. Returns the buffer, where it begins, and where in
    /// it the checkpoint vector lies.
    fn build(&self, estimate: u64, stand_in: u64) -> (Vec<u8>, usize, usize) {
        let capacity = usize::try_from(estimate).unwrap_or(1024);
        let mut fbb = FlatBufferBuilder::with_capacity(capacity);
        let version = fbb.create_byte_string(VERSION.as_bytes());
        let tool = fbb.create_byte_string(self.tool.as_bytes());
        let toc = self.build_toc(&mut fbb);
        let stand_in = vec![0u8; usize::try_from(stand_in).unwrap_or(0)];
        let checkpoints = fbb.create_vector(&stand_in);
        let digests: Vec<_> = self
            .digests
            .iter()
            .map(|d| fbb.create_byte_string(digest_text(d).as_bytes()))
            .collect();
        let digests = fbb.create_vector(&digests);

        let info = fbb.start_table();
        fbb.push_slot(slot(field::COMPRESSION_MAX_SPAN_ID), self.max_span_id, 0);
        fbb.push_slot_always(slot(field::COMPRESSION_SPAN_DIGESTS), digests);
        fbb.push_slot_always(slot(field::COMPRESSION_CHECKPOINTS), checkpoints);
        let algorithm = match self.compression {
            Some(Compression::Plain) => ALGORITHM_UNCOMPRESSED,
            Some(Compression::Gzip) | None => ALGORITHM_GZIP,
        };
        fbb.push_slot(
            slot(field::COMPRESSION_ALGORITHM),
            algorithm,
            ALGORITHM_GZIP,
        );
        let info = fbb.end_table(info);

        let root = fbb.start_table();
        fbb.push_slot_always(slot(field::ZTOC_VERSION), version);
        fbb.push_slot_always(slot(field::ZTOC_TOOL), tool);
        fbb.push_slot_always(slot(field::ZTOC_TOC), toc);
        fbb.push_slot(
            slot(field::ZTOC_COMPRESSED_SIZE),
            self.layer_size.cast_signed(),
            0,
        );
        fbb.push_slot(
            slot(field::ZTOC_UNCOMPRESSED_SIZE),
            self.archive_size.cast_signed(),
            0,
        );
        fbb.push_slot_always(slot(field::ZTOC_COMPRESSION), info);
        let root = fbb.end_table(root);
        fbb.finish_minimal(root);

        let from_end = checkpoints.value() as usize;
        let (buffer, start) = fbb.collapse();
        let table_at = buffer.len() - start - from_end;
        (buffer, start, table_at)
    }

    fn build_toc(&self, fbb: &mut FlatBufferBuilder<'_>) -> Table {
        let mut scratch = Vec::new();
        let mut files = Vec::with_capacity(self.toc.len());
        for entry in self.toc.entries().rev() {
            files.push(build_entry(
                fbb,
                &entry,
                (self.kind_word)(entry.kind),
                &mut scratch,
            ));
        }
        files.reverse();
        let files = fbb.create_vector(&files);
        let toc = fbb.start_table();
        fbb.push_slot_always(slot(field::TOC_METADATA), files);
        fbb.end_table(toc)
    }
}

fn build_entry(
    fbb: &mut FlatBufferBuilder<'_>,
    entry: &Entry<'_>,
    kind: &str,
    scratch: &mut Vec<Table>,
) -> Table {
    let name = fbb.create_byte_string(entry.name);
    let kind = fbb.create_byte_string(kind.as_bytes());
    let link = fbb.create_byte_string(entry.link);
    let uname = fbb.create_byte_string(entry.uname);
    let gname = fbb.create_byte_string(entry.gname);
    let mtime = fbb.create_byte_string(entry.mtime.to_rfc3339().as_bytes());
    scratch.clear();
    for (key, value) in entry.pax.iter() {
        let key = fbb.create_byte_string(key);
        let value = fbb.create_byte_string(value);
        let record = fbb.start_table();
        fbb.push_slot_always(slot(field::XATTR_KEY), key);
        fbb.push_slot_always(slot(field::XATTR_VALUE), value);
        scratch.push(fbb.end_table(record));
    }
    let xattrs = fbb.create_vector(scratch);

    let file = fbb.start_table();
    fbb.push_slot_always(slot(field::FILE_NAME), name);
    fbb.push_slot_always(slot(field::FILE_TYPE), kind);
    fbb.push_slot(slot(field::FILE_OFFSET), entry.offset.cast_signed(), 0);
    fbb.push_slot(slot(field::FILE_SIZE), entry.size.cast_signed(), 0);
    fbb.push_slot_always(slot(field::FILE_LINKNAME), link);
    fbb.push_slot(slot(field::FILE_MODE), entry.mode, 0);
    fbb.push_slot(slot(field::FILE_UID), entry.uid, 0);
    fbb.push_slot(slot(field::FILE_GID), entry.gid, 0);
    fbb.push_slot_always(slot(field::FILE_UNAME), uname);
    fbb.push_slot_always(slot(field::FILE_GNAME), gname);
    fbb.push_slot_always(slot(field::FILE_MOD_TIME), mtime);
    fbb.push_slot(slot(field::FILE_DEVMAJOR), entry.dev_major, 0);
    fbb.push_slot(slot(field::FILE_DEVMINOR), entry.dev_minor, 0);
    fbb.push_slot_always(slot(field::FILE_XATTRS), xattrs);
    fbb.end_table(file)
}

/// Makes the buffer right for a table that is `missing` bytes longer than its stand-in: the vector's
/// length, and the root's offsets to the three objects behind it.
fn stretch(built: &mut [u8], table_at: usize, missing: u32) {
    let root = flat::Table::root(built);
    let behind = [field::ZTOC_VERSION, field::ZTOC_TOOL, field::ZTOC_TOC];
    let behind = behind.map(|id| root.field(id));
    for at in [Some(table_at)].into_iter().chain(behind).flatten() {
        if let Some(word) = built
            .get_mut(at..)
            .and_then(|rest| rest.first_chunk_mut::<4>())
        {
            *word = (u32::from_le_bytes(*word) + missing).to_le_bytes();
        }
    }
}

fn digest_text(digest: &SpanDigest) -> String {
    use std::fmt::Write as _;
    digest
        .iter()
        .fold(String::from("sha256:"), |mut text, byte| {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").unwrap_or_default();
            text
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::toc::{Pax, Time};
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

    /// The vector of the reference's own unit test: nothing set that can be left out.
    #[test]
    fn two_empty_files_and_a_table_of_zeros() {
        let mut toc = Toc::new();
        toc.push(&NOTHING);
        toc.push(&NOTHING);
        let parts = Parts {
            tool: "AWS SOCI CLI",
            toc: &toc,
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

    /// Writes what was read.
    fn again(ztoc: &Ztoc<'_>) -> Vec<u8> {
        with_table(ztoc, ztoc.checkpoint_table())
    }

    /// Writes what was read, with another checkpoint table.
    fn with_table(ztoc: &Ztoc<'_>, table: &[u8]) -> Vec<u8> {
        let mut toc = Toc::new();
        ztoc.entries().for_each(|entry| toc.push(&entry));
        let spans: SpanMap = ztoc.spans();
        let digests: Vec<SpanDigest> = spans.ids().map(|id| *spans.digest(id)).collect();
        let parts = Parts {
            tool: std::str::from_utf8(ztoc.tool()).unwrap(),
            toc: &toc,
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

    /// Old zTOCs leave out the first checkpoint; they stay as they are.
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
