//! The states of a layer's spans. Pure: [`Span::step`] is the only transition, and waiters are
//! values.
//!
//! A span is fetched by *demands*: a patient one (background, waits indefinitely) and an urgent one
//! (a reader or readahead, ends with the read budget). Both may be pending for the same bytes; the
//! scheduler makes one request for them.
//!
//! | state | event | next | effect |
//! |--|--|--|--|
//! | absent | want now | fetching, urgent | demand now |
//! | absent | want next | fetching, urgent | demand next |
//! | absent | want all | fetching, patient | demand all |
//! | fetching | want now, no urgent demand | fetching, urgent too | demand now |
//! | fetching | want now, a readahead demand is pending | fetching | promote |
//! | fetching | want next or all | fetching | - |
//! | fetching | delivered | filling | fill |
//! | fetching | urgent demand failed | fetching if patient, else absent | fail waiters |
//! | fetching | patient demand failed | fetching if urgent, else absent | fail waiters if absent |
//! | filling | want now | filling | hurry: the job may be in a background queue |
//! | filling | want next or all | filling | - |
//! | filling | decoded | filling | serve waiters from memory |
//! | filling | filled | present | wake waiters |
//! | filling | wrong bytes, tries left | fetching | demand again |
//! | filling | wrong bytes, no tries left; undecodable | absent | fail waiters |
//! | filling | no room | absent | serve waiters from memory |
//! | present | lost (a sync failed, or the span was removed) | absent | - |
//!
//! A delivery for a span that is not fetching is dropped, because another delivery was first.

use crate::fetch::Class;

/// One of the two demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demander {
    /// Waits indefinitely.
    Patient,
    /// Ends with the read budget.
    Urgent,
}

/// The state of one span. `W` is the type of its waiters.
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

/// An event of a span.
#[derive(Debug)]
pub(super) enum Event<W> {
    /// The span is wanted. A reader passes its waiter.
    Want(Class, Option<W>),
    /// Its bytes have arrived.
    Delivered,
    /// A demand for it has failed.
    Failed(Demander),
    /// Its bytes are valid and in memory.
    Decoded,
    /// Its bytes are stored.
    Filled,
    /// Its bytes had the wrong digest. `most` is the maximum number of fetches.
    Wrong { most: u32 },
    /// Its bytes cannot be decoded.
    Broken,
    /// Its bytes are valid but cannot be stored.
    NoRoom,
    /// Its stored bytes are lost or removed.
    Lost,
}

/// What the caller must do after a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect<W> {
    None,
    /// Submit a demand to the scheduler.
    Demand(Class),
    /// Tell the scheduler that a reader waits for its demand now.
    Promote,
    /// Verify and decompress the bytes that arrived.
    Fill,
    /// A reader waits for bytes that arrived: fill the span before those of the background.
    Hurry,
    /// The span is present. Returns the waiter.
    Ready(W),
    /// Let these waiters continue.
    Wake(Vec<W>),
    /// Pass the error to these waiters.
    Fail(Vec<W>),
    /// Answer these waiters from memory.
    Serve(Vec<W>),
}

impl<W> Span<W> {
    /// The transition function; see the table above.
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
                    (Class::Now, Some(Class::Next | Class::Pull | Class::All)) => {
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
                // Without a reader, the next try belongs to the background.
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

    /// Whether the span is neither present nor in progress.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Span::Absent)
    }
}
