//! Inflates gzip members independently, ahead of the walk.
//!
//! A member does not depend on earlier ones, so another thread can start at its beginning. But no
//! list of members exists: a search can only find their magic bytes, which may also occur in the
//! content of a member. A run is therefore a guess. It begins at bytes that look like a member and
//! continues from each member's end to the next member. The walk takes over a run only from a
//! position that it has reached itself, which proves that the guess was right.
//!
//! A run keeps what a walk needs to continue after it: the output, and *every* possible checkpoint
//! position, because the checkpoints that are due depend on the output before the run.

use std::sync::atomic::{AtomicU64, Ordering};

use super::inflate::{At, Failure, Inflate, Stop, Wrapper};
use super::pieces::Pieces;

/// Minimum output space of a step in bytes, while the run may grow.
const STEP_ROOM: usize = 64 * 1024;

/// Most checkpoint positions that a run keeps: one per 16 bytes of output would be very many, but a
/// member of empty blocks has more.
const MAX_PLACES: usize = 64 * 1024;

/// Most candidates in an order that are tried as the beginning of a member. False candidates are
/// rare.
const MAX_TRIES: u32 = 64;

/// Steps without progress after which a decoder counts as stuck.
const MAX_IDLE: u32 = 16;

/// The input and limits of a run.
#[derive(Debug)]
pub(crate) struct Order {
    /// The bytes of `from..until`, and the following bytes in which the last member may end.
    pub(crate) input: Pieces,
    /// The search for the first member starts here.
    pub(crate) from: u64,
    /// The last member begins before this offset.
    pub(crate) until: u64,
    /// Reusable output buffer.
    pub(crate) output: Vec<u8>,
    /// Most bytes of output.
    pub(crate) max_output: usize,
}

/// A possible checkpoint position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Position in the layer, in bits.
    pub(super) bit: u64,
    /// Offset in the run's output.
    pub(super) output: usize,
}

/// The beginning of a member.
#[derive(Debug, Clone, Copy)]
struct Start {
    offset: u64,
    output: usize,
    place: usize,
}

/// Why a run ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    /// A member does not end within the available bytes.
    Input,
    /// A member has more output than the limit allows.
    Output,
}

/// Consecutive members, inflated.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The beginnings of the members, and the end of the last one.
    starts: Vec<Start>,
    places: Vec<Place>,
    output: Vec<u8>,
    pub(crate) short: Option<Short>,
}

/// The part of a run from one of its members on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest<'a> {
    pub(super) output: &'a [u8],
    pub(super) places: &'a [Place],
    /// The offset that the output offsets of the places are relative to.
    pub(super) base: usize,
    /// Offset in the layer at which the last member ends.
    pub(super) end: u64,
}

impl Run {
    /// The members from the one that begins at `offset`; `None` if no member begins there.
    pub(super) fn from(&self, offset: u64) -> Option<Rest<'_>> {
        let (last, starts) = self.starts.split_last()?;
        let at = starts
            .binary_search_by_key(&offset, |start| start.offset)
            .ok()?;
        let first = starts.get(at)?;
        Some(Rest {
            output: self.output.get(first.output..last.output)?,
            places: self.places.get(first.place..last.place)?,
            base: first.output,
            end: last.offset,
        })
    }

    /// Returns the output buffer for reuse.
    pub(crate) fn into_output(self) -> Vec<u8> {
        self.output
    }

    /// The output space after `filled` bytes; grows up to `max_output`.
    fn room(&mut self, filled: usize, max_output: usize) -> Option<&mut [u8]> {
        if self.output.len().saturating_sub(filled) < STEP_ROOM && self.output.len() < max_output {
            let len = (self.output.len() * 2).max(4 * STEP_ROOM);
            self.output.resize(len.min(max_output), 0);
        }
        if filled == self.output.len() {
            return None;
        }
        self.output.get_mut(filled..)
    }
}

/// Inflates runs.
#[derive(Debug)]
pub(crate) struct RunDecoder {
    inflate: Inflate,
}

