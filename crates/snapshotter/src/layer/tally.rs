//! What was downloaded for a layer and how long its readers waited, since this process started.
//! Outlives the open layer, because a complete layer is closed.

use std::{collections::HashMap, time::Duration};

use crate::{
    store::LayerNumber,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Counts of spans and their compressed bytes.
#[derive(Debug, Default)]
pub(super) struct Spans {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Spans {
    pub(super) fn add(&self, bytes: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that are not those of a span.
    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn get(&self) -> Fetched {
        Fetched {
            spans: self.count.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// The counters of one layer.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// For readers and readahead.
    pub(super) on_demand: Spans,
    /// To complete the layer.
    pub(super) background: Spans,
    waits: AtomicU64,
    waited_us: AtomicU64,
    longest_us: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Tally {
    /// A read waited.
    pub(super) fn waited(&self, micros: u64) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waited_us.fetch_add(micros, Ordering::Relaxed);
        self.longest_us.fetch_max(micros, Ordering::Relaxed);
    }

    /// Keeps the last error of a layer that is closed.
    pub(super) fn keep_error(&self, error: Option<String>) {
        if let Some(error) = error {
            *self.last_error.lock() = Some(error);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let micros = |counter: &AtomicU64| Duration::from_micros(counter.load(Ordering::Relaxed));
        Counts {
            on_demand: self.on_demand.get(),
            background: self.background.get(),
            waits: self.waits.load(Ordering::Relaxed),
            waited: micros(&self.waited_us),
            longest: micros(&self.longest_us),
            last_error: self.last_error.lock().clone(),
        }
    }
}

/// Downloaded spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Their number.
    pub spans: u64,
    /// Their compressed bytes.
    pub bytes: u64,
}

/// The values of the counters of one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans for readers and readahead.
    pub on_demand: Fetched,
    /// Spans to complete the layer.
    pub background: Fetched,
    /// Reads that waited.
    pub waits: u64,
    /// How long they waited in total.
    pub waited: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// The most recent error before the layer was closed.
    pub last_error: Option<String>,
}

/// The counters of all layers.
#[derive(Debug, Default)]
pub(super) struct Tallies(Mutex<HashMap<LayerNumber, Arc<Tally>>>);

impl Tallies {
    /// The counters of a layer, made when needed.
    pub(super) fn of(&self, layer: LayerNumber) -> Arc<Tally> {
        Arc::clone(self.0.lock().entry(layer).or_default())
    }

    /// The counters of a layer, if it was opened.
    pub(super) fn find(&self, layer: LayerNumber) -> Option<Arc<Tally>> {
        self.0.lock().get(&layer).cloned()
    }

    /// Forgets a layer that is removed.
    pub(super) fn forget(&self, layer: LayerNumber) {
        self.0.lock().remove(&layer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_outlive_the_layer_until_it_is_removed() {
        let tallies = Tallies::default();
        let number = LayerNumber(2);
        {
            let tally = tallies.of(number);
            tally.on_demand.add(7);
            tally.background.add(5);
            tally.background.add(6);
            tally.waited(30);
            tally.waited(10);
            tally.keep_error(Some("gone".to_owned()));
            tally.keep_error(None);
        }
        let counts = tallies.find(number).expect("known").counts();
        let wanted = Counts {
            on_demand: Fetched { spans: 1, bytes: 7 },
            background: Fetched {
                spans: 2,
                bytes: 11,
            },
            waits: 2,
            waited: Duration::from_micros(40),
            longest: Duration::from_micros(30),
            last_error: Some("gone".to_owned()),
        };
        assert_eq!(counts, wanted);
        tallies.forget(number);
        assert!(tallies.find(number).is_none());
    }
}
