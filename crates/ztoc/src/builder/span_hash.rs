//! Digests of spans, from the layer's bytes in order.

use sha2::{Digest, Sha256};

use crate::span::SpanDigest;

/// Where a span begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpanStart {
    /// Offset of its first whole byte.
    pub(super) compressed: u64,
    /// Bits of the byte before that are its own too.
    pub(super) bits: u8,
}

/// Hashes spans one after the other. Bytes before the first belong to none.
#[derive(Debug)]
pub(super) struct SpanHasher {
    hasher: Sha256,
    /// Whether bytes are hashed; if not, every digest is that of nothing.
    hash_spans: bool,
    /// Whether the first span has begun.
    is_hashing: bool,
    digests: Vec<SpanDigest>,
    /// Bytes hashed or left out so far, and the last of them.
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

    /// Hashes bytes that were walked through, cut where spans begin in them or at their end. A span that
    /// begins inside a byte takes that byte too, which the span before it has had.
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

    /// The digests; the last span ends here.
    pub(super) fn finish(mut self) -> Vec<SpanDigest> {
        self.digests.push(self.hasher.finalize().into());
        self.digests
    }
}
