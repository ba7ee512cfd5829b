//! The demand queue: which bytes are wanted, in which order, and which request carries them. Pure:
//! no clock, no network.
//!
//! A *piece* is a range of a blob that is delivered whole (the compressed bytes of a span, or one
//! step of a whole layer). Equal demands of any layer share one piece with several waiters. Its
//! states:
//!
//! | state | event | next |
//! |--|--|--|
//! | ready | [`Queue::take`] puts it into a request | flying |
//! | ready | no source can be asked now: [`Queue::park`] | parked |
//! | parked | [`Queue::unpark`], or one more waiter | ready |
//! | flying | all its bytes arrived: [`Queue::finish`] | gone, its waiters are answered |
//! | flying | the request failed: [`Queue::give_back`] | ready |
//! | flying | more urgent than its request can deliver: [`Queue::promote`] | ready (the request skips it) |
//! | flying | another source may deliver it sooner: [`Queue::free`] | ready (the same) |
//! | any | [`Queue::remove`] | gone, its waiters are answered |
//!
//! Ready pieces are taken by class, then by `order`, then by age. From [`LOOSE`] on, pieces that
//! follow the last read in its blob come first. A request also takes the pieces that follow in the
//! blob, up to a limit, if they are of its class (`Next` may join `Now`) and have about its `order`.

use std::collections::{BTreeMap, HashMap};

use soci_oci::Digest;

use super::Class;
use crate::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Within this distance of a request's position, waiting is as fast as a new request: half a round
/// trip of 20 ms at 90 MB/s, the rate of one connection.
pub(crate) const NEAR: u64 = 1 << 20;
/// A request takes only pieces whose order is this near to that of its first piece, so that what is
/// wanted late does not delay what is wanted soon.
const NEAR_ORDER: u64 = 16;
/// From this order on, nobody knows when a piece is wanted. A reader reads on near its last read more
/// often than elsewhere, because the files of a directory lie together in a layer.
pub const LOOSE: u64 = 1 << 32;

mod request;
#[cfg(test)]
mod tests;

pub(crate) use request::{Key, Request};

pub(crate) type PieceId = u64;
pub(crate) type FlightId = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Parked,
    Flying(FlightId),
}

/// A wanted range and its waiters.
#[derive(Debug)]
pub(crate) struct Piece<T> {
    pub(crate) key: Key,
    pub(crate) class: Class,
    pub(crate) order: u64,
    /// The image that the piece counts against: the first one that asked.
    pub(crate) image: Arc<str>,
    pub(crate) waiters: Vec<T>,
    state: State,
}

type Rank = (Class, u64, PieceId);

struct Flight {
    position: Arc<AtomicU64>,
    pieces: Vec<PieceId>,
}

/// All pieces of the node.
pub(crate) struct Queue<T> {
    pieces: HashMap<PieceId, Piece<T>>,
    by_key: HashMap<Key, PieceId>,
    ready: BTreeMap<Rank, PieceId>,
    /// Ready pieces of each blob by start offset, to find neighbors.
    starts: HashMap<Digest, BTreeMap<(u64, PieceId), ()>>,
    parked: Vec<PieceId>,
    flights: HashMap<FlightId, Flight>,
    next: u64,
    /// The blob that a reader asked for last, and the end of what it asked for.
    reader: Option<(Digest, u64)>,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            pieces: HashMap::new(),
            by_key: HashMap::new(),
            ready: BTreeMap::new(),
            starts: HashMap::new(),
            parked: Vec::new(),
            flights: HashMap::new(),
            next: 0,
            reader: None,
        }
    }
}

impl<T> Queue<T> {
    /// Adds a demand. An equal piece gets one more waiter and the more urgent class of the two.
    pub(crate) fn push(&mut self, key: Key, class: Class, order: u64, image: &Arc<str>, waiter: T) {
        self.follow(&key, class);
        if let Some(&id) = self.by_key.get(&key) {
            if let Some(piece) = self.pieces.get_mut(&id) {
                piece.waiters.push(waiter);
            }
            self.raise(id, class);
            if self
                .pieces
                .get(&id)
                .is_some_and(|piece| piece.state == State::Parked)
            {
                // The new waiter may have a source that can be asked now.
                self.parked.retain(|parked| *parked != id);
                self.make_ready(id);
            }
            return;
        }
        let id = self.next;
        self.next += 1;
        let image = Arc::clone(image);
        let piece = Piece {
            key: key.clone(),
            class,
            order,
            image,
            waiters: vec![waiter],
            state: State::Parked,
        };
        self.pieces.insert(id, piece);
        self.by_key.insert(key, id);
        self.make_ready(id);
    }

