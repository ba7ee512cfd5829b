//! Whole layers in every format and dialect.

use soci_registry::testing::noise;
use zstd_safe::{CCtx, CParameter};

use super::{indexed::indexing, whole::pull, *};

/// The layers of the corpus; see its README.
fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/layers");
    std::fs::read(std::path::Path::new(folder).join(name)).expect("a layer of the corpus")
}

fn layer_of(tar: &[u8], layer: Vec<u8>) -> Made {
    Made {
        form: Form::Plain,
        tar: tar.to_vec(),
        layer,
        ztoc: Vec::new(),
        files: Vec::new(),
    }
}

async fn pull_it(life: &Life, made: &Made) -> Result<Arc<Layer>, OpenError> {
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    pull(life, made, Digest::sha256(&made.tar), blob).await
}

/// What a container sees of a layer: `data`, and the names and places of files. The same with a zTOC
/// that is made in passing.
async fn content(made: &Made) -> Result<(Vec<u8>, Vec<String>), OpenError> {
    let seen = content_with(made, Options::default()).await?;
    assert!(content_with(made, indexing()).await? == seen);
    Ok(seen)
}

async fn content_with(made: &Made, options: Options) -> Result<(Vec<u8>, Vec<String>), OpenError> {
    let node = Node::new();
    let life = node.start_with(options, fetch::Options::default());
    let layer = pull_it(&life, made).await?;
    let data = std::fs::read(layer.data_path()).expect("readable");
    let listed = layer.entries().expect("scanned");
    let entries = listed.iter();
    let names = entries.map(|entry| format!("{:?} {:?}", entry.name, entry.content()));
    Ok((data, names.collect()))
}

