//! Builds the same buffers with the official runtime in memory, as the expected result of the
//! writer.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, WIPOffset};

use super::digest_text;
use crate::codec::{ALGORITHM_GZIP, VERSION, field, slot};
use crate::span::SpanDigest;
use crate::toc::{Entry, Toc};

type Table = WIPOffset<TableFinishedWIPOffset>;

/// A zTOC of a gzip layer of one million bytes, with an archive of two million.
pub(super) fn encode(tool: &str, entries: &Toc, digests: &[SpanDigest], table: &[u8]) -> Vec<u8> {
    let mut fbb = FlatBufferBuilder::new();
    let version = fbb.create_byte_string(VERSION.as_bytes());
    let tool = fbb.create_byte_string(tool.as_bytes());
    let toc = build_toc(&mut fbb, entries);
    let checkpoints = fbb.create_vector(table);
    let max_span_id = i32::try_from(digests.len()).unwrap() - 1;
    let digests: Vec<_> = digests
        .iter()
        .map(|d| fbb.create_byte_string(digest_text(d).as_bytes()))
        .collect();
    let digests = fbb.create_vector(&digests);

    let info = fbb.start_table();
    fbb.push_slot(slot(field::COMPRESSION_MAX_SPAN_ID), max_span_id, 0);
    fbb.push_slot_always(slot(field::COMPRESSION_SPAN_DIGESTS), digests);
    fbb.push_slot_always(slot(field::COMPRESSION_CHECKPOINTS), checkpoints);
    fbb.push_slot(slot(field::COMPRESSION_ALGORITHM), 1i8, ALGORITHM_GZIP);
    let info = fbb.end_table(info);

    let root = fbb.start_table();
    fbb.push_slot_always(slot(field::ZTOC_VERSION), version);
    fbb.push_slot_always(slot(field::ZTOC_TOOL), tool);
    fbb.push_slot_always(slot(field::ZTOC_TOC), toc);
    fbb.push_slot(slot(field::ZTOC_COMPRESSED_SIZE), 1_000_000i64, 0);
    fbb.push_slot(slot(field::ZTOC_UNCOMPRESSED_SIZE), 2_000_000i64, 0);
    fbb.push_slot_always(slot(field::ZTOC_COMPRESSION), info);
    let root = fbb.end_table(root);
    fbb.finish_minimal(root);
    fbb.finished_data().to_vec()
}

fn build_toc(fbb: &mut FlatBufferBuilder<'_>, entries: &Toc) -> Table {
    let mut files: Vec<_> = entries
        .entries()
        .rev()
        .map(|entry| build_entry(fbb, &entry))
        .collect();
    files.reverse();
    let files = fbb.create_vector(&files);
    let toc = fbb.start_table();
    fbb.push_slot_always(slot(field::TOC_METADATA), files);
    fbb.end_table(toc)
}

fn build_entry(fbb: &mut FlatBufferBuilder<'_>, entry: &Entry<'_>) -> Table {
    let name = fbb.create_byte_string(entry.name);
    let kind = fbb.create_byte_string(entry.kind.as_str().as_bytes());
    let link = fbb.create_byte_string(entry.link);
    let uname = fbb.create_byte_string(entry.uname);
    let gname = fbb.create_byte_string(entry.gname);
    let mtime = fbb.create_byte_string(entry.mtime.to_rfc3339().as_bytes());
    let mut records = Vec::new();
    for (key, value) in entry.pax.iter() {
        let key = fbb.create_byte_string(key);
        let value = fbb.create_byte_string(value);
        let record = fbb.start_table();
        fbb.push_slot_always(slot(field::XATTR_KEY), key);
        fbb.push_slot_always(slot(field::XATTR_VALUE), value);
        records.push(fbb.end_table(record));
    }
    let xattrs = fbb.create_vector(&records);

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
