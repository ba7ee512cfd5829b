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
        // Neighbors share a byte, like spans that begin inside one.
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
fn a_neighbour_that_is_wanted_much_later_gets_its_own_request() {
    let mut queue = Queue::default();
    let image = Arc::from("image");
    for (start, order) in [(20, 500), (0, 3), (10, 5), (30, 0)] {
        queue.push(key(1, start, start + 10), Class::All, order, &image, 0);
    }
    let ranges: Vec<_> = std::iter::from_fn(|| take(&mut queue).map(|it| it.range())).collect();
    assert_eq!(ranges, [30..40, 0..20, 20..30]);
}

#[test]
fn the_background_follows_the_reader_unless_the_order_is_known() {
    let mut queue = Queue::default();
    let image = Arc::from("image");
    for start in [0, 20, 40, 60] {
        queue.push(key(1, start, start + 10), Class::All, LOOSE, &image, 0);
    }
    queue.push(key(2, 0, 10), Class::All, LOOSE + 1, &image, 0);
    push(&mut queue, key(1, 30, 35), Class::Now, 1);
    let mut taken = || take(&mut queue).map(|it| (it.blob == Digest::sha256(&[1]), it.range()));
    assert_eq!(taken(), Some((true, 30..35)));
    assert_eq!(taken(), Some((true, 40..50)));
    // A piece of another blob becomes urgent.
    assert!(queue.promote(&key(2, 0, 10), Class::Now));
    queue.push(key(2, 50, 60), Class::All, LOOSE + 1, &image, 0);
    queue.push(key(3, 0, 10), Class::All, 7, &image, 0);
    let rest: Vec<_> = std::iter::from_fn(|| take(&mut queue).map(|it| it.range())).collect();
    // The urgent one, the one with a known order, behind the reader, and the others in their order.
    assert_eq!(rest, [0..10, 0..10, 50..60, 0..10, 20..30, 60..70]);
}

#[test]
fn a_reader_leads_the_background_of_its_image_while_it_reads() {
    let mut queue = Queue::default();
    let (own, other) = (Arc::from("image"), Arc::from("other"));
    queue.push(key(2, 0, 10), Class::All, LOOSE, &other, 0);
    for start in [0, 40, 60] {
        queue.push(key(1, start, start + 10), Class::All, LOOSE + 1, &own, 0);
    }
    push(&mut queue, key(1, 30, 35), Class::Now, 1);
    let mut ranges = Vec::new();
    for round in 0..5 {
        if round == 3 {
            queue.forget_reader();
        }
        ranges.push(take(&mut queue).expect("a request").range());
    }
    // The older layer of the other image is not delayed.
    assert_eq!(ranges, [30..35, 0..10, 40..50, 0..10, 60..70]);
}

#[test]
fn a_reader_goes_first_and_next_joins_its_request() {
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
fn equal_demands_share_one_piece() {
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
fn an_urgent_piece_far_ahead_in_a_flight_gets_its_own_request() {
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
        "close enough to stay"
    );
    assert!(queue.promote(&key(1, 2 * NEAR, 3 * NEAR), Class::Now));
    let own = take(&mut queue).expect("a request of its own");
    assert_eq!(own.range(), 2 * NEAR..3 * NEAR);
    assert!(!queue.carries(request.flight, own.pieces[0].0));
    assert!(queue.finish(request.flight, own.pieces[0].0).is_none());
    assert_eq!(queue.give_back(request.flight).len(), 2);
}

#[test]
fn parked_pieces_are_not_taken_until_unparked() {
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
fn pieces_that_do_not_fit_are_skipped() {
    let mut queue = Queue::default();
    push(&mut queue, key(1, 0, 10), Class::Now, 0);
    push(&mut queue, key(2, 0, 10), Class::All, 1);
    let fits = |piece: &Piece<u32>| piece.class == Class::All;
    let request = queue.take(fits, |_| 100).expect("the one that fits");
    assert_eq!(request.class, Class::All);
    assert!(queue.take(fits, |_| 100).is_none());
}

#[test]
fn a_freed_piece_gets_its_own_request() {
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
        "no longer carried by the slow request"
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
    fn prop_every_demand_is_answered_once_and_carried_once(steps in steps()) {
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
                for waiter in queue.finish(request.flight, *id).expect("the request carries it").waiters {
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
