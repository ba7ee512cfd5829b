//! The states of a layer's spans. Pure: [`Span::step`] is the only transition, waiters are values.
//!
//! A span is fetched by *demands*: a patient one (background, waits for ever) and an urgent one (a reader or a guess, ends
//! with the read budget). Both may be out for the same bytes; the scheduler makes one request of them.
//!
//! | state | event | next | effect |
//! |--|--|--|--|
//! | absent | want now | fetching, urgent | demand now |
//! | absent | want next | fetching, urgent | demand next |
//! | absent | want all | fetching, patient | demand all |
//! | fetching | want now, nobody urgent | fetching, urgent too | demand now |
//! | fetching | want now, a guess is out | fetching | promote |
//! | fetching | want next or all | fetching | - |
//! | fetching | delivered | filling | fill |
//! | fetching | urgent demand failed | fetching if patient, else absent | fail waiters |
//! | fetching | patient demand failed | fetching if urgent, else absent | fail waiters if absent |
//! | filling | want now | filling | hurry: the background may have it in its queue |
//! | filling | want next or all | filling | - |
//! | filling | decoded | filling | serve waiters from memory |
//! | filling | filled | present | wake waiters |
//! | filling | wrong bytes, tries left | fetching | demand again |
//! | filling | wrong bytes, none left; undecodable | absent | fail waiters |
//! | filling | no room | absent | serve waiters from memory |
//! | present | lost (a sync failed) | absent | - |
//!
//! A delivery that finds a span neither fetching nor its own is dropped: another one was first.

use crate::fetch::Class;

/// Which of the two demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demander {
    /// Waits for ever.
    Patient,
    /// Ends with the read budget.
    Urgent,
}

/// One span; `W` is what waits for it.
#[derive(Debug)]
pub(super) enum Span<W> {
    Absent,
    Fetching {
        patient: bool,
        urgent: Option<Class>,
        tries: u32,
        waiters: Vec<W>,
    },
    Filling {
        tries: u32,
        waiters: Vec<W>,
    },
    Present,
}

/// What happens to a span.
#[derive(Debug)]
pub(super) enum Event<W> {
    /// Somebody wants it; a reader brings what waits.
    Want(Class, Option<W>),
    /// Its bytes have come.
    Delivered,
    /// A demand for it has failed.
    Failed(Demander),
    /// Its bytes are right, and in memory.
    Decoded,
    /// Its bytes are in the store.
    Filled,
    /// Its bytes had the wrong digest; the most fetches it may take in all.
    Wrong { most: u32 },
    /// Its bytes cannot be used, or reading them failed for good.
    Broken,
    /// Its bytes are right, but there is no room for them.
    NoRoom,
    /// What was in the store is gone.
    Lost,
}

/// What is to be done after a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect<W> {
    None,
    /// Hand a demand to the scheduler.
    Demand(Class),
    /// Tell the scheduler that its demand is a reader's now.
    Promote,
    /// Verify and inflate the bytes that came.
    Fill,
    /// A reader waits for bytes that came: before those of the background.
    Hurry,
    /// It is there already: the waiter is handed back.
    Ready(W),
    /// These may go on.
    Wake(Vec<W>),
    /// These get the error.
    Fail(Vec<W>),
    /// These get the bytes from memory.
    Serve(Vec<W>),
}

impl<W> Span<W> {
    /// The one transition function; see the table above.
    pub(super) fn step(&mut self, event: Event<W>) -> Effect<W> {
        match event {
            Event::Want(class, waiter) => self.want(class, waiter),
            Event::Delivered => match std::mem::replace(self, Span::Absent) {
                Span::Fetching { tries, waiters, .. } => {
                    *self = Span::Filling {
                        tries: tries + 1,
                        waiters,
                    };
                    Effect::Fill
                }
                other => {
                    *self = other;
                    Effect::None
                }
            },
            Event::Failed(demander) => self.failed(demander),
            Event::Decoded => match self {
                Span::Filling { waiters, .. } if !waiters.is_empty() => {
                    Effect::Serve(std::mem::take(waiters))
                }
                _ => Effect::None,
            },
            Event::Filled => self.leave_filling(Span::Present, Effect::Wake),
            Event::Wrong { most } => self.wrong(most),
            Event::Broken => self.leave_filling(Span::Absent, Effect::Fail),
            Event::NoRoom => self.leave_filling(Span::Absent, Effect::Serve),
            Event::Lost => {
                if matches!(self, Span::Present) {
                    *self = Span::Absent;
                }
                Effect::None
            }
        }
    }

