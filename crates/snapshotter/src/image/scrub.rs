//! Lets a scrub repair layers: moves readers of a damaged layer and adds its registry again.

use async_trait::async_trait;

use super::Images;
use super::discover::explain;
use crate::layer::{Layer, Layers, Repairs};
use crate::sync::Arc;

impl Images {
    /// The open layers.
    pub(crate) fn layers(&self) -> &Arc<Layers> {
        &self.0.parts.layers
    }
}

#[async_trait]
impl Repairs for Images {
    async fn before(&self, layer: &Arc<Layer>, complete: bool) -> Result<(), String> {
        // A complete layer is opened without sources.
        self.add_sources(layer);
        if !complete {
            // The layer is on the device, where a READ may be waiting, so it must not be switched.
            return Ok(());
        }
        let moved = self.0.parts.mounts.reopen(layer).await;
        moved.map_err(|error| explain(&error))
    }

    fn after(&self, layer: &Arc<Layer>) {
        self.0.parts.layers.complete(layer);
        self.follow(layer);
    }

    fn rest(&self, layer: &Arc<Layer>) {
        if self.0.options.background {
            self.0.parts.layers.complete_later(layer);
        } else {
            self.0.parts.layers.complete_when_read(layer);
        }
        self.follow(layer);
    }
}
