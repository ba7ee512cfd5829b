//! Which bytes are wanted, in which order, and which request carries them. Pure: no clock, no network.
//!
//! A *piece* is a range of a blob that somebody wants whole (a span's compressed bytes, a step of a whole layer). Equal
//! pieces are one piece with several waiters, whoever they belong to. Its states:
//!
//! | state | event | next |
//! |--|--|--|
//! | ready | [`Queue::take`] puts it into a request | flying |
//! | ready | no source can be asked now: [`Queue::park`] | parked |
//! | parked | [`Queue::unpark`], or one more waiter | ready |
//! | flying | all its bytes came: [`Queue::finish`] | gone, its waiters answered |
//! | flying | the request broke: [`Queue::give_back`] | ready |
//! | flying | wanted more urgently than its request can deliver: [`Queue::promote`] | ready (the request passes over it) |
//! | flying | another source may have it sooner: [`Queue::free`] | ready (the same) |
//! | any | [`Queue::remove`] | gone, its waiters answered |
//!
//! Ready pieces are taken by class, then by the order their demand gave, then by age. A request takes the pieces that
//! follow it in the blob with it, up to a limit, if they are of its class (`Next` may ride with `Now`).

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use soci_oci::Digest;

use super::Class;
use crate::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A piece within this distance of a request's position is as fast there as by a request of its own: half a round trip
/// of 20 ms at the 90 MB/s one connection gives.
pub(crate) const NEAR: u64 = 1 << 20;

pub(crate) type PieceId = u64;
pub(crate) type FlightId = u64;

/// Which bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) blob: Digest,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Key {
    pub(crate) fn range(&self) -> Range<u64> {
        self.start..self.end
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Parked,
    Flying(FlightId),
}

/// A wanted range and who waits for it.
#[derive(Debug)]
pub(crate) struct Piece<T> {
    pub(crate) key: Key,
    pub(crate) class: Class,
    pub(crate) order: u64,
    /// The image that is charged for it: the first that asked.
    pub(crate) image: Arc<str>,
    pub(crate) waiters: Vec<T>,
    state: State,
}

/// One request to make: pieces that follow each other in one blob (neighbours may share a byte).
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) flight: FlightId,
    pub(crate) blob: Digest,
    pub(crate) image: Arc<str>,
    pub(crate) class: Class,
    pub(crate) pieces: Vec<(PieceId, Range<u64>)>,
    /// First byte that has not come; kept up to date by who reads the body.
    pub(crate) position: Arc<AtomicU64>,
}

impl Request {
    /// From the first piece's first byte to the last piece's end.
    pub(crate) fn range(&self) -> Range<u64> {
        let start = self.pieces.first().map_or(0, |(_, range)| range.start);
        start..self.pieces.last().map_or(start, |(_, range)| range.end)
    }
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
    /// Ready pieces of a blob by where they start: the neighbours.
    starts: HashMap<Digest, BTreeMap<(u64, PieceId), ()>>,
    parked: Vec<PieceId>,
    flights: HashMap<FlightId, Flight>,
    next: u64,
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
        }
    }
}

impl<T> Queue<T> {
    /// Adds a wish. An equal piece gets one more waiter and the more urgent class of the two.
    pub(crate) fn push(&mut self, key: Key, class: Class, order: u64, image: &Arc<str>, waiter: T) {
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
                // The newcomer may not have to wait for what the others wait for.
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

    /// A piece is wanted with this class now; less urgent ones change nothing. True if there is such a piece.
    pub(crate) fn promote(&mut self, key: &Key, class: Class) -> bool {
        let Some(&id) = self.by_key.get(key) else {
            return false;
        };
        self.raise(id, class);
        true
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

    /// The next request, if a ready piece fits: the most urgent one and what follows it, at most `limit(class)` bytes
    /// unless the first piece alone is larger.
    pub(crate) fn take(
        &mut self,
        mut fits: impl FnMut(&Piece<T>) -> bool,
        limit: impl Fn(Class) -> u64,
    ) -> Option<Request> {
        let mut first = None;
        for &id in self.ready.values() {
            if self.pieces.get(&id).is_some_and(&mut fits) {
                first = Some(id);
                break;
            }
        }
        let first = first?;
        let piece = self.pieces.get(&first)?;
        let (class, blob, image) = (piece.class, piece.key.blob, Arc::clone(&piece.image));
        let (start, limit) = (piece.key.start, limit(class));
        let mut ids = vec![first];
        let mut pieces = vec![(first, piece.key.range())];
        let mut end = piece.key.end;
        while let Some(next) = self.follower(&blob, end, class, &image, &ids) {
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

    /// A ready piece that goes on where `end` is. Spans that begin inside a byte share it with the one before.
    fn follower(
        &self,
        blob: &Digest,
        end: u64,
        class: Class,
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
                    piece.key.end > end && rides && piece.image == *image
                })
        })
    }

