//! Decompresses a gzip layer and builds its zTOC in the same pass.
//!
//! The caller gets the archive whatever becomes of the zTOC. Only a damaged stream is an error of the
//! decompression.

use super::contents::Archive;
use super::gzip_pass::{GzipBuild, GzipSink};
use super::{BuildError, BuildOptions, BuiltZtoc, DEFAULT_SPAN_SIZE};
use crate::checkpoint::Compression;
use crate::gzip::GzipError;
use crate::gzip::walk::{Mark, WalkSink};

/// Decompresses a gzip layer like [`LayerDecoder`](crate::LayerDecoder), and builds its zTOC with the
/// default options in passing. The span digests are those of the bytes that were decompressed.
pub struct LayerIndexer {
    build: GzipBuild<Pending>,
    /// The decoder may have more output without more input.
    has_more: bool,
    /// Why there will be no zTOC.
    failed: Option<BuildError>,
}

impl std::fmt::Debug for LayerIndexer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerIndexer")
            .field("consumed", &self.build.walk.consumed())
            .finish_non_exhaustive()
    }
}

/// Bytes of the archive that the caller has not taken: at most the output of one step.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    taken: usize,
}

impl Archive for Pending {
    fn take(&mut self, bytes: &[u8]) {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }
}

impl Pending {
    /// Moves bytes to `out`. Returns how many.
    fn give(&mut self, out: &mut [u8]) -> usize {
        let left = self.bytes.get(self.taken..).unwrap_or_default();
        let count = left.len().min(out.len());
        let (left, _) = left.split_at(count);
        let (out, _) = out.split_at_mut(count);
        out.copy_from_slice(left);
        self.taken += count;
        count
    }
}

/// Passes everything on. A checkpoint that cannot be kept ends the zTOC, not the pass.
struct Lenient<'a> {
    sink: &'a mut GzipSink<Pending>,
    failed: &'a mut Option<BuildError>,
    foreign: Option<u64>,
}

impl WalkSink for Lenient<'_> {
    type Error = GzipError;

    fn output(&mut self, bytes: &[u8]) -> Result<(), GzipError> {
        if let Err(error) = self.sink.output(bytes) {
            self.failed.get_or_insert(error);
        }
        Ok(())
    }

    fn checkpoint(&mut self, mark: Mark<'_>) -> Result<(), GzipError> {
        if self.failed.is_none() {
            *self.failed = self.sink.checkpoint(mark).err();
        }
        Ok(())
    }

    fn foreign_member(&mut self, at: u64) {
        self.foreign = Some(at);
    }
}

impl LayerIndexer {
    /// Starts a stream.
    ///
    /// # Errors
    /// [`GzipError::Memory`] if there is no memory for the decoder.
    pub fn new() -> Result<Self, GzipError> {
        Ok(Self {
            build: GzipBuild::new(&BuildOptions::default(), Pending::default())?,
            has_more: false,
            failed: None,
        })
    }

    /// Fills `out` from `input`, as [`LayerDecoder::fill`](crate::LayerDecoder::fill) does.
    ///
    /// # Errors
    /// [`GzipError`] if the stream is damaged; the value cannot be used afterwards.
    pub fn fill(&mut self, input: &mut &[u8], out: &mut [u8]) -> Result<usize, GzipError> {
        let mut filled = 0;
        loop {
            let room = out.get_mut(filled..).unwrap_or_default();
            filled += self.build.sink.archive.give(room);
            let has_work = self.has_more || !input.is_empty();
            if filled == out.len() || !has_work {
                return Ok(filled);
            }
            self.advance(input)?;
        }
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<(), GzipError> {
        let GzipBuild { walk, sink, hasher } = &mut self.build;
        let failed = &mut self.failed;
        let mut lenient = Lenient {
            sink,
            failed,
            foreign: None,
        };
        let (taken, has_more) = walk.advance_once(input, &mut lenient)?;
        if let Some(offset) = lenient.foreign {
            return Err(GzipError::Data { offset });
        }
        let (consumed, rest) = input.split_at(taken.min(input.len()));
        hasher.hash(consumed, sink.starts(walk.consumed()));
        *input = rest;
        self.has_more = has_more;
        Ok(())
    }

    /// Ends the stream. Returns the zTOC, or why the layer has none.
    ///
    /// # Errors
    /// [`GzipError`] if the stream ends inside a member or before the first.
    pub fn finish(self) -> Result<Result<BuiltZtoc, BuildError>, GzipError> {
        let span_size = i64::try_from(DEFAULT_SPAN_SIZE).unwrap_or(i64::MAX);
        let (pass, zinfo) = match self.build.finish(span_size) {
            Ok(built) => built,
            Err(BuildError::Gzip(error)) => return Err(error),
            Err(error) => return Ok(Err(self.failed.unwrap_or(error))),
        };
        Ok(match self.failed {
            Some(error) => Err(error),
            None => Ok(BuiltZtoc {
                tool: BuildOptions::default().tool.to_owned(),
                compression: Compression::Gzip,
                pass,
                zinfo,
            }),
        })
    }
}
