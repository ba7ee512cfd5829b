//! The state of any layer of the store, open or closed.

use super::{Layers, tally::Counts};
use crate::{
    cpu::{Lane, Lost},
    store::{LayerKey, Stored},
    sync::Arc,
};

/// How complete a layer is, and what happened to it since this process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerState {
    /// Every span is durable and every header matched.
    pub complete: bool,
    /// Number of spans. 0 if the layer was downloaded whole.
    pub spans: usize,
    /// Spans on disk.
    pub spans_present: usize,
    /// Size of the compressed layer in bytes.
    pub bytes: u64,
    /// What was counted.
    pub counts: Counts,
    /// The most recent error.
    pub last_error: Option<String>,
}

impl LayerState {
    /// Compressed bytes on disk. Spans have similar sizes.
    pub fn bytes_present(&self) -> u64 {
        if self.complete {
            return self.bytes;
        }
        let (present, spans) = (self.spans_present as u128, self.spans as u128);
        let bytes = u128::from(self.bytes) * present / spans.max(1);
        u64::try_from(bytes).unwrap_or(self.bytes)
    }
}

impl Layers {
    /// The states of these layers, `None` for those that the store does not have.
    ///
    /// # Errors
    /// The pool lost the job.
    pub async fn states(&self, keys: &[LayerKey]) -> Result<Vec<Option<LayerState>>, Lost> {
        let (mut states, mut closed) = (Vec::with_capacity(keys.len()), Vec::new());
        for (position, key) in keys.iter().enumerate() {
            let open = self.get(key).map(|layer| layer.state());
            if open.is_none() {
                closed.push((position, *key));
            }
            states.push(open);
        }
        let store = Arc::clone(&self.context.store);
        let look = move || {
            let stored = |(position, key)| Some((position, key, store.describe(&key)?));
            closed.into_iter().filter_map(stored).collect::<Vec<_>>()
        };
        for (position, key, stored) in self.context.cpu.run(Lane::Files, look).await? {
            states[position] = Some(self.closed(&key, &stored));
        }
        Ok(states)
    }

    /// The state of a layer that is not open.
    fn closed(&self, key: &LayerKey, stored: &Stored) -> LayerState {
        let number = self.context.store.number(key);
        let tally = number.and_then(|number| self.context.tallies.find(number));
        let counts = tally.map(|tally| tally.counts()).unwrap_or_default();
        LayerState {
            complete: stored.complete,
            spans: stored.spans,
            spans_present: stored.spans_present,
            bytes: stored.size,
            last_error: counts.last_error.clone(),
            counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_on_disk_are_those_of_the_spans() {
        let state = |spans_present, spans, complete| LayerState {
            spans_present,
            spans,
            complete,
            bytes: 1000,
            ..LayerState::default()
        };
        assert_eq!(state(0, 0, false).bytes_present(), 0);
        assert_eq!(state(1, 4, false).bytes_present(), 250);
        assert_eq!(state(0, 0, true).bytes_present(), 1000);
    }
}
