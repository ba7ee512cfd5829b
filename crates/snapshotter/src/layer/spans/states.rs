//! The states of all spans of a layer.

use super::state::{Effect, Event, Span};
use crate::fetch::Class;

/// All states, by span. `W` is the type of their waiters.
#[derive(Debug)]
pub(super) struct States<W> {
    spans: Vec<Span<W>>,
    /// All spans before this one are present, which is usually most of a layer.
    first_missing: usize,
}

impl<W> States<W> {
    pub(super) fn new(spans: impl Iterator<Item = Span<W>>) -> States<W> {
        States {
            spans: spans.collect(),
            first_missing: 0,
        }
    }

    /// Applies an event to a span. Does nothing if there is no such span.
    pub(super) fn step(&mut self, span: u32, event: Event<W>) -> Effect<W> {
        let index = span as usize;
        if matches!(event, Event::Lost) {
            self.first_missing = self.first_missing.min(index);
        }
        let span = self.spans.get_mut(index);
        span.map_or(Effect::None, |span| span.step(event))
    }

    /// `None` if there is no such span.
    pub(super) fn get(&self, span: u32) -> Option<&Span<W>> {
        self.spans.get(span as usize)
    }

    /// Whether a span is present.
    pub(super) fn is_present(&self, span: u32) -> bool {
        matches!(self.spans.get(span as usize), Some(Span::Present))
    }

    /// Claims a span for a caller that has its bytes. Returns false if the span is present, being
    /// filled, or urgently wanted. A pending background demand for it then has no effect.
    pub(super) fn claim(&mut self, span: u32) -> bool {
        match self.spans.get(span as usize) {
            Some(Span::Absent) => drop(self.step(span, Event::Want(Class::All, None))),
            Some(Span::Fetching { urgent: None, .. }) => {}
            _ => return false,
        }
        matches!(self.step(span, Event::Delivered), Effect::Fill)
    }

    /// Whether a reader waits for a span whose bytes have arrived.
    pub(super) fn is_waited_for(&self, span: u32) -> bool {
        let span = self.spans.get(span as usize);
        matches!(span, Some(Span::Filling { waiters, .. }) if !waiters.is_empty())
    }

    /// The spans that are not present, in order.
    pub(super) fn missing(&mut self) -> impl Iterator<Item = (u32, &Span<W>)> {
        let present = |span: &Span<W>| matches!(span, Span::Present);
        let rest = self.spans.iter().skip(self.first_missing);
        self.first_missing += rest.take_while(|span| present(span)).count();
        let rest = (0_u32..).zip(&self.spans).skip(self.first_missing);
        rest.filter(move |(_, span)| !present(span))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fetch::Class;

    #[test]
    fn claim_succeeds_against_the_background_and_not_against_a_reader() {
        let mut states: States<u8> = States::new((0..4).map(|_| Span::Absent));
        assert_eq!(
            states.step(1, Event::Want(Class::All, None)),
            Effect::Demand(Class::All)
        );
        assert_eq!(
            states.step(2, Event::Want(Class::Now, Some(7))),
            Effect::Demand(Class::Now)
        );
        assert_eq!(
            [0, 1, 2, 4].map(|span| states.claim(span)),
            [true, true, false, false]
        );
        assert!(!states.claim(1), "already being filled");
        assert_eq!(states.step(1, Event::Delivered), Effect::None, "too late");
        assert_eq!(states.step(1, Event::Filled), Effect::Wake(Vec::new()));
        assert!(!states.claim(1), "already present");
    }

    proptest! {
        #[test]
        fn prop_missing_spans_are_those_not_present(steps in prop::collection::vec((0_u32..6, 0_u8..5, any::<bool>()), 0..80)) {
            let mut states: States<()> = States::new((0..5).map(|_| Span::Absent));
            for (span, event, look) in steps {
                let event = match event {
                    0 => Event::Want(Class::All, None),
                    1 | 2 => Event::Delivered,
                    3 => Event::Filled,
                    _ => Event::Lost,
                };
                states.step(span, event);
                if look {
                    let found: Vec<_> = states.missing().map(|(span, _)| span).collect();
                    let is_missing = |span: &u32| !matches!(states.spans[*span as usize], Span::Present);
                    prop_assert_eq!(found, (0..5).filter(is_missing).collect::<Vec<_>>());
                }
            }
        }
    }
}