    /// Raises the class of a piece. A less urgent class changes nothing. Returns true if there is
    /// such a piece.
    pub(crate) fn promote(&mut self, key: &Key, class: Class) -> bool {
        let Some(&id) = self.by_key.get(key) else {
            return false;
        };
        self.follow(key, class);
        self.raise(id, class);
        true
    }

    fn follow(&mut self, key: &Key, class: Class) {
        if class == Class::Now {
            self.reader = Some((key.blob, key.end));
        }
    }

    fn raise(&mut self, id: PieceId, class: Class) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        if class >= piece.class {
            return;
        }
        match piece.state {
            State::Parked => piece.class = class,
            State::Ready => {
                let old = (piece.class, piece.order, id);
                piece.class = class;
                let new = (class, piece.order, id);
                self.ready.remove(&old);
                self.ready.insert(new, id);
            }
            State::Flying(flight) => {
                piece.class = class;
                let at = self
                    .flights
                    .get(&flight)
                    .map_or(0, |f| f.position.load(Ordering::Relaxed));
                let far = piece.key.start.saturating_sub(at) > NEAR;
                if class == Class::Now && far {
                    self.leave_flight(flight, id);
                    self.make_ready(id);
                }
            }
        }
    }

    fn leave_flight(&mut self, flight: FlightId, id: PieceId) {
        if let Some(flight) = self.flights.get_mut(&flight) {
            flight.pieces.retain(|piece| *piece != id);
        }
    }

    fn make_ready(&mut self, id: PieceId) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        piece.state = State::Ready;
        self.ready.insert((piece.class, piece.order, id), id);
        let starts = self.starts.entry(piece.key.blob).or_default();
        starts.insert((piece.key.start, id), ());
    }

    fn unready(&mut self, id: PieceId, state: State) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        piece.state = state;
        self.ready.remove(&(piece.class, piece.order, id));
        if let Some(starts) = self.starts.get_mut(&piece.key.blob) {
            starts.remove(&(piece.key.start, id));
            if starts.is_empty() {
                self.starts.remove(&piece.key.blob);
            }
        }
    }

    /// Returns the next request if a ready piece fits: the most urgent piece and those that follow
    /// it, at most `limit(class)` bytes unless the first piece alone is larger.
    pub(crate) fn take(
        &mut self,
        mut fits: impl FnMut(&Piece<T>) -> bool,
        limit: impl Fn(Class) -> u64,
    ) -> Option<Request> {
        let mut fits = |id: &PieceId| self.pieces.get(id).is_some_and(&mut fits);
        let first = self.ready.values().copied().find(&mut fits)?;
        let first = self.near_reader(first, fits).unwrap_or(first);
        let piece = self.pieces.get(&first)?;
        let (class, blob, image) = (piece.class, piece.key.blob, Arc::clone(&piece.image));
        let (start, limit, order) = (piece.key.start, limit(class), piece.order);
        let mut ids = vec![first];
        let mut pieces = vec![(first, piece.key.range())];
        let mut end = piece.key.end;
        while let Some(next) = self.follower(&blob, end, (class, order), &image, &ids) {
            let range = self.pieces.get(&next).map(|piece| piece.key.range())?;
            if range.end - start > limit {
                break;
            }
            end = range.end;
            ids.push(next);
            pieces.push((next, range));
        }
        let flight = self.next;
        self.next += 1;
        for id in &ids {
            self.unready(*id, State::Flying(flight));
        }
        let position = Arc::new(AtomicU64::new(start));
        self.flights.insert(
            flight,
            Flight {
                position: Arc::clone(&position),
                pieces: ids,
            },
        );
        Some(Request {
            flight,
            blob,
            image,
            class,
            pieces,
            position,
        })
    }

    /// No reader has asked for a while. The place of its last read says nothing any longer.
    pub(crate) fn forget_reader(&mut self) {
        self.reader = None;
    }

    /// The piece of the same image to take instead of this one, because it follows the last read.
    fn near_reader(
        &self,
        instead_of: PieceId,
        mut fits: impl FnMut(&PieceId) -> bool,
    ) -> Option<PieceId> {
        let image = &self.pieces.get(&instead_of)?.image;
        let is_loose = |id| {
            let piece = self.pieces.get(&id).filter(|piece| piece.image == *image);
            piece.is_some_and(|piece| piece.class == Class::All && piece.order >= LOOSE)
        };
        let (blob, from) = self.reader.filter(|_| is_loose(instead_of))?;
        let behind = self.starts.get(&blob)?;
        let mut behind = behind.range((from.saturating_sub(1), 0)..);
        behind.find_map(|((_, id), ())| (is_loose(*id) && fits(id)).then_some(*id))
    }

    /// A ready piece that continues at `end`. A span that begins inside a byte shares that byte
    /// with the span before.
    fn follower(
        &self,
        blob: &Digest,
        end: u64,
        (class, order): (Class, u64),
        image: &Arc<str>,
        taken: &[PieceId],
    ) -> Option<PieceId> {
        let starts = self.starts.get(blob)?;
        let near = starts.range((end.saturating_sub(1), 0)..=(end, PieceId::MAX));
        near.map(|((_, id), ())| *id).find(|id| {
            !taken.contains(id)
                && self.pieces.get(id).is_some_and(|piece| {
                    let rides =
                        piece.class == class || (class == Class::Now && piece.class == Class::Next);
                    let near = piece.order.abs_diff(order) <= NEAR_ORDER;
                    piece.key.end > end && rides && near && piece.image == *image
                })
        })
    }

    /// The class of the most urgent piece of a request. `None` if none of its pieces is wanted any
    /// longer.
    pub(crate) fn flight_class(&self, flight: FlightId) -> Option<Class> {
        let pieces = &self.flights.get(&flight)?.pieces;
        pieces
            .iter()
            .filter_map(|id| self.pieces.get(id))
            .map(|piece| piece.class)
            .min()
    }

    /// The pieces that this request still carries.
    pub(crate) fn carried(&self, flight: FlightId) -> Vec<PieceId> {
        let flight = self.flights.get(&flight);
        flight.map_or_else(Vec::new, |flight| flight.pieces.clone())
    }

    /// Makes a piece available to another request. This request skips it.
    pub(crate) fn free(&mut self, flight: FlightId, id: PieceId) {
        if self.carries(flight, id) {
            self.leave_flight(flight, id);
            self.make_ready(id);
        }
    }

    /// Whether this request still carries this piece.
    pub(crate) fn carries(&self, flight: FlightId, id: PieceId) -> bool {
        self.pieces
            .get(&id)
            .is_some_and(|piece| piece.state == State::Flying(flight))
    }

    /// All bytes of a piece have arrived: removes it from the queue. `None` if the request no
    /// longer carries it.
    pub(crate) fn finish(&mut self, flight: FlightId, id: PieceId) -> Option<Piece<T>> {
        if !self.carries(flight, id) {
            return None;
        }
        self.leave_flight(flight, id);
        self.remove(id)
    }

    /// The request is over. Makes its undelivered pieces ready again and returns them.
    pub(crate) fn give_back(&mut self, flight: FlightId) -> Vec<PieceId> {
        let left = self
            .flights
            .remove(&flight)
            .map(|flight| flight.pieces)
            .unwrap_or_default();
        for id in &left {
            self.make_ready(*id);
        }
        left
    }

    /// Excludes a ready piece until [`Queue::unpark`].
    pub(crate) fn park(&mut self, id: PieceId) {
        if self
            .pieces
            .get(&id)
            .is_some_and(|piece| piece.state == State::Ready)
        {
            self.unready(id, State::Parked);
            self.parked.push(id);
        }
    }

    /// Makes all parked pieces ready.
    pub(crate) fn unpark(&mut self) {
        for id in std::mem::take(&mut self.parked) {
            if self
                .pieces
                .get(&id)
                .is_some_and(|piece| piece.state == State::Parked)
            {
                self.make_ready(id);
            }
        }
    }

    /// Removes a piece in any state.
    pub(crate) fn remove(&mut self, id: PieceId) -> Option<Piece<T>> {
        match self.pieces.get(&id)?.state {
            State::Ready => self.unready(id, State::Parked),
            State::Parked => self.parked.retain(|parked| *parked != id),
            State::Flying(flight) => self.leave_flight(flight, id),
        }
        let piece = self.pieces.remove(&id)?;
        self.by_key.remove(&piece.key);
        Some(piece)
    }

    pub(crate) fn get_mut(&mut self, id: PieceId) -> Option<&mut Piece<T>> {
        self.pieces.get_mut(&id)
    }

    /// Every piece, for shutdown.
    pub(crate) fn ids(&self) -> Vec<PieceId> {
        self.pieces.keys().copied().collect()
    }
}