/// The error of a pull that must fail.
async fn refused(tar: &[u8], layer: Vec<u8>) -> String {
    match content(&layer_of(tar, layer)).await {
        Err(OpenError::Stream(error)) => {
            let source = std::error::Error::source(&error);
            let cause = source.map(ToString::to_string).unwrap_or_default();
            format!("{error}: {cause}")
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

/// One frame, with the given parameters.
fn frame(bytes: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for parameter in parameters {
        context.set_parameter(*parameter).expect("a parameter");
    }
    let mut out = vec![0; zstd_safe::compress_bound(bytes.len())];
    let written = context.compress2(&mut out[..], bytes);
    out.truncate(written.expect("compressed"));
    out
}

/// One frame with a window of two to the power of `log`, whose content is not compressed.
fn stored(log: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3];
    let blocks = bytes.chunks(100_000);
    let last = blocks.len() - 1;
    for (i, block) in blocks.enumerate() {
        let size = u32::try_from(block.len()).expect("short") << 3;
        let header = size | u32::from(i == last);
        out.extend(&header.to_le_bytes()[..3]);
        out.extend(block);
    }
    out
}

/// A frame that decoders skip.
fn skipped(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short").to_le_bytes();
    [&[0x50 + kind, 0x2a, 0x4d, 0x18], &length[..], bytes].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialect_of_gzip_gives_the_same_files() {
    let mut ten_files = vec![0; 430_080];
    let gzip = fixture("t-gz.gz");
    let inflated = libdeflater::Decompressor::new().gzip_decompress(&gzip, &mut ten_files);
    assert_eq!(inflated.expect("valid"), ten_files.len());
    let kinds = fixture("v-a.tar");
    let of_ten = [
        "t-gz.gz",
        "t-z1.gz",
        "t-z6.gz",
        "t-z9.gz",
        "t-part.gz",
        "t-sync.gz",
        "t-full.gz",
        "t-block.gz",
        "t-lead.gz",
        "t-mm.gz",
        "t-pigz.gz",
        "t-pigzi.gz",
        "t-pigz11.gz",
        "t-igzip.gz",
    ];
    let of_kinds = [
        "v-a.tar",
        "v-a.tar.gz",
        "v-s.tar.gz",
        "v-mm.tar.gz",
        "v-em.tar.gz",
        "v-mme.tar.gz",
    ];
    for (tar, names) in [(&ten_files, &of_ten[..]), (&kinds, &of_kinds[..])] {
        let plain = content(&layer_of(tar, tar.clone())).await.expect("a tar");
        for name in names {
            let made = layer_of(tar, fixture(name));
            let found = content(&made).await;
            assert!(found.expect(name) == plain, "{name}");
        }
    }
    for name in ["v-tg.tar.gz", "v-tr.tar.gz"] {
        let error = refused(&kinds, fixture(name)).await;
        assert!(error.contains("cannot decompress"), "{name}: {error}");
    }
    // No magic number of gzip: taken for a tar.
    let error = refused(&kinds, fixture("v-zl.tar.gz")).await;
    assert!(error.contains("cannot use the tar"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialect_of_zstd_gives_the_same_files() {
    let tar = Made::new(Form::Plain, 200, 16 << 10).tar;
    let plain = content(&layer_of(&tar, tar.clone())).await.expect("a tar");
    let checked = [CParameter::ChecksumFlag(true)];
    let (first, second) = tar.split_at(tar.len() / 3);
    let sizeless = [
        CParameter::ContentSizeFlag(false),
        CParameter::WindowLog(10),
    ];
    // As zstd:chunked: a frame per file, the list of files in frames that are skipped, a footer.
    let pieces = tar.chunks(70_000).map(|piece| frame(piece, &checked));
    let chunked: Vec<u8> = pieces.flatten().collect();
    let list = skipped(0, &frame(&noise(5, 3000), &[]));
    let chunked = [chunked, list, skipped(0, &[7; 64])].concat();
    let many = tar
        .chunks(333)
        .flat_map(|piece| frame(piece, &[]))
        .collect();
    let layers: [(&str, Vec<u8>); 10] = [
        ("one frame", frame(&tar, &checked)),
        ("level 19", frame(&tar, &[CParameter::CompressionLevel(19)])),
        (
            "a fast level",
            frame(&tar, &[CParameter::CompressionLevel(-5)]),
        ),
        ("no size", frame(&tar, &sizeless)),
        ("the largest window", stored(27, &tar)),
        ("the largest window that needs no turn", stored(23, &tar)),
        ("a large window, then a larger one", {
            [stored(24, first), stored(27, second)].concat()
        }),
        ("zstd:chunked", chunked),
        ("many frames", many),
        ("empty and skipped frames", {
            let empty = frame(&[], &checked);
            let parts = [
                skipped(15, b""),
                empty.clone(),
                frame(first, &[]),
                skipped(3, &noise(1, 100_000)),
                frame(second, &checked),
                empty,
            ];
            parts.concat()
        }),
    ];
    for (name, layer) in layers {
        let found = content(&layer_of(&tar, layer)).await;
        assert!(found.expect(name) == plain, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_zstd_is_refused() {
    let tar = Made::new(Form::Plain, 60, 16 << 10).tar;
    let good = frame(&tar, &[CParameter::ChecksumFlag(true)]);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut layer = good.clone();
        change(&mut layer);
        layer
    };
    let cut = [&good[..], &frame(b"more", &[])[..7]].concat();
    let (first, second) = tar.split_at(tar.len() / 2);
    let later = [stored(23, first), stored(24, second)].concat();
    // A window of 3.75 TiB, and one of 256 MiB, the next above the limit.
    let window = |byte: u8| vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, byte, 0x01, 0x00, 0x00];
    for (name, layer, wanted) in [
        (
            "truncated",
            changed(&|it| it.truncate(it.len() - 1)),
            "truncated",
        ),
        ("a second frame cut short", cut, "truncated"),
        (
            "a skipped frame cut short",
            skipped(1, b"12345")[..10].to_vec(),
            "truncated",
        ),
        (
            "checksum",
            changed(&|it| *it.last_mut().expect("bytes") ^= 1),
            "checksum",
        ),
        (
            "bytes behind",
            changed(&|it| it.extend(b"garbage")),
            "Unknown frame descriptor",
        ),
        (
            "zeros behind",
            changed(&|it| it.extend([0; 512])),
            "Unknown frame descriptor",
        ),
        ("a huge window", window(0xff), "too much memory"),
        ("a large window", window(18 << 3), "too much memory"),
        ("a larger window later", later, "too much memory"),
    ] {
        let error = refused(&tar, layer).await;
        assert!(error.contains("cannot decompress"), "{name}: {error}");
        assert!(error.contains(wanted), "{name}: {error}");
    }
    let damaged = changed(&|it| it[good.len() / 2] ^= 0x40);
    refused(&tar, damaged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_in_a_layer_take_no_space_on_disk() {
    let size = 64 << 20;
    let mut tar = made::header("zeros", b'0', size).to_vec();
    tar.resize(tar.len() + size as usize + 1024, 0);
    let layer = frame(&tar, &[]);
    assert!(layer.len() < 64 << 10);
    let node = Node::new();
    let life = node.start();
    let made = layer_of(&tar, layer);
    let layer = pull_it(&life, &made).await.expect("pulled");
    let stored = std::fs::metadata(layer.data_path()).expect("a file");
    assert_eq!(stored.len(), LEAD + size + crate::places::TAIL);
    use std::os::unix::fs::MetadataExt as _;
    assert!(stored.blocks() * 512 < 1 << 20, "zeros are holes");
}
