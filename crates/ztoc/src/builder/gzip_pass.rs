//! A pass over a gzip layer: walk, scan, hash.

use std::io::Write;

use sha2::{Digest, Sha256};
use tempfile::SpooledTempFile;

use super::contents::Contents;
use super::{BuildError, MAX_CHECKPOINTS, Pass, SPOOL_SIZE, Zinfo};
use crate::gzip::walk::{Mark, Walk, WalkSink};
use crate::span::{Span, SpanDigest};
use crate::zinfo::{self, RECORD_SIZE};

/// A pass over a gzip layer.
pub(super) struct GzipBuild {
    walk: Walk,
    sink: GzipSink,
    hasher: Sha256,
    /// Whether the first span has begun: the bytes before it belong to none.
    is_hashing: bool,
    digests: Vec<SpanDigest>,
    /// Compressed bytes hashed or left out so far, and the last of them.
    passed: u64,
    last_byte: u8,
}

struct GzipSink {
    contents: Contents,
    records: SpooledTempFile,
    /// Where spans begin; `digest` is filled in at the end.
    spans: Vec<Span>,
    /// Spans whose start has not been used for hashing yet begin here.
    unhashed: usize,
}

impl WalkSink for GzipSink {
    type Error = BuildError;

    fn output(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.contents.feed(bytes);
        Ok(())
    }

    fn checkpoint(&mut self, mark: Mark<'_>) -> Result<(), BuildError> {
        if self.spans.len() == MAX_CHECKPOINTS {
            return Err(BuildError::TooManyCheckpoints);
        }
        let start = zinfo::gzip_record_start(mark.compressed, mark.uncompressed, mark.bits);
        self.records.write_all(&start).map_err(BuildError::Spool)?;
        self.records
            .write_all(mark.window)
            .map_err(BuildError::Spool)?;
        self.spans.push(Span {
            compressed: mark.compressed,
            uncompressed: mark.uncompressed,
            bits: mark.bits,
            digest: [0; 32],
        });
        Ok(())
    }

    fn foreign_member(&mut self) {
        self.contents.refuse_foreign();
    }
}

impl GzipBuild {
    pub(super) fn new(span_size: u64) -> Result<Self, BuildError> {
        let sink = GzipSink {
            contents: Contents::new(),
            records: SpooledTempFile::new(SPOOL_SIZE),
            spans: Vec::new(),
            unhashed: 0,
        };
        Ok(Self {
            walk: Walk::new(span_size)?,
            sink,
            hasher: Sha256::new(),
            is_hashing: false,
            digests: Vec::new(),
            passed: 0,
            last_byte: 0,
        })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.walk.push(bytes, &mut self.sink)?;
        self.hash(bytes);
        Ok(())
    }

    /// Hashes bytes that were walked through, cut where spans begin. A span that begins inside a byte
    /// takes that byte too, which the span before it has had.
    fn hash(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        for span in &self.sink.spans[self.sink.unhashed..] {
            // A checkpoint lies in the bytes in which it was found, or at their end.
            let before =
                usize::try_from(span.compressed.saturating_sub(self.passed)).unwrap_or(usize::MAX);
            let (mine, next) = rest.split_at(before.min(rest.len()));
            rest = next;
            if let Some(&last) = mine.last() {
                self.last_byte = last;
            }
            self.passed += mine.len() as u64;
            if self.is_hashing {
                self.hasher.update(mine);
                self.digests.push(self.hasher.finalize_reset().into());
            }
            self.is_hashing = true;
            if span.bits != 0 {
                self.hasher.update([self.last_byte]);
            }
        }
        self.sink.unhashed = self.sink.spans.len();
        if self.is_hashing {
            self.hasher.update(rest);
        }
        if let Some(&last) = rest.last() {
            self.last_byte = last;
        }
        self.passed += rest.len() as u64;
    }

    pub(super) fn finish(mut self, span_size: i64) -> Result<(Pass, Zinfo), BuildError> {
        let layer_size = self.walk.consumed();
        self.walk.finish()?;
        self.digests.push(self.hasher.finalize().into());
        let GzipSink {
            contents,
            records,
            mut spans,
            ..
        } = self.sink;
        for (span, digest) in spans.iter_mut().zip(&self.digests) {
            span.digest = *digest;
        }
        let (found, end) = contents.finish()?;
        let count = i32::try_from(spans.len()).map_err(|_| BuildError::TooManyCheckpoints)?;
        let zinfo = Zinfo::Gzip {
            header: zinfo::gzip_header(count, span_size),
            records,
            len: spans.len() as u64 * RECORD_SIZE as u64,
        };
        Ok((
            Pass::new(found, end, spans, self.digests, layer_size),
            zinfo,
        ))
    }
}