    fn want(&mut self, class: Class, waiter: Option<W>) -> Effect<W> {
        match self {
            Span::Absent => {
                let waiters = waiter.into_iter().collect();
                let patient = class == Class::All;
                let urgent = (!patient).then_some(class);
                *self = Span::Fetching {
                    patient,
                    urgent,
                    tries: 0,
                    waiters,
                };
                Effect::Demand(class)
            }
            Span::Fetching {
                urgent, waiters, ..
            } => {
                waiters.extend(waiter);
                match (class, *urgent) {
                    (Class::Now, None) => {
                        *urgent = Some(class);
                        Effect::Demand(class)
                    }
                    (Class::Now, Some(Class::Next | Class::All)) => {
                        *urgent = Some(class);
                        Effect::Promote
                    }
                    _ => Effect::None,
                }
            }
            Span::Filling { waiters, .. } => {
                waiters.extend(waiter);
                if class == Class::Now {
                    Effect::Hurry
                } else {
                    Effect::None
                }
            }
            Span::Present => waiter.map_or(Effect::None, Effect::Ready),
        }
    }

    fn failed(&mut self, demander: Demander) -> Effect<W> {
        let Span::Fetching {
            patient,
            urgent,
            waiters,
            ..
        } = self
        else {
            return Effect::None;
        };
        match demander {
            Demander::Patient => *patient = false,
            Demander::Urgent => *urgent = None,
        }
        if *patient && demander == Demander::Urgent {
            return Effect::Fail(std::mem::take(waiters));
        }
        if *patient || urgent.is_some() {
            return Effect::None;
        }
        let waiters = std::mem::take(waiters);
        *self = Span::Absent;
        Effect::Fail(waiters)
    }

    fn wrong(&mut self, most: u32) -> Effect<W> {
        match std::mem::replace(self, Span::Absent) {
            Span::Filling { tries, waiters } if tries < most => {
                // Without a reader the next try is the background's again.
                let patient = waiters.is_empty();
                let urgent = (!patient).then_some(Class::Now);
                *self = Span::Fetching {
                    patient,
                    urgent,
                    tries,
                    waiters,
                };
                Effect::Demand(if patient { Class::All } else { Class::Now })
            }
            Span::Filling { waiters, .. } => Effect::Fail(waiters),
            other => {
                *self = other;
                Effect::None
            }
        }
    }

    fn leave_filling(
        &mut self,
        to: Span<W>,
        effect: impl FnOnce(Vec<W>) -> Effect<W>,
    ) -> Effect<W> {
        match std::mem::replace(self, Span::Absent) {
            Span::Filling { waiters, .. } => {
                *self = to;
                effect(waiters)
            }
            other => {
                *self = other;
                Effect::None
            }
        }
    }

    /// Whether nothing of it is there or under way.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Span::Absent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fetching(patient: bool, urgent: Option<Class>, waiters: Vec<u32>) -> Span<u32> {
        Span::Fetching {
            patient,
            urgent,
            tries: 0,
            waiters,
        }
    }

    #[test]
    fn a_reader_takes_a_span_through_its_life() {
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
    fn a_reader_that_joins_the_background_brings_its_own_patience() {
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
    fn a_guess_becomes_a_readers() {
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
    fn wrong_bytes_are_fetched_again_a_bounded_number_of_times() {
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
        assert_eq!(span.step(Event::Decoded), Effect::None, "nothing has come");
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
            // Demands that are out, as the scheduler would have them: patient, urgent.
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
                    prop_assert_eq!((*p, u.is_some()), (patient, urgent), "states follow the demands");
                    prop_assert!(waiters.is_empty() || urgent, "who waits has a demand that ends");
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
}
