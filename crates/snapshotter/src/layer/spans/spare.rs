//! Keeps spans that the disk did not accept in memory for a while. Otherwise every read on a full
//! disk would download and decompress its span again. Bounded for the node.

use std::collections::VecDeque;

use crate::{layer::data::Held, store::LayerNumber, sync::Mutex};

/// Maximum total bytes.
const MOST: usize = 32 << 20;

#[derive(Debug)]
struct Kept {
    layer: LayerNumber,
    span: u32,
    held: Held,
}

/// The most recent spans that could not be stored.
#[derive(Debug, Default)]
pub(in crate::layer) struct Spare(Mutex<VecDeque<Kept>>);

impl Spare {
    /// Keeps a span and drops the oldest ones to make room. A span that is larger than the limit is
    /// not kept.
    pub(super) fn keep(&self, layer: LayerNumber, span: u32, held: Held) {
        let mut kept = self.0.lock();
        kept.retain(|other| (other.layer, other.span) != (layer, span));
        kept.push_back(Kept { layer, span, held });
        let mut bytes: usize = kept.iter().map(|kept| kept.held.bytes.len()).sum();
        while bytes > MOST {
            let Some(oldest) = kept.pop_front() else {
                break;
            };
            bytes -= oldest.held.bytes.len();
        }
    }

    pub(super) fn get(&self, layer: LayerNumber, span: u32) -> Option<Held> {
        let kept = self.0.lock();
        let same = |kept: &&Kept| (kept.layer, kept.span) == (layer, span);
        kept.iter().find(same).map(|kept| kept.held.clone())
    }

    pub(super) fn has(&self, layer: LayerNumber, span: u32) -> bool {
        self.get(layer, span).is_some()
    }

    /// The spans of a layer that are kept.
    pub(super) fn of(&self, layer: LayerNumber) -> Vec<(u32, Held)> {
        let kept = self.0.lock();
        let own = kept.iter().filter(|kept| kept.layer == layer);
        own.map(|kept| (kept.span, kept.held.clone())).collect()
    }

    /// Drops a span that was stored.
    pub(super) fn stored(&self, layer: LayerNumber, span: u32) {
        self.drop_those(|kept| (kept.layer, kept.span) == (layer, span));
    }

    /// Drops the spans of a removed layer.
    pub(super) fn forget(&self, layer: LayerNumber) {
        self.drop_those(|kept| kept.layer == layer);
    }

    fn drop_those(&self, which: impl Fn(&Kept) -> bool) {
        let mut kept = self.0.lock();
        kept.retain(|kept| !which(kept));
        if kept.is_empty() {
            kept.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Arc;

    #[test]
    fn the_newest_are_kept() {
        let spare = Spare::default();
        let held = |bytes: usize| Held {
            tar: 0..bytes as u64,
            bytes: Arc::new(vec![0; bytes]),
        };
        let (one, two) = (LayerNumber(2), LayerNumber(3));
        spare.keep(one, 0, held(MOST / 2));
        spare.keep(one, 0, held(MOST / 2));
        spare.keep(two, 0, held(MOST / 2));
        assert!(spare.get(one, 0).is_some() && spare.get(two, 0).is_some());
        spare.keep(two, 1, held(1));
        assert!(spare.get(one, 0).is_none() && spare.get(two, 1).is_some());
        spare.keep(one, 5, held(MOST + 1));
        assert!(spare.get(one, 5).is_none());
        spare.keep(one, 6, held(1));
        spare.keep(two, 7, held(1));
        spare.keep(two, 8, held(1));
        spare.stored(two, 8);
        let spans: Vec<u32> = spare.of(two).into_iter().map(|(span, _)| span).collect();
        assert_eq!(spans, [7]);
        spare.forget(two);
        assert!(spare.get(two, 7).is_none() && spare.get(one, 6).is_some());
    }
}
