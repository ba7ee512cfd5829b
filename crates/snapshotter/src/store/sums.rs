//! What each span's bytes in the store must be: a digest of the inflated bytes, written when they are.
//!
//! The zTOC's digests are of compressed bytes, which are not kept, so `data` and `heads` cannot be held against them. The
//! file `sums` has a record for each span, the first half of the SHA-256 of its range of the tar; zeros if there is none.
//! Bytes that are durable have a durable record. A wrong record costs a second fetch, so it needs no seal.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use sha2::{Digest as _, Sha256};

/// Form and version.
const MAGIC: &[u8; 8] = b"socism\x00\x01";
/// Magic, number of spans, reserved.
const HEADER: u64 = 64;

/// Digest of one span's bytes.
pub type Sum = [u8; 16];

/// The digest of a span's range of the tar.
pub fn sum_of(bytes: &[u8]) -> Sum {
    sum_from(Sha256::new_with_prefix(bytes))
}

/// The same for bytes that were hashed as they came.
pub fn sum_from(hash: Sha256) -> Sum {
    let mut sum = Sum::default();
    for (to, from) in sum.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    sum
}

/// The digests of one layer.
#[derive(Debug)]
pub struct Sums(File);

impl Sums {
    /// Opens the digests of a layer of `spans` spans, or begins without any.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, spans: usize) -> io::Result<Sums> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        let size = HEADER + spans as u64 * size_of::<Sum>() as u64;
        let mut head = [0; 16];
        head[..8].copy_from_slice(MAGIC);
        head[8..].copy_from_slice(&(spans as u64).to_le_bytes());
        let mut found = [0; 16];
        let known = file.metadata()?.len() == size
            && file.read_exact_at(&mut found, 0).is_ok()
            && found == head;
        if !known {
            file.set_len(0)?;
            file.set_len(size)?;
            file.write_all_at(&head, 0)?;
        }
        Ok(Sums(file))
    }

    /// Notes what a span's bytes are.
    ///
    /// # Errors
    /// The system's.
    pub fn set(&self, span: u32, sum: &Sum) -> io::Result<()> {
        self.0.write_all_at(sum, place(span))
    }

    /// What a span's bytes must be; `None` if that was never noted.
    ///
    /// # Errors
    /// The system's.
    pub fn get(&self, span: u32) -> io::Result<Option<Sum>> {
        let mut sum = Sum::default();
        self.0.read_exact_at(&mut sum, place(span))?;
        Ok((sum != Sum::default()).then_some(sum))
    }

    /// Makes what was noted survive a power failure.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

fn place(span: u32) -> u64 {
    HEADER + u64::from(span) * size_of::<Sum>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_found_again_in_a_file_of_this_shape() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("sums");
        let sums = Sums::open(&path, 3).expect("opened");
        let sum = sum_of(b"bytes");
        assert_ne!(sum, sum_of(b"other bytes"));
        sums.set(2, &sum).expect("noted");
        sums.sync().expect("synced");
        drop(sums);
        let sums = Sums::open(&path, 3).expect("opened");
        assert_eq!(
            [0, 2].map(|span| sums.get(span).expect("readable")),
            [None, Some(sum)]
        );
        sums.get(3).expect_err("outside");
        drop(sums);
        let other = Sums::open(&path, 4).expect("opened");
        assert_eq!(other.get(2).expect("readable"), None);
    }
}
