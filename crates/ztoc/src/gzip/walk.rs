//! One walk through a gzip layer: every byte of output, every checkpoint, every checksum.
//!
//! A checkpoint can be right behind a member's header and right behind any block but a member's last.
//! One is made where there is no output yet, or where the output since the last one is *larger* than the
//! span size. The decoder is asked to stop at blocks only where that can be true; in between it runs
//! freely up to the first byte of output at which it could become true, so stops cost nothing.
//!
//! History lies in front of the write position, in the same buffer: zlib-rs writes beyond what it
//! reports, which would destroy the oldest history of a circular buffer.

use super::GzipError;
use super::inflate::{At, Failure, Inflate, Stop, Wrapper};
use crate::checkpoint::WINDOW;

/// Room for output behind the history. Large enough that moving 32 KiB per filling does not show,
/// small enough to stay in the second-level cache.
const ROOM: usize = 256 * 1024;

/// Steps without progress after which a decoder is taken to be stuck. A stop at a block boundary moves
/// nothing, so a few are normal.
const MAX_IDLE: u32 = 16;

/// A place where decoding can begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark<'a> {
    /// Compressed offset of the first whole byte.
    pub(crate) compressed: u64,
    /// Uncompressed offset.
    pub(crate) uncompressed: u64,
    /// Unused high bits of the byte before, 0 to 7.
    pub(crate) bits: u8,
    /// The last [`WINDOW`] bytes of output, zeros in front of the stream's start.
    pub(crate) window: &'a [u8],
}

/// Receives what a walk finds.
pub(crate) trait WalkSink {
    type Error: From<GzipError>;
    /// The next bytes of output.
    fn output(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// A checkpoint, behind all output so far.
    fn checkpoint(&mut self, mark: Mark<'_>) -> Result<(), Self::Error>;
    /// A member begins that is not gzip but may be zlib.
    fn foreign_member(&mut self);
}

/// The walk.
#[derive(Debug)]
pub(crate) struct Walk {
    inflate: Inflate,
    span_size: u64,
    /// `WINDOW` bytes of history, then room; output so far ends at `filled`.
    buffer: Box<[u8]>,
    filled: usize,
    consumed: u64,
    /// Output of all members.
    produced: u64,
    /// Output at the last checkpoint.
    marked: u64,
    member: Member,
    idle: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    /// Nothing of it was read.
    Expected,
    Inside,
    /// It ended; another may follow.
    Ended,
}

impl Walk {
    pub(crate) fn new(span_size: u64) -> Result<Self, GzipError> {
        let inflate = Inflate::new(Wrapper::Either).map_err(|_| GzipError::Memory)?;
        Ok(Self {
            inflate,
            span_size,
            buffer: vec![0; WINDOW + ROOM].into(),
            filled: WINDOW,
            consumed: 0,
            produced: 0,
            marked: 0,
            member: Member::Expected,
            idle: 0,
        })
    }

    /// Takes the next compressed bytes.
    pub(crate) fn push<S: WalkSink>(
        &mut self,
        mut input: &[u8],
        sink: &mut S,
    ) -> Result<(), S::Error> {
        let mut has_more = true;
        while has_more || !input.is_empty() {
            if self.member != Member::Inside {
                let Some(&first) = input.first() else { break };
                if self.member == Member::Ended {
                    self.inflate
                        .reset()
                        .map_err(|failure| self.error(failure))?;
                }
                self.member = Member::Inside;
                if first != 0x1f {
                    sink.foreign_member();
                }
            }
            let (taken, more) = self.step(input, sink)?;
            input = input.get(taken..).unwrap_or_default();
            has_more = more;
        }
        Ok(())
    }

    /// One call of the decoder. Returns the input it took, and whether it may have more to do without
    /// further input.
    fn step<S: WalkSink>(&mut self, input: &[u8], sink: &mut S) -> Result<(usize, bool), S::Error> {
        if self.filled == self.buffer.len() {
            self.buffer.copy_within(self.filled - WINDOW.., 0);
            self.filled = WINDOW;
        }
        // The first output at which a checkpoint is due is one byte behind this.
        let free = self
            .marked
            .saturating_add(self.span_size)
            .saturating_sub(self.produced);
        let stop = if self.produced == 0 || free == 0 {
            Stop::Block
        } else {
            Stop::Never
        };
        let room = self.buffer.len() - self.filled;
        let room = match stop {
            Stop::Block => room,
            Stop::Never => usize::try_from(free).map_or(room, |free| free.min(room)),
        };
        let output = &mut self.buffer[self.filled..self.filled + room];
        let step = self
            .inflate
            .step(input, output, stop)
            .map_err(|failure| self.error(failure))?;
        let start = self.filled;
        self.filled += step.produced;
        self.consumed += step.consumed as u64;
        self.produced += step.produced as u64;
        if step.produced > 0 {
            sink.output(&self.buffer[start..self.filled])?;
        }
        let is_idle = step.produced == 0 && step.consumed == 0;
        self.idle = if is_idle { self.idle + 1 } else { 0 };
        if self.idle > MAX_IDLE {
            return Err(self.error(Failure::Data).into());
        }
        match step.at {
            At::End => self.member = Member::Ended,
            At::Boundary { held } if stop == Stop::Block => self.boundary(held, sink)?,
            At::Boundary { .. } | At::Inside => {}
        }
        let has_more = step.produced == room || step.at != At::Inside;
        Ok((step.consumed, has_more && !(is_idle && input.is_empty())))
    }

    fn boundary<S: WalkSink>(&mut self, held: u8, sink: &mut S) -> Result<(), S::Error> {
        if self.produced != 0 && self.produced - self.marked <= self.span_size {
            return Ok(());
        }
        self.marked = self.produced;
        sink.checkpoint(Mark {
            // Whole bytes that the decoder holds were taken from the input but not used.
            compressed: self.consumed - u64::from(held / 8),
            uncompressed: self.produced,
            bits: held % 8,
            window: &self.buffer[self.filled - WINDOW..self.filled],
        })
    }

    /// Compressed bytes taken so far.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Ends the stream, which must end with a member.
    pub(crate) fn finish(self) -> Result<(), GzipError> {
        match self.member {
            Member::Ended => Ok(()),
            Member::Expected | Member::Inside => Err(GzipError::Truncated {
                offset: self.consumed,
            }),
        }
    }

    fn error(&self, failure: Failure) -> GzipError {
        match failure {
            Failure::Data => GzipError::Data {
                offset: self.consumed,
            },
            Failure::Memory => GzipError::Memory,
        }
    }
}
