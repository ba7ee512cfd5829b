//! Layers that are read completely: which streams are accepted.

use soci_ztoc::{
    BuildError, BuildOptions, Builder, Compression, GzipError, LayerDecoder, LayerError,
    LayerFormat, LayerInflate,
};

use crate::archive::{Dialect, File, Tar};
use crate::squeeze::{Fields, Flush, Make, gzip, member};

fn inflate(layer: &[u8], step: usize) -> Result<Vec<u8>, GzipError> {
    let mut out = Vec::new();
    let mut stream = LayerInflate::new(Compression::sniff(layer))?;
    for piece in layer.chunks(step) {
        stream.push(piece, |bytes| out.extend_from_slice(bytes))?;
    }
    assert_eq!(stream.consumed(), layer.len() as u64);
    stream.finish()?;
    Ok(out)
}

fn build(layer: &[u8]) -> Result<(), BuildError> {
    Builder::new(BuildOptions::default())
        .build(layer, Compression::Gzip)
        .map(drop)
}

fn tar() -> Vec<u8> {
    Tar::of(
        &[File::regular("f", &b"some text ".repeat(5000))],
        Dialect::Ustar,
    )
}

#[test]
fn one_member_or_several_or_none() {
    let tar = tar();
    let (first, second) = tar.split_at(20_000);
    let fields = Fields {
        extra: Some(vec![1; 300]),
        name: Some(b"name".to_vec()),
        comment: Some(b"comment".to_vec()),
        checksum: true,
    };
    let flushed = Make::Zlib {
        level: 9,
        flush: Flush::Sync,
        every: 777,
    };
    let members = [
        gzip(first),
        gzip(b""),
        member(second, &flushed, &fields),
        member(b"", &Make::Stored, &fields),
    ];
    for layer in [gzip(&tar), members.concat(), tar.clone()] {
        for step in [1, 13, 4096, layer.len()] {
            assert_eq!(inflate(&layer, step).as_deref(), Ok(&tar[..]));
        }
    }
    assert!(build(&members.concat()).is_ok());
}

#[test]
fn damaged_streams_are_refused_by_both_readers() {
    let tar = tar();
    let good = gzip(&tar);
    let damaged = |change: fn(&mut Vec<u8>)| {
        let mut layer = good.clone();
        change(&mut layer);
        layer
    };
    let checksum = damaged(|layer| {
        let at = layer.len() - 5;
        layer[at] ^= 1;
    });
    let length = damaged(|layer| *layer.last_mut().unwrap() ^= 1);
    let zeros = damaged(|layer| layer.extend([0; 512]));
    let one_byte = damaged(|layer| layer.push(0));
    let half_a_header = damaged(|layer| layer.extend([0x1f, 0x8b]));
    let truncated = damaged(|layer| layer.truncate(layer.len() - 1));
    let only_header = damaged(|layer| layer.truncate(10));
    let body = damaged(|layer| layer[200] ^= 0xff);
    for (index, layer) in [
        checksum,
        length,
        zeros,
        one_byte,
        half_a_header,
        truncated,
        only_header,
        body,
    ]
    .iter()
    .enumerate()
    {
        assert!(inflate(layer, 1000).is_err(), "case {index}");
        let error = build(layer).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("could not generate gzip zinfo. gzip error: -3"),
            "{index}: {text}"
        );
    }
    let text = build(&[]).unwrap_err().to_string();
    assert!(
        text.starts_with("could not generate gzip zinfo. gzip error: -3"),
        "{text}"
    );
}

#[test]
fn the_kind_of_a_layer_is_judged_by_its_first_bytes() {
    assert_eq!(Compression::sniff(&gzip(b"")), Compression::Gzip);
    assert_eq!(Compression::sniff(&tar()), Compression::Plain);
    assert_eq!(Compression::sniff(&[]), Compression::Plain);
    assert_eq!(Compression::sniff(&[0x1f, 0x8b]), Compression::Plain);
}

/// Decodes a layer with steps and buffers of the given sizes.
fn decode(layer: &[u8], step: usize, room: usize) -> Result<Vec<u8>, LayerError> {
    let mut decoder = LayerDecoder::new(LayerFormat::sniff(layer))?;
    let (mut out, mut buffer) = (Vec::new(), vec![0; room]);
    for mut piece in layer.chunks(step) {
        loop {
            let filled = decoder.fill(&mut piece, &mut buffer)?;
            out.extend_from_slice(&buffer[..filled]);
            if filled < room {
                assert!(piece.is_empty());
                break;
            }
        }
    }
    decoder.finish().map(|()| out)
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; zstd_safe::compress_bound(bytes.len())];
    let written = zstd_safe::CCtx::create().compress(&mut out[..], bytes, 3);
    out.truncate(written.unwrap());
    out
}

#[test]
fn steps_and_buffers_of_any_size_give_the_same_bytes() {
    let tar = tar();
    let (first, second) = tar.split_at(20_000);
    let skipped = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3].to_vec();
    let frames = [
        skipped.clone(),
        zstd(first),
        skipped,
        zstd(second),
        zstd(b""),
    ];
    for layer in [
        tar.clone(),
        [gzip(first), gzip(second), gzip(b"")].concat(),
        frames.concat(),
    ] {
        for step in [1, 13, 4096, layer.len()] {
            for room in [1, 1000, tar.len(), tar.len() + 1] {
                assert_eq!(decode(&layer, step, room).as_deref(), Ok(&tar[..]));
            }
        }
        // Every compressed form says so if its end is missing.
        let cut = decode(&layer[..layer.len() - 1], 4096, 1 << 20);
        assert_eq!(cut.is_err(), layer.len() != tar.len());
    }
}

#[test]
fn the_format_of_a_layer_is_judged_by_its_first_bytes() {
    for (start, format) in [
        (&gzip(b"")[..], LayerFormat::Gzip),
        (&zstd(b"")[..], LayerFormat::Zstd),
        (&[0x50, 0x2a, 0x4d, 0x18, 0][..], LayerFormat::Zstd),
        (&[0x5f, 0x2a, 0x4d, 0x18, 0][..], LayerFormat::Zstd),
        (&[0x60, 0x2a, 0x4d, 0x18, 0][..], LayerFormat::Plain),
        (&[0x28, 0xb5, 0x2f][..], LayerFormat::Plain),
        (&tar()[..], LayerFormat::Plain),
        (&[][..], LayerFormat::Plain),
    ] {
        assert_eq!(LayerFormat::sniff(start), format, "{start:x?}");
    }
}