    /// How urgent a running request is: as its most urgent piece. `None` when nothing of it is wanted any more.
    pub(crate) fn flight_class(&self, flight: FlightId) -> Option<Class> {
        let pieces = &self.flights.get(&flight)?.pieces;
        pieces
            .iter()
            .filter_map(|id| self.pieces.get(id))
            .map(|piece| piece.class)
            .min()
    }

    /// What this request still carries.
    pub(crate) fn carried(&self, flight: FlightId) -> Vec<PieceId> {
        let flight = self.flights.get(&flight);
        flight.map_or_else(Vec::new, |flight| flight.pieces.clone())
    }

    /// A piece is to be had by another request: this one passes over it.
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

    /// All bytes of a piece have come by this request: it leaves the queue. `None` if the request carries it no more.
    pub(crate) fn finish(&mut self, flight: FlightId, id: PieceId) -> Option<Piece<T>> {
        if !self.carries(flight, id) {
            return None;
        }
        self.leave_flight(flight, id);
        self.remove(id)
    }

    /// The request is over. What it did not deliver is ready again; returns those pieces.
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

    /// Takes a ready piece out of the order until [`Queue::unpark`].
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

    /// Everything that is parked is ready again.
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

    /// Takes a piece out whatever its state is.
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

    /// Every piece, for shutting down.
    pub(crate) fn ids(&self) -> Vec<PieceId> {
        self.pieces.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn key(blob: u8, start: u64, end: u64) -> Key {
        Key {
            blob: Digest::sha256(&[blob]),
            start,
            end,
        }
    }

    fn push(queue: &mut Queue<u32>, key: Key, class: Class, waiter: u32) {
        queue.push(key, class, 0, &Arc::from("image"), waiter);
    }

    fn take(queue: &mut Queue<u32>) -> Option<Request> {
        queue.take(|_| true, |_| 100)
    }

    #[test]
    fn neighbours_become_one_request_up_to_the_limit() {
        let mut queue = Queue::default();
        for (waiter, start) in (0..6).zip((0..).step_by(30)) {
            // Neighbours share a byte, as spans do that begin inside one.
            push(&mut queue, key(1, start, start + 31), Class::All, waiter);
        }
        push(&mut queue, key(2, 91, 120), Class::All, 99);
        assert_eq!(take(&mut queue).expect("a request").range(), 0..91);
        assert_eq!(take(&mut queue).expect("a request").range(), 90..181);
        assert_eq!(
            take(&mut queue).expect("a request").blob,
            Digest::sha256(&[2])
        );
        assert!(take(&mut queue).is_none());
    }

    #[test]
    fn a_reader_goes_first_and_next_rides_with_it() {
        let mut queue = Queue::default();
        push(&mut queue, key(1, 0, 10), Class::All, 0);
        push(&mut queue, key(1, 50, 60), Class::Now, 1);
        push(&mut queue, key(1, 60, 70), Class::Next, 2);
        push(&mut queue, key(1, 70, 80), Class::All, 3);
        let request = take(&mut queue).expect("a request");
        assert_eq!((request.class, request.range()), (Class::Now, 50..70));
        queue
            .finish(request.flight, request.pieces[0].0)
            .expect("carried");
        assert_eq!(queue.flight_class(request.flight), Some(Class::Next));
    }

    #[test]
    fn equal_wishes_are_one_piece_with_two_waiters() {
        let mut queue = Queue::default();
        push(&mut queue, key(1, 0, 10), Class::All, 0);
        push(&mut queue, key(1, 0, 10), Class::Now, 1);
        let request = take(&mut queue).expect("a request");
        assert_eq!(request.class, Class::Now);
        let piece = queue
            .finish(request.flight, request.pieces[0].0)
            .expect("carried");
        assert_eq!(piece.waiters, [0, 1]);
        assert!(take(&mut queue).is_none());
    }

    #[test]
    fn a_piece_wanted_now_far_behind_in_a_flight_gets_its_own() {
        let mut queue = Queue::default();
        push(&mut queue, key(1, 0, NEAR), Class::All, 0);
        push(&mut queue, key(1, NEAR, 2 * NEAR), Class::All, 1);
        push(&mut queue, key(1, 2 * NEAR, 3 * NEAR), Class::All, 2);
        let request = queue.take(|_| true, |_| u64::MAX).expect("a request");
        assert_eq!(request.pieces.len(), 3);
        assert!(queue.promote(&key(1, NEAR, 2 * NEAR), Class::Now));
        assert_eq!(
            queue.flight_class(request.flight),
            Some(Class::Now),
            "near: it stays"
        );
        assert!(queue.promote(&key(1, 2 * NEAR, 3 * NEAR), Class::Now));
        let own = take(&mut queue).expect("a request of its own");
        assert_eq!(own.range(), 2 * NEAR..3 * NEAR);
        assert!(!queue.carries(request.flight, own.pieces[0].0));
        assert!(queue.finish(request.flight, own.pieces[0].0).is_none());
        assert_eq!(queue.give_back(request.flight).len(), 2);
    }

    #[test]
    fn parked_pieces_stay_out_until_they_are_called() {
        let mut queue = Queue::default();
        push(&mut queue, key(1, 0, 10), Class::All, 0);
        let request = take(&mut queue).expect("a request");
        for id in queue.give_back(request.flight) {
            queue.park(id);
        }
        assert!(take(&mut queue).is_none());
        assert!(queue.promote(&key(1, 0, 10), Class::Now));
        queue.unpark();
        assert_eq!(take(&mut queue).expect("a request").class, Class::Now);
    }

    #[test]
    fn what_does_not_fit_is_passed_over() {
        let mut queue = Queue::default();
        push(&mut queue, key(1, 0, 10), Class::Now, 0);
        push(&mut queue, key(2, 0, 10), Class::All, 1);
        let fits = |piece: &Piece<u32>| piece.class == Class::All;
        let request = queue.take(fits, |_| 100).expect("the one that fits");
        assert_eq!(request.class, Class::All);
        assert!(queue.take(fits, |_| 100).is_none());
    }

    #[test]
    fn a_piece_that_is_freed_gets_a_request_of_its_own() {
        let mut queue = Queue::default();
        push(&mut queue, key(1, 0, 10), Class::Now, 0);
        push(&mut queue, key(1, 10, 20), Class::Now, 1);
        let slow = take(&mut queue).expect("a request");
        let second = slow.pieces[1].0;
        queue.free(slow.flight, second);
        assert_eq!(queue.carried(slow.flight), [slow.pieces[0].0]);
        let own = take(&mut queue).expect("a request of its own");
        assert_eq!(own.range(), 10..20);
        queue.free(slow.flight, second);
        assert!(
            queue.carries(own.flight, second),
            "not the slow one's any more"
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8, u64, Class),
        Take(u64),
        Finish(usize),
        Break(usize),
        Park,
        Unpark,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let class = prop_oneof![Just(Class::Now), Just(Class::Next), Just(Class::All)];
        let step = prop_oneof![
            4 => (0_u8..2, 0_u64..20, class).prop_map(|(b, s, c)| Step::Push(b, s, c)),
            2 => (10_u64..60).prop_map(Step::Take),
            2 => (0_usize..8).prop_map(Step::Finish),
            1 => (0_usize..8).prop_map(Step::Break),
            1 => Just(Step::Park),
            1 => Just(Step::Unpark),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn prop_every_wish_is_answered_once_and_flies_once(steps in steps()) {
            let mut queue = Queue::default();
            let mut flights: Vec<Request> = Vec::new();
            let (mut asked, mut answered) = (0_u32, HashSet::new());
            for step in steps {
                match step {
                    Step::Push(blob, slot, class) => {
                        push(&mut queue, key(blob, slot * 10, slot * 10 + 11), class, asked);
                        asked += 1;
                    }
                    Step::Take(limit) => {
                        let least = queue.ready.keys().map(|(class, _, _)| *class).min();
                        if let Some(request) = queue.take(|_| true, |_| limit) {
                            prop_assert_eq!(Some(request.class), least);
                            let range = request.range();
                            prop_assert!(request.pieces.len() == 1 || range.end - range.start <= limit);
                            flights.push(request);
                        }
                    }
                    Step::Finish(n) if n < flights.len() => {
                        let flight = flights.swap_remove(n);
                        for (id, _) in &flight.pieces {
                            if let Some(piece) = queue.finish(flight.flight, *id) {
                                for waiter in piece.waiters {
                                    prop_assert!(answered.insert(waiter));
                                }
                            }
                        }
                        queue.give_back(flight.flight);
                    }
                    Step::Break(n) if n < flights.len() => {
                        queue.give_back(flights.swap_remove(n).flight);
                    }
                    Step::Park => {
                        if let Some(id) = queue.ready.values().next().copied() {
                            queue.park(id);
                        }
                    }
                    Step::Unpark => queue.unpark(),
                    Step::Finish(_) | Step::Break(_) => {}
                }
                for flight in &flights {
                    for (id, _) in &flight.pieces {
                        let carriers = flights.iter().filter(|f| queue.carries(f.flight, *id)).count();
                        prop_assert!(carriers <= 1);
                    }
                }
            }
            for flight in flights {
                queue.give_back(flight.flight);
            }
            queue.unpark();
            while let Some(request) = queue.take(|_| true, |_| 50) {
                for (id, _) in &request.pieces {
                    for waiter in queue.finish(request.flight, *id).expect("it flies").waiters {
                        prop_assert!(answered.insert(waiter));
                    }
                }
                queue.give_back(request.flight);
            }
            prop_assert_eq!(answered.len(), asked as usize);
            prop_assert!(queue.pieces.is_empty() && queue.by_key.is_empty() && queue.starts.is_empty());
            prop_assert!(queue.flights.is_empty() && queue.parked.is_empty());
        }
    }
}
