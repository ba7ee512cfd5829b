//! Grafting turns a span into a deflate stream of its own.
//!
//! ```text
//! [stored block: the window] [empty blocks up to the bit phase] [the span's bytes] [empty final block]
//! ```
//! A whole-buffer decoder then decodes window and span in one call, without resuming. An empty
//! block with fixed codes has 10 bits and shifts the phase by 2; an empty block with custom codes
//! can be built with 91 bits and shifts it by 3. Together they reach every phase. If spans share a
//! byte, the bits of the other span are masked out.

use crate::checkpoint::WINDOW;

/// An empty block with fixed codes, not final: `0 10 0000000`, first bit lowest.
const FIXED: (u128, u32) = (0b010, 10);
/// The same block, final.
const FINAL: (u128, u32) = (0b011, 10);

/// An empty non-final block with custom codes, 91 bits. In stream order: not final (1 bit), custom
/// codes (2); 257 literal codes (5), one distance code (5), 18 code-length codes (4); their
/// lengths, which are 1 for symbols 18 and 1 (18 x 3); 138 and 117 zeros (8 each), three times
/// length 1 (3): literal 255, end of block, the distance; then the end of block (1).
const fn own_codes() -> (u128, u32) {
    let mut value = 0u128;
    let mut len = 0;
    // (bits, count), lowest bit first. Symbol 1 has code 0 and symbol 18 code 1; literal 255 has
    // code 0 and the end of block code 1.
    let fields: [(u128, u32); 14] = [
        (0, 1),
        (2, 2),
        (0, 5),
        (0, 5),
        (14, 4),
        (0, 6),  // 16, 17
        (1, 3),  // 18
        (0, 42), // 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14
        (1, 3),  // 1
        (1, 1),
        (138 - 11, 7),
        (1, 1),
        (117 - 11, 7),
        (0b1000, 4),
    ];
    let mut i = 0;
    while i < fields.len() {
        value |= fields[i].0 << len;
        len += fields[i].1;
        i += 1;
    }
    (value, len)
}

/// Builds the stream of a span in `into`.
///
/// `head_bits` is the number of high bits of the first byte that belong to the span, or 0 for all.
/// `tail_bits` is the number of high bits of the last byte that belong to the next span.
pub(super) fn graft(into: &mut Vec<u8>, window: &[u8], head_bits: u8, span: &[u8], tail_bits: u8) {
    into.clear();
    into.reserve(WINDOW + span.len() + 64);
    if let Ok(len) = u16::try_from(window.len())
        && len > 0
    {
        into.push(0);
        into.extend_from_slice(&len.to_le_bytes());
        into.extend_from_slice(&(!len).to_le_bytes());
        into.extend_from_slice(window);
    }
    let mut phase = (8 - u32::from(head_bits)) % 8;
    let mut filler = Bits::default();
    if phase % 2 == 1 {
        filler.put(into, own_codes());
        phase = (phase + 8 - 3) % 8;
    }
    for _ in 0..phase / 2 {
        filler.put(into, FIXED);
    }
    let start = into.len();
    into.extend_from_slice(span);
    if let Some(first) = into.get_mut(start)
        && filler.len > 0
    {
        *first = (*first & (0xff << filler.len)) | filler.value();
    }
    let mut end = Bits::default();
    if tail_bits > 0
        && let Some(last) = into.pop()
    {
        let mine = 8 - u32::from(tail_bits);
        end.put(into, (u128::from(last) & ((1 << mine) - 1), mine));
    }
    end.put(into, FINAL);
    end.flush(into);
}

/// Bits that do not fill a byte yet.
#[derive(Default)]
struct Bits {
    held: u128,
    len: u32,
}

impl Bits {
    /// Appends bits, lowest first, and writes complete bytes.
    fn put(&mut self, into: &mut Vec<u8>, (value, len): (u128, u32)) {
        self.held |= value << self.len;
        self.len += len;
        while self.len >= 8 {
            into.push(self.value());
            self.held >>= 8;
            self.len -= 8;
        }
    }

    fn value(&self) -> u8 {
        self.held.to_le_bytes()[0]
    }

    fn flush(&mut self, into: &mut Vec<u8>) {
        if self.len > 0 {
            into.push(self.value());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_reachable() {
        // A stored block of one byte after `8 - bits` foreign bits, which the mask must hide.
        assert_eq!(own_codes().1, 91);
        let window: Vec<u8> = (0..=255u8).cycle().take(WINDOW).collect();
        for bits in 0..8u8 {
            let shift = (8 - u32::from(bits)) % 8;
            let mut span = Vec::new();
            let mut writer = Bits::default();
            writer.put(&mut span, ((1 << shift) - 1, shift));
            // A fixed block with the literal 'A' (code 0x30 + 65, highest bit first) and its end.
            let code = (0x30u32 + 65).reverse_bits() >> 24;
            writer.put(&mut span, (u128::from(0b010 | (code << 3)), 18));
            let tail = (8 - writer.len) % 8;
            writer.flush(&mut span);
            if tail > 0
                && let Some(last) = span.last_mut()
            {
                *last |= 0xffu8 << (8 - tail);
            }
            let mut stream = Vec::new();
            graft(
                &mut stream,
                &window,
                bits,
                &span,
                u8::try_from(tail).unwrap(),
            );
            let mut out = vec![0; WINDOW + 10];
            let len = libdeflater::Decompressor::new()
                .deflate_decompress(&stream, &mut out)
                .unwrap();
            assert_eq!(len, WINDOW + 1, "bits {bits}");
            assert_eq!(&out[..WINDOW], window);
            assert_eq!(out[WINDOW], b'A');
        }
    }
}
