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
use super::run::Run;
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

/// How much a layer is compressed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ratio {
    consumed: u64,
    produced: u64,
}

impl Ratio {
    /// Compressed bytes that give about so much output.
    pub(crate) fn compressed(self, output: u64) -> u64 {
        let scaled =
            u128::from(output) * u128::from(self.consumed) / u128::from(self.produced.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
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
        loop {
            let taken = self.advance(input, sink)?;
            input = input.get(taken..).unwrap_or_default();
            if input.is_empty() {
                return Ok(());
            }
        }
    }

    /// Takes the next compressed bytes up to the end of a member. Returns how many.
    pub(crate) fn advance<S: WalkSink>(
        &mut self,
        input: &[u8],
        sink: &mut S,
    ) -> Result<usize, S::Error> {
        let Some(&first) = input.first() else {
            return Ok(0);
        };
        if self.member != Member::Inside {
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
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            let (step, has_more) = self.step(rest, sink)?;
            taken += step;
            let is_used_up = taken == input.len() && !has_more;
            if is_used_up || self.member == Member::Ended {
                return Ok(taken);
            }
        }
    }

    /// Whether a member has ended and nothing of the next was taken.
    pub(crate) fn is_between_members(&self) -> bool {
        self.member == Member::Ended
    }

    /// Takes over the members of a run that begin where the walk is. Returns whether there are any.
    pub(crate) fn take_over<S: WalkSink>(
        &mut self,
        run: &Run,
        sink: &mut S,
    ) -> Result<bool, S::Error> {
        let rest = match run.from(self.consumed) {
            Some(rest) if self.is_between_members() => rest,
            _ => return Ok(false),
        };
        let before = self.produced;
        let mut done = 0;
        for place in rest.places {
            let until = place.output - rest.base;
            let produced = before + until as u64;
            if self.is_due(produced) {
                self.follow(rest.output.get(done..until).unwrap_or_default(), sink)?;
                done = until;
                self.mark(place.bit, sink)?;
            }
        }
        self.follow(rest.output.get(done..).unwrap_or_default(), sink)?;
        self.consumed = rest.end;
        Ok(true)
    }

    /// Hands on output that was inflated elsewhere, and keeps the end of it as history.
    fn follow<S: WalkSink>(&mut self, output: &[u8], sink: &mut S) -> Result<(), S::Error> {
        let last = output
            .get(output.len().saturating_sub(WINDOW)..)
            .unwrap_or(output);
        if self.buffer.len() - self.filled < last.len() {
            self.buffer
                .copy_within(self.filled - WINDOW..self.filled, 0);
            self.filled = WINDOW;
        }
        self.buffer[self.filled..self.filled + last.len()].copy_from_slice(last);
        self.filled += last.len();
        self.produced += output.len() as u64;
        if output.is_empty() {
            return Ok(());
        }
        sink.output(output)
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
            At::Boundary { held } if stop == Stop::Block && self.is_due(self.produced) => {
                // Bits that the decoder holds were taken from the input but not used.
                self.mark(self.consumed * 8 - u64::from(held), sink)?;
            }
            At::Boundary { .. } | At::Inside => {}
        }
        let has_more = step.produced == room || step.at != At::Inside;
        Ok((step.consumed, has_more && !(is_idle && input.is_empty())))
    }

    /// Whether a checkpoint is due where it can be and there was so much output.
    fn is_due(&self, produced: u64) -> bool {
        produced == 0 || produced - self.marked > self.span_size
    }

    /// Makes a checkpoint behind all output, at this bit of the layer.
    fn mark<S: WalkSink>(&mut self, bit: u64, sink: &mut S) -> Result<(), S::Error> {
        self.marked = self.produced;
        let compressed = bit.div_ceil(8);
        sink.checkpoint(Mark {
            compressed,
            uncompressed: self.produced,
            bits: u8::try_from(compressed * 8 - bit).unwrap_or(0),
            window: &self.buffer[self.filled - WINDOW..self.filled],
        })
    }

    /// Compressed bytes taken so far.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// How much of the layer was compressed to how much so far.
    pub(crate) fn ratio(&self) -> Ratio {
        Ratio {
            consumed: self.consumed,
            produced: self.produced,
        }
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
