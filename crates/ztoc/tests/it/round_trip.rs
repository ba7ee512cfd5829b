//! Random trees, tar dialects, compressors, and span sizes: the contents survive a round trip, span
//! by span and file by file.

use std::convert::Infallible;
use std::ops::ControlFlow;

use proptest::collection::vec;
use proptest::prelude::*;
use soci_ztoc::{
    Compression, Decoder, FileKind, GzipTable, SpanId, Time, VerifiedSpan, Ztoc, read_archive,
    verify_header,
};

use crate::archive::{Dialect, File, Tar, assert_same};
use crate::blocks;
use crate::squeeze::{Fields, Flush, Make, member};

fn bytes(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    // No NUL bytes, like names in archives. They need not be UTF-8.
    vec(1u8.., len)
}

/// Compressible and incompressible content.
fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => Just(Vec::new()),
        4 => vec(any::<u8>(), 0..3000),
        3 => (vec(any::<u8>(), 1..200), 1..400usize).prop_map(|(part, times)| part.repeat(times)),
        1 => (any::<u8>(), 0..150_000usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => any::<u64>().prop_map(|mut seed| {
            // Noise that is larger than a window.
            std::iter::repeat_with(|| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .take(70_000)
            .collect()
        }),
    ]
}

prop_compose! {
    fn file()(
        kind in prop_oneof![
            6 => Just(FileKind::Regular),
            1 => Just(FileKind::Directory),
            1 => Just(FileKind::Hardlink),
            1 => Just(FileKind::Symlink),
            1 => Just(FileKind::Char),
            1 => Just(FileKind::Block),
            1 => Just(FileKind::Fifo),
        ],
        name in bytes(1..140),
        content in content(),
        link in bytes(0..140),
        mode in 0..0o7777i64,
        ids in any::<(u32, u32)>(),
        owner in bytes(0..20),
        mtime in (-100_000_000_000i64..200_000_000_000, 0..1_000_000_000u32),
        dev in (0..4096i64, 0..100_000i64),
        xattrs in vec((bytes(1..20), vec(any::<u8>(), 0..100)), 0..4),
    ) -> File {
        let has_content = kind == FileKind::Regular;
        let has_link = matches!(kind, FileKind::Hardlink | FileKind::Symlink);
        File {
            name,
            kind,
            content: if has_content { content } else { Vec::new() },
            link: if has_link { link } else { Vec::new() },
            mode,
            uid: ids.0,
            gid: ids.1,
            uname: owner.clone(),
            gname: owner,
            mtime: Time { secs: mtime.0.clamp(-62_167_219_200, 253_402_300_798), nanos: mtime.1 },
            dev,
            xattrs: xattrs.into_iter().filter(|(key, _)| !key.contains(&b'=')).collect(),
        }
    }
}

fn dialect() -> impl Strategy<Value = Dialect> {
    prop_oneof![
        Just(Dialect::V7),
        Just(Dialect::Ustar),
        Just(Dialect::Pax),
        Just(Dialect::Gnu)
    ]
}

fn make() -> impl Strategy<Value = Make> {
    let flush = prop_oneof![
        Just(Flush::None),
        Just(Flush::Partial),
        Just(Flush::Sync),
        Just(Flush::Full),
        Just(Flush::Block)
    ];
    prop_oneof![
        1 => Just(Make::Stored),
        6 => (0..=9i32, flush, 100..40_000usize)
            .prop_map(|(level, flush, every)| Make::Zlib { level, flush, every }),
        2 => (0..=12i32).prop_map(|level| Make::Libdeflate { level }),
    ]
}

fn fields() -> impl Strategy<Value = Fields> {
    let text = || prop::option::weighted(0.2, bytes(0..300));
    let extra = prop::option::weighted(0.2, vec(any::<u8>(), 0..40_000));
    (extra, text(), text(), any::<bool>()).prop_map(|(extra, name, comment, checksum)| Fields {
        extra,
        name,
        comment,
        checksum,
    })
}

/// How an archive becomes a layer: the ends of members, and how each is compressed.
fn members() -> impl Strategy<Value = Vec<(prop::sample::Index, Make, Fields)>> {
    vec((any::<prop::sample::Index>(), make(), fields()), 1..4)
}

