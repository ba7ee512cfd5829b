//! Reads the prefetch artifact of a layer: the spans to download first. A failure is only logged,
//! because the artifact affects nothing but the order.

use soci_index::SociIndex;
use soci_index::prefetch::{self, ArtifactError, MAX_ARTIFACT_BYTES};
use soci_oci::descriptor::Descriptor;
use tracing::{debug, warn};

use super::content::{ContentError, Document};
use super::discover::Index;
use super::{Arc, ImageName, Images, explain};
use crate::layer::Layer;

/// Why an artifact is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl Images {
    /// Starts to read the artifact of a layer, if the index lists one and this is enabled.
    pub(super) fn prefetch(&self, name: &ImageName, index: Option<&Index>, layer: &Arc<Layer>) {
        let artifact = index.and_then(|index| index.prefetch.get(layer.digest()));
        let Some(artifact) = artifact.filter(|_| self.0.options.prefetch) else {
            return;
        };
        let is_replayed = self.0.options.replay && SociIndex::is_recorded(artifact);
        if layer.is_complete() || is_replayed {
            return;
        }
        let (images, name) = (self.clone(), name.clone());
        let (artifact, layer) = (artifact.clone(), Arc::clone(layer));
        self.0.tasks.spawn(async move {
            match images.read_artifact(&name, &artifact).await {
                Ok(ranges) => {
                    let ranges = ranges.iter();
                    layer.prefetch(ranges.map(|range| range.start..range.end.saturating_add(1)));
                    debug!(layer = layer.digest().to_string(), "prefetching spans");
                }
                Err(error) => {
                    let (layer, error) = (layer.digest().to_string(), explain(&error));
                    warn!(
                        layer,
                        error, "the prefetch artifact of a layer cannot be used; the layer is downloaded in the usual order"
                    );
                }
            }
        });
    }

    pub(super) async fn read_artifact(
        &self,
        name: &ImageName,
        artifact: &Descriptor,
    ) -> Result<Vec<prefetch::SpanRange>, Unusable> {
        let Descriptor { digest, size, .. } = *artifact;
        if size > MAX_ARTIFACT_BYTES {
            return Err(Unusable::Content(ContentError::TooLarge {
                digest,
                size,
                limit: MAX_ARTIFACT_BYTES,
            }));
        }
        let content = &self.0.parts.content;
        let bytes = content.document(name.place(), Document::Blob, artifact);
        Ok(prefetch::parse(&bytes.await?)?)
    }
}