/// Why a sequence of members ends.
enum End {
    /// The next member begins at or after `until`.
    Arrived,
    /// The bytes at `at` are not a member, or the member is damaged.
    Bad { at: u64 },
    /// The member exceeds the limits of the order.
    Short(Short),
    /// The result is no longer needed, a member has too many blocks, or memory is exhausted.
    GivenUp,
}

impl RunDecoder {
    /// Creates a decoder; `None` if memory is exhausted.
    pub(crate) fn new() -> Option<Self> {
        let inflate = Inflate::new(Wrapper::Either).ok()?;
        Some(Self { inflate })
    }

    /// Inflates what looks like members, until one begins at or after `until`. Gives up when the
    /// walk, whose offset is in `walked`, has reached `until`.
    pub(crate) fn run(&mut self, mut order: Order, walked: &AtomicU64) -> Run {
        let mut run = Run {
            output: std::mem::take(&mut order.output),
            ..Run::default()
        };
        let mut from = order.from;
        let mut wasted = 0;
        for _ in 0..MAX_TRIES {
            run.starts.clear();
            run.places.clear();
            let begin = order.input.find_member(from, order.until);
            let Some(begin) = begin.filter(|_| wasted <= order.max_output) else {
                break;
            };
            match self.follow(&order, begin, walked, &mut run) {
                End::Bad { at } => from = at + 1,
                End::Short(short) => {
                    run.short = Some(short);
                    break;
                }
                End::Arrived | End::GivenUp => break,
            }
            // If the chain leads to bytes that are not a member, its start was not a member either.
            wasted += run.starts.last().map_or(0, |start| start.output);
            run.starts.clear();
        }
        run
    }

    /// Inflates consecutive members. The first one begins at `at`.
    fn follow(&mut self, order: &Order, mut at: u64, walked: &AtomicU64, run: &mut Run) -> End {
        let mut filled = 0;
        loop {
            run.starts.push(Start {
                offset: at,
                output: filled,
                place: run.places.len(),
            });
            if at >= order.until {
                return End::Arrived;
            }
            if !order.input.is_member(at) {
                return End::Bad { at };
            }
            match self.member(order, at, filled, walked, run) {
                Ok((end, output)) => (at, filled) = (end, output),
                Err(end) => return end,
            }
        }
    }

    /// Inflates the member at `at` after `filled` bytes of output. Returns the offsets at which the
    /// member and its output end.
    fn member(
        &mut self,
        order: &Order,
        at: u64,
        mut filled: usize,
        walked: &AtomicU64,
        run: &mut Run,
    ) -> Result<(u64, usize), End> {
        self.inflate.reset().map_err(|_| End::GivenUp)?;
        let (mut offset, mut idle) = (at, 0);
        loop {
            if walked.load(Ordering::Relaxed) >= order.until || run.places.len() >= MAX_PLACES {
                return Err(End::GivenUp);
            }
            let room = run
                .room(filled, order.max_output)
                .ok_or(End::Short(Short::Output))?;
            let input = order.input.at(offset);
            let step = match self.inflate.step(input, room, Stop::Block) {
                Ok(step) => step,
                Err(Failure::Data) => return Err(End::Bad { at }),
                Err(Failure::Memory) => return Err(End::GivenUp),
            };
            offset += step.consumed as u64;
            filled += step.produced;
            match step.at {
                At::End => return Ok((offset, filled)),
                At::Boundary { held } => run.places.push(Place {
                    bit: offset * 8 - u64::from(held),
                    output: filled,
                }),
                At::Inside if step.consumed == 0 && step.produced == 0 => {
                    if input.is_empty() {
                        return Err(End::Short(Short::Input));
                    }
                    idle += 1;
                    if idle > MAX_IDLE {
                        return Err(End::Bad { at });
                    }
                }
                At::Inside => idle = 0,
            }
        }
    }
}

