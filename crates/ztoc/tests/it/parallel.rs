//! Several threads give the same bytes, warnings, and errors as one thread.

use std::io::{self, Read};
use std::num::NonZeroUsize;

use proptest::collection::vec;
use proptest::prelude::*;
use soci_ztoc::{BuildError, BuildOptions, Builder, Compression};

use crate::archive::{Dialect, File, Tar};
use crate::fuzz::build_parallel::refusal;
use crate::squeeze::{Fields, Flush, Make, gzip, member};

fn build(
    layer: impl Read,
    compression: Compression,
    span_size: u64,
    threads: usize,
) -> Result<Vec<u8>, BuildError> {
    let options = BuildOptions {
        span_size,
        threads: NonZeroUsize::new(threads).unwrap(),
        // From zero to the usual value.
        ahead: (threads - 1).pow(3) << 19,
        ..BuildOptions::default()
    };
    let mut built = Builder::new(options).build(layer, compression)?;
    let mut bytes = Vec::new();
    built.encode(&mut bytes).unwrap();
    bytes.extend(format!("{:?}", built.warnings()).into_bytes());
    Ok(bytes)
}

/// Asserts that threads make no difference for this layer. Returns whether it has a zTOC.
fn assert_same(layer: &[u8], compression: Compression, span_size: u64) -> bool {
    let one = build(layer, compression, span_size, 1);
    for threads in [2, 3, 5] {
        let many = build(layer, compression, span_size, threads);
        match (&one, &many) {
            (Ok(one), Ok(many)) => assert!(one == many, "{threads} threads"),
            (one, many) => assert_eq!(
                one.as_ref().map(drop).map_err(refusal),
                many.as_ref().map(drop).map_err(refusal),
                "{threads} threads"
            ),
        }
    }
    one.is_ok()
}

/// Bytes that neither compress nor repeat.
fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    })
    .take(len)
    .collect()
}

/// A tar of one file with this content.
fn tar(content: &[u8]) -> Vec<u8> {
    Tar::of(&[File::regular("f", content)], Dialect::Ustar)
}

/// The archive in gzip members of `len` uncompressed bytes each.
fn members(tar: &[u8], len: usize) -> Vec<u8> {
    tar.chunks(len).flat_map(gzip).collect()
}

#[test]
fn members_of_all_sizes_and_span_sizes() {
    let text: Vec<u8> = (0..150_000u32)
        .flat_map(|n| format!("line {n}\n").into_bytes())
        .collect();
    let tar = tar(&[
        &noise(700_000, 7)[..],
        &text,
        &vec![0; 3_000_000],
        &noise(300_000, 8),
    ]
    .concat());
    for len in [700, 30_000, 131_072, 1_000_000] {
        let layer = members(&tar, len);
        for span_size in [0, 5000, 200_000, 4 << 20] {
            assert!(
                assert_same(&layer, Compression::Gzip, span_size),
                "{len} {span_size}"
            );
        }
    }
}

/// More input and output than one thread gets at once, between small members.
#[test]
fn members_too_large_for_one_thread() {
    let parts = [
        vec![1; 5000],
        vec![0; 20 << 20],
        noise(6 << 20, 1),
        vec![2; 70_000],
        noise(300_000, 2),
        vec![0; 9 << 20],
    ];
    let layer: Vec<u8> = {
        let content = parts.concat();
        let tar = tar(&content);
        let mut at = 0;
        let mut layer = Vec::new();
        for _ in 0..2 {
            for part in &parts {
                let end = (at + part.len() / 2).min(tar.len());
                layer.extend(member(
                    &tar[at..end],
                    &Make::Libdeflate { level: 1 },
                    &Fields::default(),
                ));
                at = end;
            }
        }
        layer.extend(gzip(&tar[at..]));
        layer
    };
    assert!(assert_same(&layer, Compression::Gzip, 4 << 20));
    assert!(assert_same(&layer, Compression::Gzip, 100_000));
}

#[test]
fn what_looks_like_a_member_inside_of_one() {
    let inner = members(&noise(40_000, 3), 3000);
    let content = [
        &noise(5000, 4)[..],
        &inner,
        &[0x1f, 0x8b, 8, 0].repeat(5000),
        &inner,
    ]
    .concat();
    let tar = tar(&content.repeat(8));
    for len in [10_000, 100_000, tar.len()] {
        let layer: Vec<u8> = tar
            .chunks(len)
            .flat_map(|part| member(part, &Make::Stored, &Fields::default()))
            .collect();
        assert!(assert_same(&layer, Compression::Gzip, 50_000), "{len}");
    }
}