fn compress(tar: &[u8], members: &[(prop::sample::Index, Make, Fields)]) -> Vec<u8> {
    let mut ends: Vec<usize> = members
        .iter()
        .skip(1)
        .map(|(at, _, _)| at.index(tar.len() + 1))
        .collect();
    ends.sort_unstable();
    ends.push(tar.len());
    let mut start = 0;
    let mut layer = Vec::new();
    for (end, (_, make, fields)) in ends.into_iter().zip(members) {
        layer.extend(member(&tar[start..end], make, fields));
        start = end;
    }
    layer
}

fn span_size() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0),
        1 => Just(1),
        3 => 2..5000u64,
        3 => 5000..100_000u64,
        1 => Just(4 << 20),
    ]
}

/// Checks every property of a zTOC against its layer and archive.
fn check(layer: &[u8], tar: &[u8], archive_size: usize, compression: Compression, span_size: u64) {
    let bytes = crate::ztoc(layer, compression, span_size);
    let ztoc = Ztoc::parse(&bytes).unwrap();
    let spans = ztoc.spans();
    assert_eq!(spans.layer_size(), layer.len() as u64);
    assert_eq!(spans.archive_size(), archive_size as u64);
    assert_eq!(
        (ztoc.compression(), ztoc.span_size()),
        (compression, span_size)
    );
    let mut decoder = Decoder::new();
    let mut end = 0;
    let mut stream = Vec::new();
    for id in spans.ids() {
        let compressed = spans.compressed(id);
        let uncompressed = spans.uncompressed(id);
        assert_eq!(uncompressed.start, end, "spans follow each other");
        end = uncompressed.end;
        let compressed = &layer[compressed.start as usize..compressed.end as usize];
        let span = VerifiedSpan::verify(id, compressed, &spans).unwrap();
        let expected = &tar[uncompressed.start as usize..uncompressed.end as usize];
        let at = ztoc.checkpoint(id);
        assert!(
            decoder.decode(&span, &at, &spans).unwrap() == expected,
            "{id:?}"
        );
        let mut pieces = Vec::new();
        decoder
            .decode_in_pieces(&span, &at, &spans, |piece| pieces.extend_from_slice(piece))
            .unwrap();
        assert!(pieces == expected, "{id:?} in pieces");
        decoder
            .decode_to_end(&span, &at, &spans, |piece| {
                stream.extend_from_slice(piece);
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    assert!(stream == tar, "with what is behind the archive");
    assert_eq!(end, archive_size as u64);
    if compression == Compression::Gzip {
        check_table(&ztoc, layer, tar, span_size);
    }
}

/// Checks that checkpoints are where the rule places them in the stream.
fn check_table(ztoc: &Ztoc<'_>, layer: &[u8], tar: &[u8], span_size: u64) {
    let table = GzipTable::parse(ztoc.checkpoint_table()).unwrap();
    let expected = blocks::checkpoints(layer, span_size);
    assert_eq!(table.len(), expected.len());
    for (index, &(compressed, uncompressed, bits)) in expected.iter().enumerate() {
        let row = table.row(index).unwrap();
        assert_eq!(
            (row.compressed, row.uncompressed, row.bits),
            (compressed, uncompressed, bits)
        );
        let history = &tar[..uncompressed as usize];
        let history = &history[history.len().saturating_sub(32_768)..];
        let (zeros, window) = row.window.split_at(32_768 - history.len());
        assert!(
            window == history && zeros.iter().all(|&b| b == 0),
            "window {index}"
        );
    }
}

fn check_files(layer: &[u8], tar: &[u8], files: &[File], compression: Compression, span_size: u64) {
    let bytes = crate::ztoc(layer, compression, span_size);
    let ztoc = Ztoc::parse(&bytes).unwrap();
    assert_eq!(ztoc.entry_count(), files.len());
    let mut decoder = Decoder::new();
    let mut read = |range| {
        let mut out = Vec::new();
        let fetch = |range: std::ops::Range<u64>| {
            Ok::<_, Infallible>(&layer[range.start as usize..range.end as usize])
        };
        read_archive(&ztoc, range, &mut decoder, fetch, |bytes| {
            out.extend_from_slice(bytes)
        })
        .unwrap();
        out
    };
    for (entry, file) in ztoc.entries().zip(files) {
        assert_same(&entry, file);
        assert!(read(entry.content()) == file.content);
        verify_header(&entry, &read(entry.header())).unwrap();
        let header = entry.header();
        assert!(tar[header.start as usize..header.end as usize] == read(header));
    }
    assert!(ztoc.check_servable().is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn prop_files_come_back(
        files in vec(file(), 0..12),
        dialect in dialect(),
        members in members(),
        span_size in span_size(),
        behind in prop_oneof![Just(0usize), 1..100_000usize],
    ) {
        let files: Vec<File> = files.into_iter().map(|file| file.limited_to(dialect)).collect();
        let mut tar = Tar::of(&files, dialect);
        let archive_size = tar.len();
        // Bytes after the end marker count for spans, but not for the archive.
        tar.resize(archive_size + behind, 0x5a);
        let layer = compress(&tar, &members);
        check(&layer, &tar, archive_size, Compression::Gzip, span_size);
        check_files(&layer, &tar, &files, Compression::Gzip, span_size);
        let span_size = span_size.max(512);
        check(&tar, &tar, archive_size, Compression::Plain, span_size);
        check_files(&tar, &tar, &files, Compression::Plain, span_size);
    }
}

#[test]
fn a_table_of_version_1_serves_as_one_of_version_2() {
    let file = File::regular("f", &b"0123456789abcdef".repeat(20_000));
    let tar = Tar::of(&[file], Dialect::Ustar);
    let make = Make::Zlib {
        level: 6,
        flush: Flush::Sync,
        every: 50_000,
    };
    let layer = member(&tar, &make, &Fields::default());
    let v2 = crate::ztoc(&layer, Compression::Gzip, 40_000);
    let table = Ztoc::parse(&v2).unwrap().checkpoint_table().to_vec();
    // Version 1 omits the first record, which belongs right after a header of ten bytes.
    let v1 = [&table[..12], &table[12 + 32_785..]].concat();
    let (old, new) = (
        GzipTable::parse(&v1).unwrap(),
        GzipTable::parse(&table).unwrap(),
    );
    assert_eq!(old.len(), new.len());
    for index in 1..new.len() {
        assert_eq!(old.row(index), new.row(index));
    }
    let first = old.row(0).unwrap();
    assert_eq!(
        (first.compressed, first.uncompressed, first.bits),
        (10, 0, 0)
    );
    assert!(first.window.is_empty());
    // The first span decodes without a window.
    let spans = Ztoc::parse(&v2).unwrap().spans();
    let range = spans.compressed(SpanId(0));
    let bytes = &layer[range.start as usize..range.end as usize];
    let span = VerifiedSpan::verify(SpanId(0), bytes, &spans).unwrap();
    let at = soci_ztoc::Checkpoint::Gzip {
        bits: first.bits,
        window: first.window,
    };
    let mut out = Vec::new();
    soci_ztoc::decode_span(&span, &at, &spans, &mut out, &mut Decoder::new()).unwrap();
    assert!(out == tar[..out.len()] && !out.is_empty());
}

#[test]
fn a_stream_that_ends_inside_its_member_has_no_end() {
    let tar = Tar::of(&[File::regular("f", b"content")], Dialect::Ustar);
    let make = Make::Libdeflate { level: 6 };
    let layer = member(&tar, &make, &Fields::default());
    let bytes = crate::ztoc(&layer, Compression::Gzip, 4 << 20);
    let ztoc = Ztoc::parse(&bytes).unwrap();
    let spans = ztoc.spans();
    let last = SpanId(u32::try_from(spans.len()).unwrap() - 1);
    let range = spans.compressed(last);
    let whole = &layer[range.start as usize..range.end as usize];
    let to_end = |bytes: &[u8], most: usize| {
        let digest = *spans.digest(last);
        let mut zeros = bytes.to_vec();
        zeros.resize(whole.len(), 0);
        let span = VerifiedSpan::with_digest(last, &zeros, digest, &spans).unwrap();
        let mut found = 0;
        let done = Decoder::new().decode_to_end(&span, &ztoc.checkpoint(last), &spans, |piece| {
            found += piece.len();
            if found > most {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        done.map(|()| found)
    };
    assert_eq!(to_end(whole, usize::MAX), Ok(tar.len()));
    assert!(to_end(whole, 0).unwrap() > 0, "breaking off is no error");
    assert!(to_end(&whole[..whole.len() / 2], usize::MAX).is_err());
}
