//! Spans against the whole stream: a layer is made by a recipe, every span must decode to its piece of
//! what the whole stream inflates to, and damaged spans must not do worse than fail.

use libdeflater::{CompressionLvl, Compressor, crc32};
use soci_ztoc::{
    ArrivingSpan, BuildOptions, Builder, Compression, Decoder, LayerInflate, SpanId, SpanMap,
    VerifiedSpan, Ztoc,
};

/// The first five bytes are the recipe, the rest content and damage.
pub(crate) fn run(data: &[u8]) {
    let Some((&[level, members, span, repeat, at], content)) = data.split_first_chunk() else {
        return;
    };
    let tar = tar(content, repeat);
    let layer = gzip(&tar, level % 13, members % 4);
    let options = BuildOptions {
        span_size: u64::from(span) * 97,
        ..BuildOptions::default()
    };
    let mut built = Builder::new(options)
        .build(&layer[..], Compression::Gzip)
        .expect("a layer of our own is sound");
    let mut bytes = Vec::new();
    built.encode(&mut bytes).expect("a Vec takes everything");
    let ztoc = Ztoc::parse(&bytes).expect("a zTOC of our own is sound");

    let mut whole = Vec::new();
    let mut inflate = LayerInflate::new(Compression::Gzip).expect("memory");
    for piece in layer.chunks(usize::from(repeat) + 1) {
        inflate
            .push(piece, |bytes| whole.extend_from_slice(bytes))
            .expect("sound");
    }
    inflate.finish().expect("complete");
    assert_eq!(whole, tar);

    let spans = ztoc.spans();
    for id in spans.ids() {
        let range = spans.compressed(id);
        let mut compressed = layer[range.start as usize..range.end as usize].to_vec();
        let expected = spans.uncompressed(id);
        let expected = &whole[expected.start as usize..expected.end as usize];
        let (graft, pieces) = decode(&ztoc, &spans, id, &compressed);
        assert_eq!(graft.as_deref(), Some(expected), "span {id:?}");
        assert_eq!(pieces.as_deref(), Some(expected), "span {id:?}");
        let arrive = |bytes: &[u8]| {
            let at = ztoc.checkpoint(id);
            let mut span = ArrivingSpan::new(id, &at, &spans).expect("a compressed layer");
            let pieces = bytes.chunks(usize::from(repeat) + 1);
            pieces.for_each(|piece| span.push(piece));
            span.finish().ok()
        };
        assert_eq!(
            arrive(&compressed).as_deref(),
            Some(expected),
            "span {id:?}"
        );
        let place = usize::from(at) * 31 % compressed.len().max(1);
        for (byte, damage) in compressed[place..].iter_mut().zip(content) {
            *byte ^= damage;
        }
        let arrived = arrive(&compressed);
        assert!(arrived.is_none() || arrived.as_deref() == Some(expected));
        if let (Some(graft), Some(pieces)) = decode(&ztoc, &spans, id, &compressed) {
            assert_eq!(graft, pieces);
            assert_eq!(graft.len(), expected.len());
        }
    }
}

/// The span by both decoders, as far as they take it.
fn decode(
    ztoc: &Ztoc<'_>,
    spans: &SpanMap,
    id: SpanId,
    bytes: &[u8],
) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    // The digest is not what is tested here.
    let span = VerifiedSpan::with_digest(id, bytes, *spans.digest(id), spans).expect("its length");
    let at = ztoc.checkpoint(id);
    let mut decoder = Decoder::new();
    let graft = decoder.decode(&span, &at, spans).ok().map(<[u8]>::to_vec);
    let mut pieces = Vec::new();
    let streamed =
        decoder.decode_in_pieces(&span, &at, spans, |piece| pieces.extend_from_slice(piece));
    (graft, streamed.ok().map(|()| pieces))
}

/// An archive with one file: the content, some times over.
fn tar(content: &[u8], repeat: u8) -> Vec<u8> {
    let content = content.repeat(usize::from(repeat % 8) + 1);
    let mut block = [0u8; 512];
    block[0] = b'f';
    block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    block[148..156].fill(b' ');
    block[156] = b'0';
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = [&block[..], &content].concat();
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// One or several members.
fn gzip(tar: &[u8], level: u8, members: u8) -> Vec<u8> {
    let mut layer = Vec::new();
    for part in tar.chunks(tar.len() / (usize::from(members) + 1) + 1) {
        let level = CompressionLvl::new(i32::from(level)).expect("0 to 12");
        let mut compressor = Compressor::new(level);
        let mut body = vec![0; compressor.deflate_compress_bound(part.len())];
        let len = compressor
            .deflate_compress(part, &mut body)
            .expect("room enough");
        layer.extend([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
        layer.extend(&body[..len]);
        layer.extend(crc32(part).to_le_bytes());
        layer.extend((part.len() as u32).to_le_bytes());
    }
    layer
}
