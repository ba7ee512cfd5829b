//! Room on a full node: layers that no running container uses give back their space.

use std::collections::HashSet;
use std::time::Duration;

use tracing::debug;

use super::metadata::Kind;
use super::{Shared, SnapshotError, Snapshotter};
use crate::cpu::Lane;
use crate::store::LayerKey;

/// How often the disk is looked at. Without limits that are passed it is one call.
const LOOK: Duration = Duration::from_secs(2);

impl Snapshotter {
    /// Keeps the disk above its floor and the layers below their limit, as far as layers can give back. Never ends.
    pub async fn keep_room(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(images) = self.shared.parts.images.get() else {
                continue;
            };
            if images.layers().wanted() == 0 {
                continue;
            }
            // A container that starts while this looks uses its layers later than that.
            let since = images.layers().use_order();
            match self.run(Lane::Files, Shared::layers_in_use).await {
                Ok(in_use) => images.make_room(&in_use, since).await,
                Err(error) => {
                    debug!(error = &error as &dyn std::error::Error, "what is in use");
                }
            }
        }
    }
}

impl Shared {
    /// The layers below snapshots that containers write to or look at.
    fn layers_in_use(&self) -> Result<HashSet<LayerKey>, SnapshotError> {
        let mut used = HashSet::new();
        let open = self
            .metadata
            .list(|info| info.record.kind != Kind::Committed)?;
        for parent in open.iter().filter_map(|info| info.record.parent.as_deref()) {
            let chain = self.metadata.chain(parent)?;
            used.extend(
                chain
                    .into_iter()
                    .filter_map(|info| Some(info.record.layer?.layer)),
            );
        }
        Ok(used)
    }
}
