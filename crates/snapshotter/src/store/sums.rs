//! A checksum of each stored span, computed over its decompressed bytes when they are written.
//!
//! The digests in the zTOC cover compressed bytes, which are not kept, so `data` and `heads` cannot
//! be compared with them. The file `sums` has one record per span: a checksum of its range of the
//! tar, or zeros if unknown. It detects disk errors, not attacks: anyone who can write `data` can also
//! write `sums`. It therefore uses XXH3, which is twenty times as fast as SHA-256. Layers of
//! earlier versions keep using the first half of a SHA-256.
//!
//! Durable bytes have a durable record. A wrong record only costs a second download, so the file
//! needs no seal.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, path::Path};

use sha2::{Digest as _, Sha256};
use twox_hash::xxhash3_128;

/// Format and version.
const MAGIC: &[u8; 8] = b"socism\x00\x02";
const MAGIC_SHA256: &[u8; 8] = b"socism\x00\x01";
/// Magic, number of spans, reserved.
const HEADER: u64 = 64;

/// Checksum of the bytes of one span.
pub type Sum = [u8; 16];

/// The checksum algorithm of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Xxh3,
    Sha256,
}

/// A checksum of bytes that arrive in pieces.
pub enum Summing {
    /// The algorithm of this version.
    Xxh3(Box<xxhash3_128::Hasher>),
    /// The algorithm for layers of earlier versions.
    Sha256(Sha256),
}

impl fmt::Debug for Summing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Summing")
    }
}

impl Summing {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Summing::Xxh3(hash) => hash.write(bytes),
            Summing::Sha256(hash) => hash.update(bytes),
        }
    }

    /// The checksum of all bytes.
    pub fn finish(self) -> Sum {
        match self {
            Summing::Xxh3(hash) => hash.finish_128().to_le_bytes(),
            Summing::Sha256(hash) => half(hash),
        }
    }
}

fn half(hash: Sha256) -> Sum {
    let mut sum = Sum::default();
    for (to, from) in sum.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    sum
}

/// The checksums of one layer.
#[derive(Debug)]
pub struct Sums {
    file: File,
    kind: Kind,
}

impl Sums {
    /// Opens the checksums of a layer of `spans` spans, or creates an empty file.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, spans: usize) -> io::Result<Sums> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        let size = HEADER + spans as u64 * size_of::<Sum>() as u64;
        let head = |magic: &[u8; 8]| {
            let mut head = [0; 16];
            head[..8].copy_from_slice(magic);
            head[8..].copy_from_slice(&(spans as u64).to_le_bytes());
            head
        };
        let mut found = [0; 16];
        if file.metadata()?.len() == size && file.read_exact_at(&mut found, 0).is_ok() {
            for (magic, kind) in [(MAGIC, Kind::Xxh3), (MAGIC_SHA256, Kind::Sha256)] {
                if found == head(magic) {
                    return Ok(Sums { file, kind });
                }
            }
        }
        file.set_len(0)?;
        file.set_len(size)?;
        file.write_all_at(&head(MAGIC), 0)?;
        let kind = Kind::Xxh3;
        Ok(Sums { file, kind })
    }

    /// The checksum of a span's range of the tar, with this layer's algorithm.
    pub fn of(&self, bytes: &[u8]) -> Sum {
        match self.kind {
            Kind::Xxh3 => xxhash3_128::Hasher::oneshot(bytes).to_le_bytes(),
            Kind::Sha256 => half(Sha256::new_with_prefix(bytes)),
        }
    }

    /// The same for bytes that arrive in pieces.
    pub fn summing(&self) -> Summing {
        match self.kind {
            Kind::Xxh3 => Summing::Xxh3(Box::new(xxhash3_128::Hasher::new())),
            Kind::Sha256 => Summing::Sha256(Sha256::new()),
        }
    }

    /// Records the checksum of a span.
    ///
    /// # Errors
    /// The system's.
    pub fn set(&self, span: u32, sum: &Sum) -> io::Result<()> {
        self.file.write_all_at(sum, place(span))
    }

    /// The checksum of a span. `None` if it was never recorded.
    ///
    /// # Errors
    /// The system's.
    pub fn get(&self, span: u32) -> io::Result<Option<Sum>> {
        let mut sum = Sum::default();
        self.file.read_exact_at(&mut sum, place(span))?;
        Ok((sum != Sum::default()).then_some(sum))
    }

    /// Makes the recorded checksums survive a power failure.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn place(span: u32) -> u64 {
    HEADER + u64::from(span) * size_of::<Sum>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_sums_are_found_again_in_a_file_of_the_same_format() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("sums");
        let sums = Sums::open(&path, 3).expect("opened");
        let sum = sums.of(b"bytes");
        assert_ne!(sum, sums.of(b"other bytes"));
        sums.set(2, &sum).expect("recorded");
        sums.sync().expect("synced");
        drop(sums);
        let sums = Sums::open(&path, 3).expect("opened");
        assert_eq!(
            [0, 2].map(|span| sums.get(span).expect("readable")),
            [None, Some(sum)]
        );
        assert_eq!(sums.of(b"bytes"), sum);
        sums.get(3).expect_err("outside");
        drop(sums);
        let other = Sums::open(&path, 4).expect("opened");
        assert_eq!(other.get(2).expect("readable"), None);
    }

    #[test]
    fn a_layer_of_an_earlier_version_keeps_its_algorithm() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("sums");
        let mut file = vec![0; 64 + 16];
        file[..8].copy_from_slice(MAGIC_SHA256);
        file[8] = 1;
        // The first half of the SHA-256 of "bytes".
        let sum = [
            0x27, 0x70, 0x89, 0xd9, 0x1c, 0x0b, 0xdf, 0x4f, 0x2e, 0x68, 0x62, 0xba, 0x7e, 0x4a,
            0x07, 0x60,
        ];
        file[64..].copy_from_slice(&sum);
        std::fs::write(&path, file).expect("written");
        let sums = Sums::open(&path, 1).expect("opened");
        assert_eq!(sums.get(0).expect("readable"), Some(sum));
        assert_eq!(sums.of(b"bytes"), sum);
    }

    #[test]
    fn a_sum_of_pieces_equals_the_sum_of_the_whole() {
        let root = tempfile::tempdir().expect("a directory");
        let file = File::create_new(root.path().join("sums")).expect("created");
        for kind in [Kind::Xxh3, Kind::Sha256] {
            let sums = Sums {
                file: file.try_clone().expect("a copy"),
                kind,
            };
            let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
            let mut summing = sums.summing();
            for piece in bytes.chunks(700) {
                summing.update(piece);
            }
            assert_eq!(summing.finish(), sums.of(&bytes));
        }
    }
}
