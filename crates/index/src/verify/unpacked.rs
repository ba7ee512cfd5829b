//! The digest of an unpacked layer, for comparison with the diff-IDs of configurations.
//!
//! [`ArchiveHash`] hashes an archive that a builder decompresses. [`Unpacked`] also decompresses,
//! for a layer without a zTOC. Both work on a thread of their own if there is one, so that the layer
//! is read once and the reader does not wait. A bounded queue makes the reader wait if it is faster.

use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use soci_oci::Digest;
use soci_oci::digest::Verifier;
use soci_oci::media_type::{LayerCompression, layer_compression};
use soci_ztoc::{Compression, GzipError, LayerInflate};

use crate::builder::is_encrypted;

/// Number of pieces in the queue, and bytes of a piece.
const QUEUED: usize = 16;
const PIECE: usize = 256 << 10;

/// Bytes that tell gzip from tar.
const SNIFFED: usize = 3;

/// Whether layers of this type can be unpacked here.
pub(super) fn can_unpack(media_type: &str) -> bool {
    use LayerCompression::{Gzip, Uncompressed, Unknown};
    let compression = layer_compression(media_type);
    matches!(compression, Ok(Gzip | Uncompressed | Unknown)) && !is_encrypted(media_type)
}

/// A thread that receives bytes and returns a result.
pub(super) struct Worker<T> {
    /// `None` after the thread has ended early.
    pieces: Option<SyncSender<Vec<u8>>>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(work: impl FnOnce(Receiver<Vec<u8>>) -> T + Send + 'static) -> io::Result<Self> {
        let (pieces, queue) = sync_channel(QUEUED);
        let thread = thread::Builder::new().name("unpack".to_owned());
        Ok(Self {
            pieces: Some(pieces),
            thread: thread.spawn(move || work(queue))?,
        })
    }

    fn update(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE) {
            let is_lost = |pieces: &SyncSender<Vec<u8>>| pieces.send(piece.to_vec()).is_err();
            if self.pieces.as_ref().is_some_and(is_lost) {
                self.pieces = None;
            }
        }
    }

    fn finish(self) -> T {
        drop(self.pieces);
        let done = self.thread.join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// The digest of an archive. Takes the bytes of the archive.
pub(super) struct ArchiveHash {
    expected: Digest,
    hash: Hash,
}

enum Hash {
    Here(Box<Verifier>),
    Apart(Worker<Digest>),
}

impl ArchiveHash {
    /// The digest has the algorithm of `expected`. With one thread, or if no thread can be started,
    /// the caller's thread hashes.
    pub(super) fn start(expected: Digest, threads: NonZeroUsize) -> Self {
        let work = move |pieces: Receiver<Vec<u8>>| {
            let mut hash = Verifier::new(expected);
            pieces.iter().for_each(|piece| hash.update(&piece));
            actual(hash, expected)
        };
        let worker = (threads > NonZeroUsize::MIN).then(|| Worker::start(work));
        let hash = match worker.and_then(or_here) {
            Some(worker) => Hash::Apart(worker),
            None => Hash::Here(Box::new(Verifier::new(expected))),
        };
        Self { expected, hash }
    }

    /// Takes the next bytes of the archive.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.hash {
            Hash::Here(hash) => hash.update(bytes),
            Hash::Apart(worker) => worker.update(bytes),
        }
    }

    /// Returns the digest of all bytes.
    pub(super) fn finish(self) -> Digest {
        match self.hash {
            Hash::Here(hash) => actual(*hash, self.expected),
            Hash::Apart(worker) => worker.finish(),
        }
    }
}

/// The digest of an archive. Takes the bytes of a layer and decompresses them, if possible on a
/// thread of its own.
pub(super) enum Unpacked {
    Here(Result<Box<Inflating>, GzipError>),
    Apart(Worker<Result<Digest, GzipError>>),
}

impl Unpacked {
    /// The digest has the algorithm of `expected`.
    pub(super) fn start(expected: Digest) -> Self {
        let worker = Worker::start(move |pieces| {
            let mut inflating = Inflating::new(expected);
            for piece in pieces {
                inflating.push(&piece)?;
            }
            inflating.finish()
        });
        or_here(worker).map_or_else(|| Self::here(expected), Self::Apart)
    }

    fn here(expected: Digest) -> Self {
        Self::Here(Ok(Box::new(Inflating::new(expected))))
    }

