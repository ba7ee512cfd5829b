//! What metrics report about layers. Takes short locks, and does no I/O on layers.

use std::collections::{HashMap, HashSet};

use super::{Images, Parts};
use crate::layer::Progress;
use crate::metrics::{Figures, LayerFigures, Pause};

impl Images {
    /// The state of the layers.
    pub(crate) fn figures(&self) -> Figures {
        let Parts { layers, mounts, .. } = &self.0.parts;
        let mut figures = Figures {
            stored: layers.store().list().len(),
            cache: layers.cache_figures(),
            ..Figures::default()
        };
        let mut sizes = HashMap::new();
        for (key, size) in mounts.mounted() {
            // A mounted layer is closed only when it is complete.
            let Some(layer) = layers.get(&key).filter(|layer| !layer.is_complete()) else {
                figures.complete += 1;
                sizes.insert(key, (size, size));
                continue;
            };
            figures.incomplete += 1;
            sizes.insert(key, (size, fetched(&layer.progress())));
            if self.0.options.background {
                figures.queued += 1;
                match layer.paused() {
                    Some(Pause::Disk) => figures.paused_by_disk += 1,
                    Some(Pause::Failure) => figures.paused_by_failure += 1,
                    None => {}
                }
            }
        }
        let points = mounts.mount_points().into_iter();
        figures.layers = points
            .filter_map(|(at, key)| {
                let (size, fetched) = sizes.get(&key).copied()?;
                Some(LayerFigures {
                    digest: key.layer,
                    mountpoint: at.display().to_string(),
                    size,
                    fetched,
                })
            })
            .collect();
        figures
    }

    /// The digests of the layers in the store.
    pub(crate) fn stored(&self) -> HashSet<String> {
        let stored = self.0.parts.layers.store().list().into_iter();
        stored.map(|(_, key)| key.layer.to_string()).collect()
    }
}

/// Compressed bytes on disk. Spans have similar sizes.
fn fetched(progress: &Progress) -> u64 {
    let (present, total) = (progress.spans_present as u128, progress.spans_total as u128);
    let bytes = u128::from(progress.bytes_total) * present / total.max(1);
    u64::try_from(bytes).unwrap_or(progress.bytes_total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fetched_part_is_that_of_the_spans() {
        let progress = |spans_present, spans_total| Progress {
            spans_present,
            spans_total,
            bytes_total: 1000,
            ..Progress::default()
        };
        assert_eq!(fetched(&progress(0, 0)), 0);
        assert_eq!(fetched(&progress(1, 4)), 250);
        assert_eq!(fetched(&progress(4, 4)), 1000);
    }
}
