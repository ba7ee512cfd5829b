//! Computes the digests of spans from the layer's bytes, in order.

use sha2::{Digest, Sha256};

use crate::span::SpanDigest;

/// The start of a span.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpanStart {
    /// Offset of its first whole byte.
    pub(super) compressed: u64,
    /// Number of bits of the byte before that belong to the span.
    pub(super) bits: u8,
}

/// Hashes consecutive spans. Bytes before the first span belong to none.
#[derive(Debug)]
pub(super) struct SpanHasher {
    hasher: Sha256,
    /// Whether to hash the bytes; if not, every digest is that of an empty input.
    hash_spans: bool,
    /// Whether the first span has begun.
    is_hashing: bool,
    digests: Vec<SpanDigest>,
    /// Bytes seen so far, hashed or not, and the last of them.
    passed: u64,
    last_byte: u8,
}

impl SpanHasher {
    pub(super) fn new(hash_spans: bool) -> Self {
        Self {
            hasher: Sha256::new(),
            hash_spans,
            is_hashing: false,
            digests: Vec::new(),
            passed: 0,
            last_byte: 0,
        }
    }

    /// Hashes bytes that were walked, divided at the span starts within them or at their end. A
    /// span that begins inside a byte includes that byte, as does the span before it.
    pub(super) fn hash(&mut self, bytes: &[u8], starts: impl IntoIterator<Item = SpanStart>) {
        let mut rest = bytes;
        for start in starts {
            let before =
                usize::try_from(start.compressed.saturating_sub(self.passed)).unwrap_or(usize::MAX);
            let (mine, next) = rest.split_at(before.min(rest.len()));
            rest = next;
            self.pass(mine);
            if self.is_hashing {
                self.digests.push(self.hasher.finalize_reset().into());
            }
            self.is_hashing = true;
            if start.bits != 0 && self.hash_spans {
                self.hasher.update([self.last_byte]);
            }
        }
        self.pass(rest);
    }

    fn pass(&mut self, bytes: &[u8]) {
        if self.is_hashing && self.hash_spans {
            self.hasher.update(bytes);
        }
        if let Some(&last) = bytes.last() {
            self.last_byte = last;
        }
        self.passed += bytes.len() as u64;
    }

    /// Ends the last span and returns the digests.
    pub(super) fn finish(mut self) -> Vec<SpanDigest> {
        self.digests.push(self.hasher.finalize().into());
        self.digests
    }
}
