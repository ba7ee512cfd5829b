//! Runs the fuzz targets on stable Rust, with a corpus, mutations of it, and noise.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use soci_ztoc::Compression;

use crate::archive::{Dialect, File, Tar};

#[path = "../../../../fuzz/bodies/build_parallel.rs"]
pub(crate) mod build_parallel;
#[path = "../../../../fuzz/bodies/inflate_resume.rs"]
mod inflate_resume;
#[path = "../../../../fuzz/bodies/layer_decode.rs"]
mod layer_decode;
#[path = "../../../../fuzz/bodies/tar_scan.rs"]
mod tar_scan;
#[path = "../../../../fuzz/bodies/zinfo_decode.rs"]
mod zinfo_decode;
#[path = "../../../../fuzz/bodies/ztoc_decode.rs"]
mod ztoc_decode;

/// A mutation of a corpus item: overwrites, cuts, or repeats a part.
#[derive(Debug, Clone)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Add(prop::sample::Index, i32),
    Cut(prop::sample::Index),
    Copy(prop::sample::Index, prop::sample::Index, u8),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let index = any::<prop::sample::Index>;
    let one = prop_oneof![
        8 => (index(), any::<u8>()).prop_map(|(at, value)| Mutation::Set(at, value)),
        8 => (index(), -70_000..70_000i32).prop_map(|(at, value)| Mutation::Add(at, value)),
        1 => index().prop_map(Mutation::Cut),
        4 => (index(), index(), any::<u8>()).prop_map(|(from, to, len)| Mutation::Copy(from, to, len)),
    ];
    prop::collection::vec(one, 1..6)
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        match mutation {
            Mutation::Set(at, value) => *at.get_mut(&mut bytes) = *value,
            Mutation::Add(at, value) => {
                let at = at.index(bytes.len());
                if let Some(word) = bytes[at..].first_chunk_mut::<4>() {
                    *word = i32::from_le_bytes(*word).wrapping_add(*value).to_le_bytes();
                }
            }
            Mutation::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Mutation::Copy(from, to, len) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let len = usize::from(*len).min(bytes.len() - from.max(to));
                bytes.copy_within(from..from + len, to);
            }
        }
    }
    bytes
}

/// Like [`mutate`], but keeps the window of a checkpoint, in which any bytes are valid.
fn mutate_around_window(bytes: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let window =
        (0..bytes.len().saturating_sub(32_768)).find(|&at| bytes[at..at + 32_768] == [0; 32_768]);
    let Some(at) = window else {
        return mutate(bytes.to_vec(), mutations);
    };
    let mut rest = mutate([&bytes[..at], &bytes[at + 32_768..]].concat(), mutations);
    let tail = rest.split_off(at.min(rest.len()));
    [&rest[..], &[0; 32_768], &tail].concat()
}

/// A small archive with most kinds of headers.
fn archive() -> Vec<u8> {
    let mut file = File::regular("some/where/a-file-with-a-name", &[7; 700]);
    file.xattrs = vec![(b"user.k".to_vec(), b"\0\xffv".to_vec())];
    let mut long = File::regular(&"long/".repeat(40), b"x");
    long.uid = 3_000_000;
    let mut tar = Tar::default();
    for dialect in [Dialect::V7, Dialect::Ustar, Dialect::Pax, Dialect::Gnu] {
        tar.file(&file.clone().limited_to(dialect), dialect);
        tar.file(&long.clone().limited_to(dialect), dialect);
    }
    tar.end()
}

/// Its zTOCs, with gzip and without compression.
fn ztocs() -> [Vec<u8>; 2] {
    let tar = archive();
    [
        crate::ztoc(&crate::squeeze::gzip(&tar), Compression::Gzip, 1 << 20),
        crate::ztoc(&tar, Compression::Plain, 1000),
    ]
}

#[test]
fn the_corpus_passes_all_targets() {
    let layers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/layers");
    for file in fs::read_dir(layers).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        tar_scan::run(&bytes[..bytes.len().min(100_000)]);
        inflate_resume::run(&bytes[..bytes.len().min(20_000)]);
        build_parallel::run(&bytes[..bytes.len().min(20_000)]);
        build_parallel::assert_same(&bytes, 100_000, 3);
        ztoc_decode::run(&bytes);
        zinfo_decode::run(&bytes);
        for recipe in [[0; 4], [0xff; 4], [0x35, 99, 3, 7]] {
            layer_decode::run(&[&recipe[..], &bytes[..bytes.len().min(20_000)]].concat());
        }
    }
    ztocs().iter().for_each(|bytes| ztoc_decode::run(bytes));
    tar_scan::run(&archive());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn prop_mutated_ztocs_do_no_harm(which in 0..2usize, mutations in mutations()) {
        thread_local!(static ZTOCS: [Vec<u8>; 2] = ztocs());
        let bytes = ZTOCS.with(|ztocs| ztocs[which].clone());
        ztoc_decode::run(&mutate_around_window(&bytes, &mutations));
    }

    #[test]
    fn prop_mutated_tars_do_no_harm(mutations in mutations()) {
        thread_local!(static TAR: Vec<u8> = archive());
        tar_scan::run(&mutate(TAR.with(Clone::clone), &mutations));
    }

    #[test]
    fn prop_noise_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        ztoc_decode::run(&bytes);
        zinfo_decode::run(&bytes);
        tar_scan::run(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn prop_spans_resume(recipe in any::<[u8; 5]>(), content in prop::collection::vec(any::<u8>(), 0..9000)) {
        inflate_resume::run(&[&recipe[..], &content].concat());
    }

    #[test]
    fn prop_threads_make_no_difference(recipe in any::<[u8; 4]>(), content in prop::collection::vec(any::<u8>(), 0..3000)) {
        build_parallel::run(&[&recipe[..], &content].concat());
    }

    #[test]
    fn prop_layers_decode(recipe in any::<[u8; 4]>(), content in prop::collection::vec(any::<u8>(), 0..3000)) {
        layer_decode::run(&[&recipe[..], &content].concat());
    }

    #[test]
    fn prop_frames_of_any_kind_do_no_harm(
        recipe in any::<[u8; 4]>(),
        header in any::<[u8; 2]>(),
        content in prop::collection::vec(any::<u8>(), 0..300),
        mutations in mutations(),
    ) {
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd][..], &header, &content].concat();
        layer_decode::run(&[&recipe[..], &mutate(frame, &mutations)].concat());
    }
}
