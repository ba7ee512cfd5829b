//! Scrubs of the layer store: on request, and slowly in the background.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::SnapshotterTable;
use crate::layer::{Layers, Pace, Repairs, Scrubbed};
use crate::sync::Arc;

/// One week, to find silent corruption while the data can still be downloaded.
const EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// 8 MiB/s, a few percent of the throughput of any disk.
const RATE: u64 = 8 << 20;
/// How often to look for layers that are due.
const LOOK: Duration = Duration::from_secs(600);

/// Interval and rate of the background scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Background {
    every: Duration,
    bytes_per_second: Option<u64>,
}

impl Background {
    /// From the configuration. `None` if disabled there.
    pub(super) fn of(table: &SnapshotterTable) -> Option<Self> {
        let every = match table.scrub_interval_sec {
            0 => EVERY,
            seconds => Duration::from_secs(u64::try_from(seconds).ok()?),
        };
        let bytes_per_second = match table.scrub_bytes_per_sec {
            0 => Some(RATE),
            // Negative means no limit.
            rate => u64::try_from(rate).ok(),
        };
        Some(Self {
            every,
            bytes_per_second,
        })
    }
}

/// Scrubs the layers of a store.
#[derive(Clone)]
pub(super) struct Scrubber {
    pub(super) layers: Arc<Layers>,
    pub(super) repairs: Arc<dyn Repairs>,
}

impl Scrubber {
    /// Scrubs one layer. An error becomes part of the result.
    async fn layer(&self, key: &crate::store::LayerKey, pace: Pace) -> Option<Scrubbed> {
        match self.layers.scrub(key, pace, &*self.repairs).await {
            Ok(found) => found,
            Err(error) => Some(Scrubbed {
                layer: key.layer.to_string(),
                problem: Some(format!("{:#}", anyhow::Error::new(error))),
                ..Scrubbed::default()
            }),
        }
    }

    /// Scrubs all layers as fast as readers allow. Ends when the receiver is dropped.
    pub(super) async fn all(&self, to: mpsc::Sender<Scrubbed>) {
        for (_, key) in self.layers.store().list() {
            if let Some(found) = self.layer(&key, Pace::default()).await
                && to.send(found).await.is_err()
            {
                return;
            }
        }
    }

    /// Scrubs each layer when it is due. Never returns.
    pub(super) async fn keep_going(self, background: Background) {
        let pace = Pace {
            bytes_per_second: background.bytes_per_second,
        };
        loop {
            tokio::time::sleep(LOOK.min(background.every)).await;
            let store = Arc::clone(self.layers.store());
            for (number, key) in store.list() {
                let Some(since) = store.since_scrub(number) else {
                    // A new layer.
                    store.note_scrub(number);
                    continue;
                };
                if since < background.every {
                    continue;
                }
                if let Some(found) = self.layer(&key, pace).await {
                    tracing::info!(
                        layer = found.layer,
                        image = found.image,
                        checked = found.checked,
                        differing = found.differing,
                        refetched = found.refetched,
                        problem = found.problem,
                        "scrubbed a layer"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_the_default_and_negative_disables() {
        let of = |interval, rate| {
            Background::of(&SnapshotterTable {
                scrub_interval_sec: interval,
                scrub_bytes_per_sec: rate,
                ..SnapshotterTable::default()
            })
        };
        let default = of(0, 0).expect("on");
        assert_eq!(default.every, EVERY);
        assert_eq!(default.bytes_per_second, Some(RATE));
        assert_eq!(of(-1, 0), None);
        let other = of(60, -1).expect("on");
        assert_eq!(other.every, Duration::from_secs(60));
        assert_eq!(other.bytes_per_second, None);
    }
}
