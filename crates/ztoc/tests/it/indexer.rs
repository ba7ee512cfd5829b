//! Layers that are decompressed and indexed in one pass.

use soci_ztoc::{
    BuildError, BuildOptions, Builder, BuiltZtoc, Compression, GzipError, LayerIndexer,
};

use crate::archive::{Dialect, File, Tar};
use crate::squeeze::gzip;

type Indexed = (Vec<u8>, Result<BuiltZtoc, BuildError>);

/// Decompresses with steps and buffers of the given sizes.
fn index(layer: &[u8], step: usize, room: usize) -> Result<Indexed, GzipError> {
    let mut indexer = LayerIndexer::new()?;
    let (mut out, mut buffer) = (Vec::new(), vec![0; room]);
    for mut piece in layer.chunks(step) {
        loop {
            let filled = indexer.fill(&mut piece, &mut buffer)?;
            out.extend_from_slice(&buffer[..filled]);
            if filled < room {
                assert!(piece.is_empty());
                break;
            }
        }
    }
    Ok((out, indexer.finish()?))
}

fn encode(mut built: BuiltZtoc) -> Vec<u8> {
    let mut bytes = Vec::new();
    built.encode(&mut bytes).unwrap();
    bytes
}

fn built(layer: &[u8]) -> Vec<u8> {
    let builder = Builder::new(BuildOptions::default());
    encode(builder.build(layer, Compression::Gzip).unwrap())
}

/// Content that compresses to about half of its size.
fn words(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let word = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + u8::try_from(state >> 28).unwrap()
    };
    (0..len).map(word).collect()
}

fn tar() -> Vec<u8> {
    let files = [
        File::regular("text", &words(9 << 20)),
        File::regular("zeros", &vec![0; 20 << 20]),
        File::regular("end", b"end"),
    ];
    Tar::of(&files, Dialect::Ustar)
}

#[test]
fn the_ztoc_and_the_archive_are_those_of_two_passes() {
    let tar = tar();
    let (first, second) = tar.split_at(3 << 20);
    for layer in [gzip(&tar), [gzip(first), gzip(b""), gzip(second)].concat()] {
        let wanted = built(&layer);
        for (step, room) in [
            (2 << 20, 512 << 10),
            (5003, 700_001),
            (layer.len(), 1 << 20),
        ] {
            let (archive, ztoc) = index(&layer, step, room).unwrap();
            assert!(archive == tar, "{step} {room}");
            assert!(encode(ztoc.unwrap()) == wanted, "{step} {room}");
        }
    }
    let small = gzip(&Tar::of(&[File::regular("f", b"bytes")], Dialect::Ustar));
    for (step, room) in [(1, 1), (1, 1000), (small.len(), 7)] {
        let (_, ztoc) = index(&small, step, room).unwrap();
        assert_eq!(encode(ztoc.unwrap()), built(&small), "{step} {room}");
    }
}

#[test]
fn an_archive_without_a_ztoc_is_decompressed_all_the_same() {
    let text = words(100_000);
    let (archive, ztoc) = index(&gzip(&text), 1000, 4096).unwrap();
    assert!(archive == text);
    assert!(matches!(ztoc, Err(BuildError::Tar(_))), "{ztoc:?}");
}

#[test]
fn damaged_streams_are_refused() {
    let good = gzip(&Tar::of(
        &[File::regular("f", &words(100_000))],
        Dialect::Ustar,
    ));
    let damaged = |change: fn(&mut Vec<u8>)| {
        let mut layer = good.clone();
        change(&mut layer);
        layer
    };
    for layer in [
        damaged(|layer| *layer.last_mut().unwrap() ^= 1),
        damaged(|layer| layer.extend([0; 512])),
        damaged(|layer| layer.extend([0x78, 0x9c])),
        damaged(|layer| layer.extend([0x1f, 0x8b])),
        damaged(|layer| layer.truncate(layer.len() - 1)),
        damaged(|layer| layer[2000] ^= 0xff),
        Vec::new(),
    ] {
        let result = index(&layer, 1000, 1 << 20);
        assert!(result.is_err(), "{}", layer.len());
    }
}
