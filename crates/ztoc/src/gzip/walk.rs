//! Walks a gzip layer once and finds all output and checkpoints, and verifies all checksums.
//!
//! A checkpoint can be right after a member's header or after any block except the last one of a
//! member. One is created if there is no output yet, or if the output since the previous one is
//! *larger* than the span size. The decoder stops at blocks only where that can be the case. In
//! between it runs to the first byte of output at which a checkpoint could be due, so the stops
//! cost nothing.
//!
//! The history precedes the write position in the same buffer. A circular buffer would not work:
//! zlib-rs writes more bytes than it reports and would overwrite the oldest history.

use super::GzipError;
use super::inflate::{At, Failure, Inflate, Stop, Wrapper};
use super::run::Run;
use crate::checkpoint::WINDOW;

/// Output space after the history, in bytes. Large enough that moving 32 KiB each time it is full
/// costs little, and small enough for the second-level cache.
const ROOM: usize = 256 * 1024;

/// Steps without progress after which a decoder counts as stuck. A stop at a block boundary makes
/// no progress, so a few such steps are normal.
const MAX_IDLE: u32 = 16;

/// A position at which decoding can start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark<'a> {
    /// Compressed offset of the first whole byte.
    pub(crate) compressed: u64,
    /// Uncompressed offset.
    pub(crate) uncompressed: u64,
    /// Unused high bits of the previous byte, 0 to 7.
    pub(crate) bits: u8,
    /// The last [`WINDOW`] bytes of output, with zeros before the start of the stream.
    pub(crate) window: &'a [u8],
}

/// Receives the results of a walk.
pub(crate) trait WalkSink {
    type Error: From<GzipError>;
    /// The next bytes of output.
    fn output(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// A checkpoint after all output so far.
    fn checkpoint(&mut self, mark: Mark<'_>) -> Result<(), Self::Error>;
    /// The next member, at this offset of the layer, is not gzip, but may be zlib.
    fn foreign_member(&mut self, at: u64);
}

/// The compression ratio of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ratio {
    consumed: u64,
    produced: u64,
}

impl Ratio {
    /// The number of compressed bytes that give about this much output.
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
    /// `WINDOW` bytes of history, then output space; the output so far ends at `filled`.
    buffer: Box<[u8]>,
    filled: usize,
    consumed: u64,
    /// Output bytes of all members.
    produced: u64,
    /// Output bytes at the last checkpoint.
    marked: u64,
    member: Member,
    idle: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    /// No byte of it has been read.
    Expected,
    Inside,
    /// The member has ended; another one may follow.
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

    /// Processes the next compressed bytes.
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

    /// Processes the next compressed bytes up to the end of a member. Returns the number of bytes
    /// consumed.
    pub(crate) fn advance<S: WalkSink>(
        &mut self,
        input: &[u8],
        sink: &mut S,
    ) -> Result<usize, S::Error> {
        let Some(&first) = input.first() else {
            return Ok(0);
        };
        self.begin(first, sink)?;
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

    /// Processes the next compressed bytes, for at most 256 KiB of output. Returns the number of
    /// bytes consumed, and whether there may be more output without more input.
    pub(crate) fn advance_once<S: WalkSink>(
        &mut self,
        input: &[u8],
        sink: &mut S,
    ) -> Result<(usize, bool), S::Error> {
        if let Some(&first) = input.first() {
            self.begin(first, sink)?;
        }
        let (taken, has_more) = self.step(input, sink)?;
        Ok((taken, has_more && self.member == Member::Inside))
    }

    /// Begins a member with its first byte, unless one is in progress.
    fn begin<S: WalkSink>(&mut self, first: u8, sink: &mut S) -> Result<(), S::Error> {
        if self.member == Member::Inside {
            return Ok(());
        }
        if self.member == Member::Ended {
            self.inflate
                .reset()
                .map_err(|failure| self.error(failure))?;
        }
        self.member = Member::Inside;
        if first != 0x1f {
            sink.foreign_member(self.consumed);
        }
        Ok(())
    }

    /// Whether a member has ended and no byte of the next one was consumed.
    pub(crate) fn is_between_members(&self) -> bool {
        self.member == Member::Ended
    }

    /// Takes over the members of a run that begin at the current position. Returns whether there
    /// are any.
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

    /// Passes on output that another thread inflated, and keeps the end of it as history.
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

    /// Calls the decoder once. Returns the input consumed, and whether the decoder may continue
    /// without more input.
    fn step<S: WalkSink>(&mut self, input: &[u8], sink: &mut S) -> Result<(usize, bool), S::Error> {
        if self.filled == self.buffer.len() {
            self.buffer.copy_within(self.filled - WINDOW.., 0);
            self.filled = WINDOW;
        }
        // The first output at which a checkpoint is due ends one byte after this.
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
                // Bits held by the decoder were consumed from the input but not used.
                self.mark(self.consumed * 8 - u64::from(held), sink)?;
            }
            At::Boundary { .. } | At::Inside => {}
        }
        let has_more = step.produced == room || step.at != At::Inside;
        Ok((step.consumed, has_more && !(is_idle && input.is_empty())))
    }

    /// Whether a checkpoint is due at a possible position after this much output.
    fn is_due(&self, produced: u64) -> bool {
        produced == 0 || produced - self.marked > self.span_size
    }

    /// Creates a checkpoint after all output so far, at this bit of the layer.
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

    /// Compressed bytes consumed so far.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The compression ratio so far.
    pub(crate) fn ratio(&self) -> Ratio {
        Ratio {
            consumed: self.consumed,
            produced: self.produced,
        }
    }

    /// Ends the stream, which must end with a complete member.
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
