//! Tests of one span's states, with fixed and random sequences of events.

use proptest::prelude::*;

use super::state::{Demander, Effect, Event, Span};
use crate::fetch::Class;

fn fetching(patient: bool, urgent: Option<Class>, waiters: Vec<u32>) -> Span<u32> {
    Span::Fetching {
        patient,
        urgent,
        tries: 0,
        waiters,
    }
}

#[test]
fn a_reader_takes_a_span_through_all_states() {
    let mut span = Span::Absent;
    assert_eq!(
        span.step(Event::Want(Class::Now, Some(1))),
        Effect::Demand(Class::Now)
    );
    assert_eq!(span.step(Event::Want(Class::Now, Some(2))), Effect::None);
    assert_eq!(span.step(Event::Delivered), Effect::Fill);
    assert_eq!(
        span.step(Event::Delivered),
        Effect::None,
        "the second of two equal deliveries"
    );
    assert_eq!(span.step(Event::Want(Class::Now, Some(3))), Effect::Hurry);
    assert_eq!(span.step(Event::Filled), Effect::Wake(vec![1, 2, 3]));
    assert_eq!(
        span.step(Event::Want(Class::Now, Some(4))),
        Effect::Ready(4)
    );
    assert_eq!(span.step(Event::Lost), Effect::None);
    assert!(span.is_absent());
}

#[test]
fn a_reader_that_joins_the_background_keeps_its_own_budget() {
    let mut span = fetching(true, None, vec![]);
    assert_eq!(
        span.step(Event::Want(Class::Now, Some(1))),
        Effect::Demand(Class::Now)
    );
    assert_eq!(
        span.step(Event::Failed(Demander::Urgent)),
        Effect::Fail(vec![1])
    );
    assert!(!span.is_absent(), "the background still waits");
    assert_eq!(span.step(Event::Delivered), Effect::Fill);
}

#[test]
fn readahead_is_promoted_when_a_reader_waits() {
    let mut span = Span::Absent;
    assert_eq!(
        span.step(Event::Want(Class::Next, None)),
        Effect::Demand(Class::Next)
    );
    assert_eq!(span.step(Event::Want(Class::Now, Some(1))), Effect::Promote);
    assert_eq!(
        span.step(Event::Failed(Demander::Urgent)),
        Effect::Fail(vec![1])
    );
    assert!(span.is_absent());
}

#[test]
fn wrong_bytes_are_fetched_again_a_limited_number_of_times() {
    let mut span = Span::Absent;
    span.step(Event::Want(Class::Now, Some(1)));
    span.step(Event::Delivered);
    assert_eq!(
        span.step(Event::Wrong { most: 2 }),
        Effect::Demand(Class::Now)
    );
    span.step(Event::Delivered);
    assert_eq!(span.step(Event::Wrong { most: 2 }), Effect::Fail(vec![1]));
    assert!(span.is_absent());
}

#[test]
fn without_room_readers_are_served_from_memory() {
    let mut span = Span::Absent;
    span.step(Event::Want(Class::Now, Some(1)));
    span.step(Event::Delivered);
    assert_eq!(span.step(Event::NoRoom), Effect::Serve(vec![1]));
    assert!(span.is_absent());
}

#[test]
fn readers_are_served_from_memory_before_the_disk_has_it() {
    let mut span = Span::Absent;
    span.step(Event::Want(Class::Now, Some(1)));
    assert_eq!(
        span.step(Event::Decoded),
        Effect::None,
        "nothing has arrived"
    );
    span.step(Event::Delivered);
    assert_eq!(span.step(Event::Decoded), Effect::Serve(vec![1]));
    assert_eq!(span.step(Event::Decoded), Effect::None);
    assert_eq!(span.step(Event::Want(Class::Now, Some(2))), Effect::Hurry);
    assert_eq!(span.step(Event::Filled), Effect::Wake(vec![2]));
}

#[derive(Clone, Debug)]
enum Move {
    Want(Class, bool),
    Other(u8),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let class = prop_oneof![Just(Class::Now), Just(Class::Next), Just(Class::All)];
    let step = prop_oneof![
        (class, any::<bool>())
            .prop_map(|(class, waits)| Move::Want(class, waits && class == Class::Now)),
        (0_u8..9).prop_map(Move::Other),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn prop_no_waiter_is_lost_or_answered_twice(moves in moves()) {
        let mut span = Span::Absent;
        let (mut asked, mut answered) = (0_u32, Vec::new());
        // Pending demands, as in the scheduler: patient and urgent.
        let (mut patient, mut urgent) = (false, false);
        for step in moves {
            let event = match step {
                Move::Want(class, waits) => {
                    let waiter = waits.then(|| { asked += 1; asked });
                    Event::Want(class, waiter)
                }
                Move::Other(0) if patient || urgent => { (patient, urgent) = (false, false); Event::Delivered }
                Move::Other(1) if patient => { patient = false; Event::Failed(Demander::Patient) }
                Move::Other(2) if urgent => { urgent = false; Event::Failed(Demander::Urgent) }
                Move::Other(3) => Event::Filled,
                Move::Other(4) => Event::Wrong { most: 2 },
                Move::Other(5) => Event::Broken,
                Move::Other(6) => Event::NoRoom,
                Move::Other(7) => Event::Lost,
                Move::Other(8) => Event::Decoded,
                Move::Other(_) => continue,
            };
            match span.step(event) {
                Effect::Demand(Class::All) => { prop_assert!(!patient); patient = true; }
                Effect::Demand(_) => { prop_assert!(!urgent); urgent = true; }
                Effect::Promote => prop_assert!(urgent),
                Effect::Ready(waiter) => answered.push(waiter),
                Effect::Wake(waiters) | Effect::Fail(waiters) | Effect::Serve(waiters) => answered.extend(waiters),
                Effect::Fill | Effect::Hurry | Effect::None => {}
            }
            if let Span::Fetching { patient: p, urgent: u, waiters, .. } = &span {
                prop_assert_eq!((*p, u.is_some()), (patient, urgent), "the state matches the demands");
                prop_assert!(waiters.is_empty() || urgent, "a waiter has an urgent demand");
            }
            if matches!(span, Span::Absent | Span::Present) {
                prop_assert_eq!(answered.len(), asked as usize);
            }
        }
        let mut unique = answered.clone();
        unique.sort_unstable();
        unique.dedup();
        prop_assert_eq!(unique.len(), answered.len());
    }
}
