//! Frees disk space on a full node by evicting layers that no running container uses.

use std::collections::HashSet;
use std::time::Duration;

use tracing::debug;

use super::metadata::Kind;
use super::{Shared, SnapshotError, Snapshotter};
use crate::cpu::Lane;
use crate::store::LayerKey;

/// How often the disk usage is checked. Below the limits, a check is one system call.
const LOOK: Duration = Duration::from_secs(2);

impl Snapshotter {
    /// Keeps free space above and layers below their limits as far as possible. Never returns.
    pub async fn keep_room(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(images) = self.shared.parts.images.get() else {
                continue;
            };
            if images.layers().wanted() == 0 {
                continue;
            }
            // A container that starts during the check uses its layers later than this.
            let since = images.layers().use_order();
            match self.run(Lane::Files, Shared::layers_in_use).await {
                Ok(in_use) => images.make_room(&in_use, since).await,
                Err(error) => {
                    debug!(
                        error = &error as &dyn std::error::Error,
                        "cannot determine the layers in use"
                    );
                }
            }
        }
    }
}

impl Shared {
    /// The layers below active snapshots and views.
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