    /// Takes the next bytes of the layer.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Here(state) => {
                if let Ok(inflating) = state
                    && let Err(error) = inflating.push(bytes)
                {
                    *state = Err(error);
                }
            }
            Self::Apart(worker) => worker.update(bytes),
        }
    }

    /// Returns the digest of the unpacked layer.
    pub(super) fn finish(self) -> Result<Digest, GzipError> {
        match self {
            Self::Here(state) => state?.finish(),
            Self::Apart(worker) => worker.finish(),
        }
    }
}

/// A layer that is decompressed and hashed as it arrives.
pub(super) struct Inflating {
    expected: Digest,
    hash: Verifier,
    /// The first bytes, until there are enough of them to tell the compression.
    start: Vec<u8>,
    inflate: Option<LayerInflate>,
}

impl Inflating {
    fn new(expected: Digest) -> Self {
        Self {
            expected,
            hash: Verifier::new(expected),
            start: Vec::new(),
            inflate: None,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), GzipError> {
        if let Some(inflate) = &mut self.inflate {
            return inflate.push(bytes, |bytes| self.hash.update(bytes));
        }
        self.start.extend(bytes);
        if self.start.len() >= SNIFFED {
            self.inflate = Some(self.begin()?);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<LayerInflate, GzipError> {
        let start = std::mem::take(&mut self.start);
        let mut inflate = LayerInflate::new(Compression::sniff(&start))?;
        inflate.push(&start, |bytes| self.hash.update(bytes))?;
        Ok(inflate)
    }

    fn finish(mut self) -> Result<Digest, GzipError> {
        let inflate = match self.inflate.take() {
            Some(inflate) => inflate,
            None => self.begin()?,
        };
        inflate.finish()?;
        Ok(actual(self.hash, self.expected))
    }
}

/// The worker, or `None` if the system has no thread for it.
fn or_here<T>(worker: io::Result<Worker<T>>) -> Option<Worker<T>> {
    worker
        .inspect_err(|error| tracing::debug!(%error, "no thread for a hash"))
        .ok()
}

fn actual(hash: Verifier, expected: Digest) -> Digest {
    match hash.finish() {
        Ok(()) => expected,
        Err(mismatch) => *mismatch.actual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// gzip of `hello`, without compression.
    const HELLO: &[u8] =
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01\x05\0\xfa\xffhello\x86\xa6\x10\x36\x05\0\0\0";

    /// The result on a thread, which must be the same without one.
    fn unpacked(pieces: &[&[u8]]) -> Result<Digest, GzipError> {
        let expected = Digest::sha256(b"");
        let [apart, here] = [Unpacked::start(expected), Unpacked::here(expected)].map(|mut it| {
            pieces.iter().for_each(|piece| it.update(piece));
            it.finish()
        });
        assert_eq!(apart, here);
        apart
    }

    #[test]
    fn the_digest_is_that_of_the_uncompressed_bytes_however_they_are_cut() {
        let hello = Ok(Digest::sha256(b"hello"));
        let single: Vec<&[u8]> = HELLO.chunks(1).collect();
        assert_eq!(unpacked(&single), hello);
        assert_eq!(unpacked(&[HELLO]), hello);
        let twice = [HELLO, HELLO].concat();
        assert_eq!(unpacked(&[&twice]), Ok(Digest::sha256(b"hellohello")));
        assert_eq!(unpacked(&[b"he", b"llo"]), hello);
        assert_eq!(unpacked(&[]), Ok(Digest::sha256(b"")));
    }

    #[test]
    fn an_archive_has_the_same_digest_on_any_number_of_threads() {
        let archive = vec![7; 3 * PIECE + 1];
        for threads in [1, 4].into_iter().filter_map(NonZeroUsize::new) {
            let mut hash = ArchiveHash::start(Digest::sha256(b""), threads);
            let (start, rest) = archive.split_at(5);
            hash.update(start);
            hash.update(rest);
            assert_eq!(hash.finish(), Digest::sha256(&archive), "{threads}");
        }
    }

    #[test]
    fn damaged_layers_end_the_thread_and_not_the_reader() {
        let damaged = [&HELLO[..10], &[0xff; 5_000_000]].concat();
        let pieces: Vec<&[u8]> = damaged.chunks(100_000).collect();
        assert!(unpacked(&pieces).is_err());
        assert!(unpacked(&[&HELLO[..20]]).is_err());
    }
}