impl Pieces {
    /// Whether the bytes at `offset` can begin a gzip member: magic number, deflate, no reserved
    /// flag.
    fn is_member(&self, offset: u64) -> bool {
        matches!(self.bytes(offset), Some([0x1f, 0x8b, 8, flags]) if flags & 0xe0 == 0)
    }

    fn find_member(&self, mut from: u64, until: u64) -> Option<u64> {
        loop {
            let at = self.find(0x1f, from, until)?;
            if self.is_member(at) {
                return Some(at);
            }
            from = at + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gzip::pieces::PIECE;

    /// A member with a single stored block.
    fn member(content: &[u8]) -> Vec<u8> {
        let len = u16::try_from(content.len()).expect("a stored block is small");
        let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1];
        bytes.extend(len.to_le_bytes());
        bytes.extend((!len).to_le_bytes());
        bytes.extend(content);
        bytes.extend(libdeflater::crc32(content).to_le_bytes());
        bytes.extend(u32::from(len).to_le_bytes());
        bytes
    }

    fn run(layer: &[u8], from: u64, until: u64, max_output: usize) -> Run {
        let mut input = Pieces::default();
        for piece in layer.chunks(PIECE) {
            input.push(Arc::new(piece.to_vec()));
        }
        let order = Order {
            input,
            from,
            until,
            output: Vec::new(),
            max_output,
        };
        let mut decoder = RunDecoder::new().expect("memory");
        decoder.run(order, &AtomicU64::new(0))
    }

    #[test]
    fn a_run_begins_at_the_first_member_and_ends_with_the_last_that_begins_in_time() {
        let (a, b, c) = (member(b"first"), member(b""), member(b"third"));
        let layer = [&a[..], &b, &c].concat();
        let (second, third) = (a.len() as u64, (a.len() + b.len()) as u64);
        let found = run(&layer, 1, third, 1 << 20);
        assert!(found.from(0).is_none() && found.from(third).is_none());
        let rest = found.from(second).expect("the second member");
        assert_eq!((rest.output, rest.end), (&b""[..], third));
        let found = run(&layer, 0, third + 1, 1 << 20);
        let rest = found.from(second).expect("the second member");
        assert_eq!((rest.output, rest.end), (&b"third"[..], layer.len() as u64));
        // Only after the header: a stored block that is the last of its member is not a place.
        let places: Vec<_> = rest.places.iter().map(|p| (p.bit / 8, p.output)).collect();
        assert_eq!(places, [(second + 10, 5), (third + 10, 5)]);
        assert_eq!(found.short, None);
    }

    #[test]
    fn a_member_in_the_content_of_another_is_left_when_nothing_follows_it() {
        let inner = member(b"a file that was compressed before");
        let outer = member(&[&b"..."[..], &inner, b"..."].concat());
        let layer = [&outer[..], &member(b"next")].concat();
        let found = run(&layer, 5, layer.len() as u64, 1 << 20);
        let next = outer.len() as u64;
        assert_eq!(found.from(next).expect("found").output, b"next");
        assert_eq!(found.starts.len(), 2);
    }

    #[test]
    fn a_run_says_what_it_lacked() {
        let layer = [member(&[7; 60_000]), member(&[8; 60_000])].concat();
        let first = layer.len() as u64 / 2;
        let found = run(&layer, 0, first + 1, 100_000);
        assert_eq!(found.short, Some(Short::Output));
        assert_eq!(found.from(0).map(|rest| rest.end), Some(first));
        let found = run(&layer[..layer.len() - 1], 0, first + 1, 1 << 20);
        assert_eq!(found.short, Some(Short::Input));
        assert_eq!(found.from(0).map(|rest| rest.end), Some(first));
        assert!(found.from(first).is_none());
    }

    #[test]
    fn a_layer_full_of_false_beginnings_ends_soon() {
        let layer = [0x1f, 0x8b, 8, 0].repeat(50_000);
        let found = run(&layer, 0, layer.len() as u64, 1 << 20);
        assert!(found.starts.is_empty());
    }
}
