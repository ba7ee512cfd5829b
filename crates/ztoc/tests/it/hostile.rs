//! Malicious zTOCs, each with one false statement.

use soci_ztoc::{
    Compression, DecodeError, Decoder, EntryProblem, SpanId, VerifiedSpan, VerifyError, ZinfoError,
    Ztoc,
};

use crate::archive::{Dialect, File, Tar};
use crate::squeeze::gzip;

/// A zTOC of two files in one span, and the offset of the first record of its checkpoint table.
fn sample() -> (Vec<u8>, Vec<u8>, usize) {
    let files = [
        File::regular("first", &[1; 700]),
        File::regular("second", b"2"),
    ];
    let layer = gzip(&Tar::of(&files, Dialect::Ustar));
    let bytes = crate::ztoc(&layer, Compression::Gzip, 1 << 20);
    let table = Ztoc::parse(&bytes).unwrap().checkpoint_table();
    let at = table.as_ptr() as usize - bytes.as_ptr() as usize;
    (bytes, layer, at)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Replaces the only occurrence of the eight bytes of `old`.
fn replace(bytes: &mut [u8], old: i64, new: i64) {
    let places: Vec<usize> = (0..bytes.len() - 8)
        .filter(|&at| bytes[at..at + 8] == old.to_le_bytes())
        .collect();
    assert_eq!(places.len(), 1, "{old} stands at {places:?}");
    put(bytes, places[0], &new.to_le_bytes());
}

#[test]
fn checkpoint_tables_that_lie() {
    let (good, layer, at) = sample();
    let parse = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        Ztoc::parse(&bytes).map(drop).unwrap_err()
    };
    let zinfo = |error| matches!(error, DecodeError::Zinfo(_));
    // With one record less, this is a version 1 table with one checkpoint more than digests.
    assert!(matches!(
        parse(at, &2i32.to_le_bytes()),
        DecodeError::SpanCount { checkpoints: 2, .. }
    ));
    assert!(zinfo(parse(at, &3i32.to_le_bytes())));
    assert!(zinfo(parse(at, &0i32.to_le_bytes())));
    assert!(zinfo(parse(at, &i32::MIN.to_le_bytes())));
    assert!(zinfo(parse(at + 12, &(-1i64).to_le_bytes())));
    assert!(zinfo(parse(at + 12 + 8, &(-1i64).to_le_bytes())));
    assert!(matches!(
        parse(at + 12 + 16, &[8]),
        DecodeError::Zinfo(ZinfoError::Field {
            field: "bits",
            value: 8,
            ..
        })
    ));
    let behind = layer.len() as i64 + 1;
    assert!(matches!(
        parse(at + 12, &behind.to_le_bytes()),
        DecodeError::Span { .. }
    ));
    assert!(matches!(
        parse(at + 12 + 8, &1i64.to_le_bytes()),
        DecodeError::Span { .. }
    ));
}

#[test]
fn entries_that_lie() {
    let (good, ..) = sample();
    let parse = |old: i64, new: i64| {
        let mut bytes = good.clone();
        replace(&mut bytes, old, new);
        match Ztoc::parse(&bytes).map(drop).unwrap_err() {
            DecodeError::Entry { problem, .. } => problem,
            other => panic!("{other}"),
        }
    };
    // The second file's content starts at 2048. The first one has 700 bytes from 512.
    assert_eq!(parse(2048, 1535), EntryProblem::Overlap);
    assert_eq!(parse(2048, -1), EntryProblem::Extent);
    assert_eq!(parse(2048, i64::MAX), EntryProblem::BehindEnd);
    assert_eq!(parse(700, -700), EntryProblem::Extent);
    assert_eq!(parse(700, i64::MAX), EntryProblem::BehindEnd);
    let mut bytes = good.clone();
    let kind = bytes.windows(4).position(|w| w == b"reg\0").unwrap();
    put(&mut bytes, kind, b"rag");
    assert!(matches!(
        Ztoc::parse(&bytes).unwrap_err(),
        DecodeError::Entry {
            problem: EntryProblem::Kind,
            ..
        }
    ));
}

