//! The state and counters of a reader, in a file that the test reads while the reader runs.
//!
//! Each thread of a reader has a slot and writes it before and after every operation, so that the
//! test sees operations that do not end. Times are in milliseconds since 1970, because readers and
//! test have no other common clock.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Size of a slot in bytes.
const SIZE: usize = 96;

/// Counters of one thread, or of many together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    /// When the current operation began; 0 between operations.
    pub(crate) began: u64,
    /// The operand of the current operation: index of the file in the list, and offset.
    pub(crate) file: u64,
    pub(crate) offset: u64,
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
    pub(crate) failed: u64,
    pub(crate) wrong: u64,
    /// Reads that were repeated because a daemon without a keeper was restarted.
    pub(crate) again: u64,
    /// Reads of bytes that had been read before.
    pub(crate) present: u64,
    /// The slowest read of present bytes, and the slowest of all, in microseconds.
    pub(crate) slowest_present: u64,
    pub(crate) slowest: u64,
    /// Number of programs that were started.
    pub(crate) programs: u64,
}

impl Slot {
    fn words(&self) -> [u64; SIZE / 8] {
        [
            self.began,
            self.file,
            self.offset,
            self.reads,
            self.bytes,
            self.failed,
            self.wrong,
            self.again,
            self.present,
            self.slowest_present,
            self.slowest,
            self.programs,
        ]
    }

    fn from_words(words: [u64; SIZE / 8]) -> Self {
        let [
            began,
            file,
            offset,
            reads,
            bytes,
            failed,
            wrong,
            again,
            present,
            slowest_present,
            slowest,
            programs,
        ] = words;
        Self {
            began,
            file,
            offset,
            reads,
            bytes,
            failed,
            wrong,
            again,
            present,
            slowest_present,
            slowest,
            programs,
        }
    }

    pub(crate) fn write(&self, to: &File, place: u64) -> io::Result<()> {
        let bytes: Vec<u8> = self
            .words()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        to.write_all_at(&bytes, place * SIZE as u64)
    }

    /// All slots that have been written to the file.
    pub(crate) fn read_all(from: &[u8]) -> Vec<Self> {
        from.chunks_exact(SIZE)
            .map(|bytes| {
                let mut words = [0; SIZE / 8];
                for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                    *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                }
                Self::from_words(words)
            })
            .collect()
    }

    /// Adds the counters of another slot.
    pub(crate) fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.wrong += other.wrong;
        self.again += other.again;
        self.present += other.present;
        self.programs += other.programs;
        self.slowest_present = self.slowest_present.max(other.slowest_present);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
