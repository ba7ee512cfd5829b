//! A pass over a gzip layer: walk, scan and hash.

use std::io::Write;

use tempfile::SpooledTempFile;

use super::contents::{Archive, Contents};
use super::span_hash::{SpanHasher, SpanStart};
use super::{BuildError, BuildOptions, MAX_CHECKPOINTS, Pass, SPOOL_SIZE, Zinfo};
use crate::gzip::GzipError;
use crate::gzip::walk::{Mark, Walk, WalkSink};
use crate::span::Span;
use crate::zinfo::{self, RECORD_SIZE};

/// A pass over a gzip layer.
pub(super) struct GzipBuild<A> {
    pub(super) walk: Walk,
    pub(super) sink: GzipSink<A>,
    pub(super) hasher: SpanHasher,
}

/// Receives the results of the walk.
pub(super) struct GzipSink<A> {
    contents: Contents,
    pub(super) archive: A,
    records: SpooledTempFile,
    /// The starts of the spans; `digest` is filled in at the end.
    spans: Vec<Span>,
    /// Index of the first span that has not been passed to the hasher.
    unhashed: usize,
}

impl<A: Archive> WalkSink for GzipSink<A> {
    type Error = BuildError;

    fn output(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.archive.take(bytes);
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

    fn foreign_member(&mut self, at: u64) {
        self.contents.refuse_foreign(at);
    }
}

impl<A> GzipSink<A> {
    /// The spans that begin at or before `end` and have not been returned yet.
    pub(super) fn starts(&mut self, end: u64) -> impl Iterator<Item = SpanStart> + use<'_, A> {
        let new = self.spans.get(self.unhashed..).unwrap_or_default();
        let count = new.partition_point(|span| span.compressed <= end);
        self.unhashed += count;
        new.iter().take(count).map(|span| SpanStart {
            compressed: span.compressed,
            bits: span.bits,
        })
    }
}

impl<A: Archive> GzipBuild<A> {
    pub(super) fn new(options: &BuildOptions<'_>, archive: A) -> Result<Self, GzipError> {
        Ok(Self {
            walk: Walk::new(options.span_size)?,
            sink: GzipSink {
                contents: Contents::new(),
                archive,
                records: SpooledTempFile::new(SPOOL_SIZE),
                spans: Vec::new(),
                unhashed: 0,
            },
            hasher: SpanHasher::new(options.hash_spans),
        })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.walk.push(bytes, &mut self.sink)?;
        self.hasher
            .hash(bytes, self.sink.starts(self.walk.consumed()));
        Ok(())
    }

    pub(super) fn finish(self, span_size: i64) -> Result<(Pass, Zinfo), BuildError> {
        let layer_size = self.walk.consumed();
        self.walk.finish()?;
        let digests = self.hasher.finish();
        let GzipSink {
            contents,
            records,
            mut spans,
            ..
        } = self.sink;
        for (span, digest) in spans.iter_mut().zip(&digests) {
            span.digest = *digest;
        }
        let (found, end) = contents.finish()?;
        let count = i32::try_from(spans.len()).map_err(|_| BuildError::TooManyCheckpoints)?;
        let zinfo = Zinfo::Gzip {
            header: zinfo::gzip_header(count, span_size),
            records,
            len: spans.len() as u64 * RECORD_SIZE as u64,
        };
        Ok((Pass::new(found, end, spans, digests, layer_size), zinfo))
    }
}
