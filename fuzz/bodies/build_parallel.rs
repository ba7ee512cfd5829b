//! The builder with several threads against the one with one: whatever the layer is, the same zTOC or the
//! same refusal.

use std::num::NonZeroUsize;

use libdeflater::{CompressionLvl, Compressor, crc32};
use soci_ztoc::{BuildError, BuildOptions, Builder, Compression};

/// The first four bytes are the recipe, the rest what members are made of.
pub(crate) fn run(data: &[u8]) {
    let Some((&[span, threads, damage, repeat], content)) = data.split_first_chunk() else {
        return;
    };
    let mut layer = layer(content, repeat);
    let at = usize::from(damage) * 251;
    match damage % 4 {
        0 => {}
        1 => layer.truncate(at),
        2 => layer.extend(content.iter().take(40)),
        _ => {
            if let Some(byte) = layer.get_mut(at) {
                *byte ^= span | 1;
            }
        }
    }
    let span_size = u64::from(span) * 1021;
    for layer in [&layer[..], content] {
        assert_same(layer, span_size, 2 + usize::from(threads % 3));
    }
}

/// Builds with one thread and with `threads`.
pub(crate) fn assert_same(layer: &[u8], span_size: u64, threads: usize) {
    let one = build(layer, span_size, 1);
    let many = build(layer, span_size, threads);
    assert!(one == many, "{:?}, {:?}", one.err(), many.err());
}

fn build(layer: &[u8], span_size: u64, threads: usize) -> Result<Vec<u8>, String> {
    let options = BuildOptions {
        span_size,
        threads: NonZeroUsize::new(threads).expect("one at least"),
        ..BuildOptions::default()
    };
    let mut built = Builder::new(options)
        .build(layer, Compression::Gzip)
        .map_err(|error| refusal(&error))?;
    let mut bytes = format!("{:?}", built.warnings()).into_bytes();
    built
        .encode(&mut bytes)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// What is wrong with a layer. Where a decoder notices damage depends on how it is fed.
pub(crate) fn refusal(error: &BuildError) -> String {
    let text = error.to_string();
    text.split(" near ").next().unwrap_or(&text).to_owned()
}

/// Members made of pieces of the content: a byte says how long, how often, and how they are compressed.
/// Level 0 keeps what looks like a member inside of one as it is.
fn layer(mut content: &[u8], repeat: u8) -> Vec<u8> {
    let mut layer = Vec::new();
    let mut archive_end = 0usize;
    while let Some((&how, rest)) = content.split_first() {
        let (piece, rest) = rest.split_at(usize::from(how % 64).min(rest.len()));
        content = rest;
        let times = if how & 64 == 0 {
            1
        } else {
            usize::from(repeat) * 97
        };
        let mut bytes = piece.repeat(times);
        if how & 128 != 0 {
            bytes = member(&bytes, 6);
        }
        archive_end += bytes.len();
        layer.extend(member(&bytes, i32::from(how % 4) * 3));
    }
    layer.extend(member(
        &vec![0; archive_end.next_multiple_of(512) - archive_end + 1024],
        1,
    ));
    layer
}

fn member(content: &[u8], level: i32) -> Vec<u8> {
    let level = CompressionLvl::new(level).expect("0 to 12");
    let mut compressor = Compressor::new(level);
    let mut body = vec![0; compressor.deflate_compress_bound(content.len())];
    let len = compressor
        .deflate_compress(content, &mut body)
        .expect("room enough");
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    bytes.extend(&body[..len]);
    bytes.extend(crc32(content).to_le_bytes());
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes
}
