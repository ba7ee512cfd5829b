//! The expected content of every file, computed from a seed, so that the test and its readers do
//! not have to store it.
//!
//! The file list is passed to the readers as lines `KIND SEED SIZE PATH`.

use std::fmt;

use anyhow::{Context, Result, bail};

/// How the content of a file is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Incompressible.
    Noise,
    /// Compressible by a factor of about eight.
    Text,
    /// A shell that can be executed, followed by incompressible bytes.
    Program,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
    pub(crate) size: u64,
    /// Absolute path in the container.
    pub(crate) path: String,
}

impl File {
    /// Fills `out` with the bytes from `offset` on. `shell` is the start of a program.
    pub(crate) fn fill(&self, shell: &[u8], offset: u64, out: &mut [u8]) {
        match self.kind {
            Kind::Noise => fill(self.seed, 0, offset, out),
            Kind::Text => fill(self.seed, 6, offset, out),
            Kind::Program => {
                let head = shell
                    .get(usize::try_from(offset).expect("an address")..)
                    .unwrap_or_default();
                let length = head.len().min(out.len());
                let (front, back) = out.split_at_mut(length);
                front.copy_from_slice(&head[..length]);
                fill(self.seed, 0, offset + length as u64, back);
            }
        }
    }

    /// The complete content.
    pub(crate) fn bytes(&self, shell: &[u8]) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(self.size).expect("an address")];
        self.fill(shell, 0, &mut all);
        all
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Noise => "noise",
            Kind::Text => "text",
            Kind::Program => "program",
        };
        write!(f, "{kind} {} {} {}", self.seed, self.size, self.path)
    }
}

/// Parses a file list.
pub(crate) fn parse(list: &str) -> Result<Vec<File>> {
    list.lines().map(line).collect()
}

fn line(line: &str) -> Result<File> {
    let words: Vec<&str> = line.split(' ').collect();
    let [kind, seed, size, path] = words[..] else {
        bail!("not a line of a file list: {line}");
    };
    let kind = match kind {
        "noise" => Kind::Noise,
        "text" => Kind::Text,
        "program" => Kind::Program,
        other => bail!("unknown kind of file: {other}"),
    };
    Ok(File {
        kind,
        seed: seed.parse().context("a seed")?,
        size: size.parse().context("a size")?,
        path: path.to_owned(),
    })
}

/// Word `i` of the stream of a seed: SplitMix64, which allows random access.
pub(crate) fn word(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bytes of a stream from `offset` on, with each word repeated 2^`repeated` times.
fn fill(seed: u64, repeated: u32, offset: u64, out: &mut [u8]) {
    let mut at = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let bytes = word(seed, (at / 8) >> repeated).to_le_bytes();
        let skip = usize::try_from(at % 8).expect("less than 8");
        let length = (8 - skip).min(rest.len());
        rest[..length].copy_from_slice(&bytes[skip..skip + length]);
        rest = &mut rest[length..];
        at += length as u64;
    }
}

/// Pseudo-random numbers, the same for the same seed.
#[derive(Debug)]
pub(crate) struct Dice {
    seed: u64,
    thrown: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, thrown: 0 }
    }

    /// A number in `from..to`.
    pub(crate) fn throw(&mut self, from: u64, to: u64) -> u64 {
        self.thrown += 1;
        from + word(self.seed, self.thrown) % (to - from)
    }
}
