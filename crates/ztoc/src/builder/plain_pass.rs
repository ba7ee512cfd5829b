//! A pass over an uncompressed layer: scan and hash.

use sha2::{Digest, Sha256};

use super::contents::{Archive, Contents, Receiver};
use super::{BuildError, BuildOptions, Pass, Zinfo};
use crate::plain::Slices;
use crate::span::{Span, SpanDigest};

/// A pass over an uncompressed layer.
pub(super) struct PlainBuild<'a> {
    contents: Contents,
    archive: Receiver<'a>,
    slices: Slices,
    hasher: Sha256,
    /// Whether to hash the bytes; if not, every digest is that of an empty input.
    hash_spans: bool,
    digests: Vec<SpanDigest>,
}

impl<'a> PlainBuild<'a> {
    pub(super) fn new(options: &BuildOptions<'_>, archive: Receiver<'a>) -> Self {
        Self {
            contents: Contents::new(),
            archive,
            slices: Slices::new(options.span_size),
            hasher: Sha256::new(),
            hash_spans: options.hash_spans,
            digests: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let Self {
            slices,
            hasher,
            hash_spans,
            digests,
            ..
        } = self;
        slices.push(bytes, |piece, is_complete| {
            if *hash_spans {
                hasher.update(piece);
            }
            if is_complete {
                digests.push(hasher.finalize_reset().into());
            }
        });
        self.archive.take(bytes);
        self.contents.feed(bytes);
    }

    pub(super) fn finish(mut self) -> Result<(Pass, Zinfo), BuildError> {
        let table = self.slices.table();
        if !table.size.is_multiple_of(table.span_size) {
            self.digests.push(self.hasher.finalize().into());
        }
        let starts = (0u64..).map(|index| index.saturating_mul(table.span_size));
        let span = |(digest, start): (&SpanDigest, u64)| Span {
            compressed: start,
            uncompressed: start,
            bits: 0,
            digest: *digest,
        };
        let spans = self.digests.iter().zip(starts).map(span).collect();
        let (found, end) = self.contents.finish()?;
        let pass = Pass::new(found, end, spans, self.digests, table.size);
        Ok((pass, Zinfo::Plain(table.encode())))
    }
}
