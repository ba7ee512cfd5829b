//! Whole layers in order. The sizes of pieces and buffers change nothing, zstd frames of our own
//! decode to their content, damage does no worse than fail, and a limited decoder stays in its
//! limit. A gzip layer that is indexed in passing gives the same bytes.

use soci_ztoc::{LayerDecoder, LayerError, LayerFormat, LayerIndexer};
use zstd_safe::{CCtx, CParameter};

/// Decompression ends here, so that a bomb takes no time.
const MOST: usize = 1 << 20;

/// The first four bytes are the recipe, the rest a layer, or content and damage.
pub(crate) fn run(data: &[u8]) {
    let Some((&[how, step, room, at], content)) = data.split_first_chunk() else {
        return;
    };
    let (step, room) = (usize::from(step) + 1, usize::from(room) * 16 + 1);
    compare(content, step, room);
    let mut layer = frames(content, how);
    let whole = decode(&layer, step, room).expect("frames of our own are sound");
    assert_eq!(whole, content);
    let place = usize::from(at) * 31 % layer.len().max(1);
    for (byte, damage) in layer[place..].iter_mut().zip(content) {
        *byte ^= damage;
    }
    compare(&layer, step, room);
    layer.truncate(place);
    compare(&layer, step, room);
}

/// Both sizes of pieces and buffers give the same, and so does the decoder that indexes.
fn compare(layer: &[u8], step: usize, room: usize) {
    let pieces = decode(layer, step, room).ok();
    assert_eq!(pieces, decode(layer, usize::MAX, MOST).ok());
    match LayerFormat::sniff(layer) {
        LayerFormat::Plain => assert_eq!(pieces.as_deref(), layer.get(..layer.len().min(MOST))),
        LayerFormat::Gzip => {
            let mut indexer = LayerIndexer::new().expect("memory");
            let fill = |input: &mut &[u8], out: &mut [u8]| Ok(indexer.fill(input, out)?);
            let filled = fill_from(layer, step, room, fill);
            let indexed = filled.and_then(|(out, is_cut)| match is_cut {
                true => Ok(out),
                false => indexer.finish().map(|_| out).map_err(LayerError::from),
            });
            assert_eq!(indexed.ok(), pieces);
        }
        LayerFormat::Zstd => {
            // What says that it needs more memory is refused before any output.
            let starts = layer.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
            if starts && !LayerDecoder::is_small(layer) {
                assert!(pieces.is_none_or(|out| out.is_empty()));
            }
        }
    }
}

fn decode(layer: &[u8], step: usize, room: usize) -> Result<Vec<u8>, LayerError> {
    // A larger window could take the memory of the fuzzer.
    let mut decoder = LayerDecoder::small(LayerFormat::sniff(layer))?;
    let fill = |input: &mut &[u8], out: &mut [u8]| decoder.fill(input, out);
    let (out, is_cut) = fill_from(layer, step, room, fill)?;
    match is_cut {
        true => Ok(out),
        false => decoder.finish().map(|()| out),
    }
}

/// The first [`MOST`] bytes at most, and whether there may be more.
fn fill_from(
    layer: &[u8],
    step: usize,
    room: usize,
    mut fill: impl FnMut(&mut &[u8], &mut [u8]) -> Result<usize, LayerError>,
) -> Result<(Vec<u8>, bool), LayerError> {
    let mut out = Vec::new();
    for mut piece in layer.chunks(step) {
        loop {
            let mut buffer = vec![0; room.min(MOST - out.len())];
            let filled = fill(&mut piece, &mut buffer)?;
            out.extend_from_slice(&buffer[..filled]);
            if out.len() == MOST {
                return Ok((out, true));
            }
            if filled < buffer.len() {
                assert!(piece.is_empty(), "all of it is consumed");
                break;
            }
        }
    }
    Ok((out, false))
}

/// The content in one frame or several, with frames between them that a decoder skips.
fn frames(content: &[u8], how: u8) -> Vec<u8> {
    let part = content.len() / (usize::from(how % 4) + 1) + 1;
    let mut layer = Vec::new();
    // At least one frame, also without content.
    for part in content.chunks(part).chain([&[][..]]) {
        if how & 4 != 0 {
            layer.extend([0x50 | how & 15, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        }
        let mut context = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(i32::from(how >> 5) * 3 - 3),
            CParameter::ChecksumFlag(how & 8 != 0),
            CParameter::ContentSizeFlag(how & 16 != 0),
            CParameter::WindowLog(10 + u32::from(how >> 5)),
        ] {
            context.set_parameter(parameter).expect("a parameter");
        }
        let mut frame = vec![0; zstd_safe::compress_bound(part.len())];
        let len = context
            .compress2(&mut frame[..], part)
            .expect("room enough");
        layer.extend_from_slice(&frame[..len]);
    }
    layer
}