#[test]
fn entries_are_put_in_the_order_of_their_offsets() {
    let (good, ..) = sample();
    let mut bytes = good.clone();
    // Swap the offsets and sizes of the two files.
    let offsets: Vec<usize> = [512i64, 2048]
        .map(|value| {
            bytes
                .windows(8)
                .position(|w| w == value.to_le_bytes())
                .unwrap()
        })
        .to_vec();
    put(&mut bytes, offsets[0], &2048i64.to_le_bytes());
    put(&mut bytes, offsets[1], &512i64.to_le_bytes());
    let sizes: Vec<usize> = [700i64, 1]
        .map(|value| {
            let places = bytes
                .windows(8)
                .enumerate()
                .filter(|(_, w)| *w == value.to_le_bytes());
            places
                .map(|(at, _)| at)
                .find(|at| at.abs_diff(offsets[0]) < 4000)
                .unwrap()
        })
        .to_vec();
    put(&mut bytes, sizes[0], &1i64.to_le_bytes());
    put(&mut bytes, sizes[1], &700i64.to_le_bytes());
    let ztoc = Ztoc::parse(&bytes).unwrap();
    let names: Vec<_> = ztoc
        .entries()
        .map(|e| (e.name, e.offset, e.header()))
        .collect();
    assert_eq!(
        names,
        [(&b"second"[..], 512, 0..512), (b"first", 2048, 1024..2048)]
    );
    assert_eq!(ztoc.entry(1).unwrap().name, b"first");
}

#[test]
fn claims_of_too_much_output_are_refused() {
    let (mut bytes, ..) = sample();
    // The archive has 512 + 1024 + 512 + 512 + 1024 bytes.
    replace(&mut bytes, 3584, 1 << 40);
    assert!(matches!(
        Ztoc::parse(&bytes).unwrap_err(),
        DecodeError::Span {
            problem: "too much output",
            ..
        }
    ));
}

#[test]
fn spans_are_verified_before_they_are_decoded() {
    let (bytes, layer, _) = sample();
    let ztoc = Ztoc::parse(&bytes).unwrap();
    let spans = ztoc.spans();
    let range = spans.compressed(SpanId(0));
    let mut compressed = layer[range.start as usize..range.end as usize].to_vec();
    assert!(VerifiedSpan::verify(SpanId(0), &compressed, &spans).is_ok());
    let short = VerifiedSpan::verify(SpanId(0), &compressed[1..], &spans).unwrap_err();
    assert!(matches!(short, VerifyError::Length { .. }));
    compressed[5] ^= 1;
    let wrong = VerifiedSpan::verify(SpanId(0), &compressed, &spans).unwrap_err();
    assert!(
        wrong
            .to_string()
            .starts_with("span digests do not match: span 0 is sha256:")
    );
    // Even with a matching digest, damaged data gives an error or the right length, never more.
    let span = VerifiedSpan::with_digest(SpanId(0), &compressed, *spans.digest(SpanId(0)), &spans);
    let decoded = Decoder::new()
        .decode(&span.unwrap(), &ztoc.checkpoint(SpanId(0)), &spans)
        .map(<[u8]>::len);
    assert!(decoded.is_err() || decoded == Ok(3584));
}

#[test]
fn every_truncation_is_refused() {
    let tar = Tar::of(&[File::regular("f", b"x")], Dialect::Pax);
    let bytes = crate::ztoc(&tar, Compression::Plain, 1000);
    // The last byte is the terminator of a string, which parsing does not need.
    for len in 0..bytes.len() - 1 {
        assert!(Ztoc::parse(&bytes[..len]).is_err(), "{len}");
    }
    assert!(Ztoc::parse(&bytes).is_ok());
}
