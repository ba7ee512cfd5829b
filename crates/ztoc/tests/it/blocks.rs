//! An independent parser of deflate blocks, bit by bit, that determines where checkpoints belong.
//! It shares no code with the crate and implements the rule of the specification, not inflation.

/// A point where decoding can start: absolute bit position, and the output before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) bit: u64,
    pub(crate) out: u64,
}

/// The checkpoints that the rule selects: compressed offset, uncompressed offset, and bits.
pub(crate) fn checkpoints(layer: &[u8], span_size: u64) -> Vec<(u64, u64, u8)> {
    let mut last = 0;
    let mut marks = Vec::new();
    for Candidate { bit, out } in candidates(layer) {
        if out == 0 || out - last > span_size {
            marks.push((bit.div_ceil(8), out, (bit.div_ceil(8) * 8 - bit) as u8));
            last = out;
        }
    }
    marks
}

fn candidates(layer: &[u8]) -> Vec<Candidate> {
    let mut bits = Bits {
        bytes: layer,
        at: 0,
    };
    let mut out = 0;
    let mut found = Vec::new();
    while bits.at < layer.len() as u64 * 8 {
        skip_header(&mut bits);
        found.push(Candidate { bit: bits.at, out });
        loop {
            let is_last = bits.take(1) == 1;
            match bits.take(2) {
                0 => {
                    bits.align();
                    let len = bits.take(16);
                    assert_eq!(bits.take(16), !len & 0xffff);
                    bits.at += 8 * u64::from(len);
                    out += u64::from(len);
                }
                1 => out += fixed(&mut bits),
                2 => out += dynamic(&mut bits),
                _ => panic!("reserved block type"),
            }
            if is_last {
                break;
            }
            found.push(Candidate { bit: bits.at, out });
        }
        bits.align();
        bits.at += 64;
    }
    found
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> u32 {
        (0..count).fold(0, |value, i| {
            let byte = self.bytes[(self.at / 8) as usize];
            let bit = u32::from(byte >> (self.at % 8) & 1);
            self.at += 1;
            value | bit << i
        })
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }
}

fn skip_header(bits: &mut Bits<'_>) {
    assert_eq!(bits.take(24), 0x08_8b1f);
    let flags = bits.take(8);
    bits.at += 48;
    if flags & 4 != 0 {
        let len = bits.take(16);
        bits.at += 8 * u64::from(len);
    }
    for _ in 0..(flags >> 3 & 1) + (flags >> 4 & 1) {
        while bits.take(8) != 0 {}
    }
    if flags & 2 != 0 {
        bits.at += 16;
    }
}

/// A canonical Huffman code: the number of codes of each length, and the symbols in code order.
struct Code {
    counts: [u32; 16],
    symbols: Vec<u32>,
}

impl Code {
    fn new(lengths: &[u32]) -> Self {
        let mut counts = [0; 16];
        for &len in lengths {
            counts[len as usize] += 1;
        }
        counts[0] = 0;
        let mut symbols: Vec<u32> = (0..lengths.len() as u32)
            .filter(|&s| lengths[s as usize] > 0)
            .collect();
        symbols.sort_by_key(|&s| (lengths[s as usize], s));
        Self { counts, symbols }
    }

    fn read(&self, bits: &mut Bits<'_>) -> u32 {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for len in 1..16 {
            code |= bits.take(1);
            let count = self.counts[len];
            if code < first + count {
                return self.symbols[(index + code - first) as usize];
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        panic!("no such code");
    }
}

const LENGTH_BASE: [u32; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
const LENGTH_EXTRA: [u32; 29] = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];

/// The length of a block's output, up to and including its end symbol.
fn symbols(bits: &mut Bits<'_>, literals: &Code, distances: &Code) -> u64 {
    let mut out = 0;
    loop {
        match literals.read(bits) {
            256 => return out,
            symbol @ 0..256 => out += u64::from(symbol < 256),
            symbol => {
                let index = (symbol - 257) as usize;
                out += u64::from(LENGTH_BASE[index] + bits.take(LENGTH_EXTRA[index]));
                let distance = distances.read(bits);
                bits.take(distance.saturating_sub(2) / 2);
            }
        }
    }
}

fn fixed(bits: &mut Bits<'_>) -> u64 {
    let lengths: Vec<u32> = (0..288)
        .map(|symbol| match symbol {
            0..144 => 8,
            144..256 => 9,
            256..280 => 7,
            _ => 8,
        })
        .collect();
    symbols(bits, &Code::new(&lengths), &Code::new(&[5; 30]))
}

fn dynamic(bits: &mut Bits<'_>) -> u64 {
    const ORDER: [usize; 19] = [
        16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
    ];
    let literals = bits.take(5) as usize + 257;
    let distances = bits.take(5) as usize + 1;
    let count = bits.take(4) as usize + 4;
    let mut lengths = [0; 19];
    for &symbol in &ORDER[..count] {
        lengths[symbol] = bits.take(3);
    }
    let code = Code::new(&lengths);
    let mut lengths: Vec<u32> = Vec::new();
    while lengths.len() < literals + distances {
        let (value, times) = match code.read(bits) {
            16 => (*lengths.last().unwrap(), 3 + bits.take(2)),
            17 => (0, 3 + bits.take(3)),
            18 => (0, 11 + bits.take(7)),
            len => (len, 1),
        };
        lengths.extend(std::iter::repeat_n(value, times as usize));
    }
    symbols(
        bits,
        &Code::new(&lengths[..literals]),
        &Code::new(&lengths[literals..]),
    )
}
