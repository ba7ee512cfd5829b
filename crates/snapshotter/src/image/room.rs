//! Frees disk space by dropping spans: least recently used layers first, complete layers last.

use std::collections::HashSet;

use tracing::warn;

use super::Images;
use super::discover::explain;
use crate::layer::UseOrder;
use crate::store::LayerKey;

impl Images {
    /// Drops spans of lazy layers until the wanted space is free. Skips layers that a request
    /// holds, that are in `in_use`, or that were used at or after `since`, when `in_use` was read.
    pub(crate) async fn make_room(&self, in_use: &HashSet<LayerKey>, since: UseOrder) {
        let layers = &self.0.parts.layers;
        let mut unused = layers.store().list();
        unused.retain(|(_, key)| key.ztoc.is_some() && !in_use.contains(key));
        layers.sort_by_use(&mut unused).await;
        for (_, key) in unused {
            let wanted = layers.wanted();
            if wanted == 0 {
                return;
            }
            // New requests for the layer wait until its eviction ends.
            let Some(_alone) = self.0.holds.begin_removal(key.layer) else {
                continue;
            };
            if let Err(error) = layers.evict(&key, wanted, since, self).await {
                let (layer, error) = (key.layer.to_string(), explain(&error));
                warn!(layer, error, "a layer that nothing uses keeps its space");
            }
        }
    }
}