#[test]
fn empty_members_and_members_of_empty_blocks() {
    let flushed = Make::Zlib {
        level: 1,
        flush: Flush::Full,
        every: 1,
    };
    let tar = tar(&noise(30_000, 5));
    let empty = gzip(b"");
    let blocks = member(&tar[..20_000], &flushed, &Fields::default());
    let rest = members(&tar[20_000..], 500);
    let layer = [
        &empty.repeat(100)[..],
        &blocks,
        &empty.repeat(10_000),
        &rest,
        &empty,
    ]
    .concat();
    for span_size in [0, 1000, 1 << 20] {
        assert!(assert_same(&layer, Compression::Gzip, span_size));
    }
}

#[test]
fn damaged_layers_are_refused_alike() {
    let good = members(&tar(&noise(2_000_000, 6)), 9000);
    let middle = good.len() / 2;
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut layer = good.clone();
        change(&mut layer);
        assert!(!assert_same(&layer, Compression::Gzip, 100_000));
    };
    damaged(&|layer| layer[middle] ^= 0xff);
    damaged(&|layer| layer.truncate(middle));
    damaged(&|layer| layer.extend([0; 600]));
    damaged(&|layer| layer.extend([0x1f, 0x8b, 8, 0]));
    damaged(&|layer| drop(layer.drain(middle..middle + 5000)));
    damaged(&|layer| *layer = [&good[..], &noise(9000, 1)].concat());
    // A zlib member between gzip members, which the reference rejects.
    let zlib = [0x78, 0x9c, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01];
    let tar = tar(&noise(2_000_000, 6));
    let layer = [
        &members(&tar[..1_000_000], 9000)[..],
        &zlib,
        &members(&tar[1_000_000..], 9000),
    ];
    assert!(!assert_same(&layer.concat(), Compression::Gzip, 100_000));
}

/// Returns a few bytes at a time, and an error at the end.
struct Broken<'a> {
    bytes: &'a [u8],
    most: usize,
}

impl Read for Broken<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            return Err(io::Error::other("the line is down"));
        }
        let most = self.most.min(into.len());
        (&mut self.bytes).take(most as u64).read(into)
    }
}

#[test]
fn a_layer_that_cannot_be_read_is_no_damaged_layer() {
    let tar = tar(&noise(500_000, 9));
    for compression in [Compression::Gzip, Compression::Plain] {
        let layer = match compression {
            Compression::Gzip => members(&tar, 20_000),
            Compression::Plain => tar.clone(),
        };
        for threads in [1, 3] {
            let bytes = &layer[..layer.len() - 100];
            let error = build(Broken { bytes, most: 777 }, compression, 5000, threads);
            assert!(matches!(error, Err(BuildError::Read(_))), "{error:?}");
        }
    }
    // Data read before an error is processed first, with one thread and with several.
    let mut layer = members(&tar, 20_000);
    layer[1000] ^= 1;
    for threads in [1, 3] {
        let bytes = &layer[..];
        let error = build(
            Broken { bytes, most: 777 },
            Compression::Gzip,
            5000,
            threads,
        );
        assert!(matches!(error, Err(BuildError::Gzip(_))), "{error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn prop_members_of_random_sizes(
        cuts in vec((1..200_000usize, 0..4u8), 1..40),
        seed in any::<u64>(),
        behind in 0..3000usize,
        span_size in prop_oneof![Just(0), 1..100_000u64, Just(4 << 20)],
    ) {
        let total: usize = cuts.iter().map(|cut| cut.0).sum();
        let mut content = noise(total, seed);
        content[total / 3..total / 2].fill(7);
        let mut tar = tar(&content);
        tar.resize(tar.len() + behind, 0);
        let (mut at, mut layer) = (0, Vec::new());
        for (len, make) in &cuts {
            let make = match make {
                0 => Make::Stored,
                1 => Make::Zlib { level: 1, flush: Flush::Sync, every: 5000 },
                2 => Make::Zlib { level: 6, flush: Flush::None, every: usize::MAX },
                _ => Make::Libdeflate { level: 3 },
            };
            let end = (at + len).min(tar.len());
            layer.extend(member(&tar[at..end], &make, &Fields::default()));
            at = end;
        }
        layer.extend(gzip(&tar[at..]));
        prop_assert!(assert_same(&layer, Compression::Gzip, span_size));
        prop_assert!(assert_same(&tar, Compression::Plain, span_size.max(512)));
    }
}
