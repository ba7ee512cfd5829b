//! Reads the prefetch artifact of a layer: the spans to download first. A failure is only logged,
//! because the artifact affects nothing but the order.

use std::ops::Range;

use soci_index::SociIndex;
use soci_index::prefetch::{self, ArtifactError, MAX_ARTIFACT_BYTES, SpanRange};
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
        let Some(index) = index.filter(|_| self.0.options.prefetch) else {
            return;
        };
        let Some(artifact) = index.prefetch.get(layer.digest()) else {
            return;
        };
        let is_record = self.0.options.replay && SociIndex::is_recorded(artifact);
        let is_ignored = is_record && self.0.ignored.has(&index.digest);
        if layer.is_complete() || is_record && !is_ignored {
            return;
        }
        let (images, name) = (self.clone(), name.clone());
        let (artifact, layer) = (artifact.clone(), Arc::clone(layer));
        self.0.tasks.spawn(async move {
            match images.read_artifact(&name, &artifact).await {
                Ok(ranges) => {
                    layer.prefetch(spans(&ranges, is_ignored));
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
    ) -> Result<Vec<SpanRange>, Unusable> {
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

/// The spans of these ranges. If the record is ignored, only of those that were listed without it.
fn spans(ranges: &[SpanRange], is_ignored: bool) -> impl Iterator<Item = Range<u64>> {
    let used = ranges
        .iter()
        .filter(move |range| !is_ignored || range.first_use_ms.is_none());
    used.map(|range| range.start..range.end.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_beside_an_ignored_record_is_still_used() {
        let range = |at, first_use_ms| SpanRange {
            start: at,
            end: at,
            priority: 0,
            first_use_ms,
        };
        let ranges = [range(3, Some(0)), range(5, None), range(u64::MAX, None)];
        let of = |is_ignored| spans(&ranges, is_ignored).collect::<Vec<_>>();
        assert_eq!(of(false), [3..4, 5..6, u64::MAX..u64::MAX]);
        assert_eq!(of(true), [5..6, u64::MAX..u64::MAX]);
    }
}
