//! The order in which layers were last used.

use std::collections::HashMap;

use crate::store::LayerNumber;

/// A position in the order of uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UseOrder(u64);

/// The last use of each layer, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Uses {
    next: UseOrder,
    last: HashMap<LayerNumber, UseOrder>,
}

impl Uses {
    pub(super) fn note(&mut self, layer: LayerNumber) {
        self.last.insert(layer, self.next);
        self.next.0 += 1;
    }

    pub(super) fn forget(&mut self, layer: LayerNumber) {
        self.last.remove(&layer);
    }

    /// `None` if it was last used before this process started, or never.
    pub(super) fn last(&self, layer: LayerNumber) -> Option<UseOrder> {
        self.last.get(&layer).copied()
    }

    /// The position of the next use.
    pub(super) fn now(&self) -> UseOrder {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_have_an_order() {
        let mut uses = Uses::default();
        let [one, two] = [2, 3].map(LayerNumber);
        uses.note(one);
        let now = uses.now();
        uses.note(two);
        assert!(uses.last(one) < Some(now) && uses.last(two) >= Some(now));
        uses.note(one);
        assert!(uses.last(one) > uses.last(two));
        uses.forget(one);
        assert_eq!(uses.last(one), None);
        uses.note(one);
        assert!(uses.last(one) > uses.last(two), "positions are not reused");
    }
}
