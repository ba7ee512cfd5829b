//! Whether containers may start from a chain, and the consequences of a layer that does not match.
//!
//! containerd names snapshots by the diff-IDs in an image's configuration. An image can name layers
//! of another image as its own, and the image that is pulled first gets the name. A snapshot with a
//! wrong name loses its target label: a pull of the correct image then gets the correct layer, and
//! no container starts from the wrong one.

use std::time::Duration;

use tracing::{error, warn};

use super::metadata::{Info, Kind, LabelUpdate};
use super::{Shared, SnapshotError, Snapshotter};
use crate::cpu::Lane;
use crate::image::{Standing, labels};
use crate::layer::Expected;
use crate::metrics;
use crate::store::LayerKey;

/// How long a container start waits for verification if `trust = "verified"`. The kubelet waits for
/// two minutes.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the layer of the snapshot must be, according to its name.
pub(super) fn expected(info: &Info) -> Expected {
    Expected::by_names(&info.name, info.record.parent.as_deref())
}

impl Shared {
    /// Why no container may start from the snapshot's layer, if so.
    pub(super) fn refusal(&self, info: &Info) -> Option<String> {
        let images = self.parts.images.get()?;
        let used = &info.record.layer.as_ref()?.layer;
        let standing = images.standing(used.layer, used.ztoc, &expected(info));
        standing.refusal().map(str::to_owned)
    }

    /// The committed snapshot with this target on this parent, unless its layer is wrong.
    pub(super) fn known(
        &self,
        target: &str,
        parent: Option<&str>,
    ) -> Result<Option<Info>, SnapshotError> {
        let is_it = |info: &Info| {
            info.record.kind == Kind::Committed
                && info.record.parent.as_deref() == parent
                && self.refusal(info).is_none()
        };
        if let Some(record) = self.metadata.find(target)? {
            let name = target.to_owned();
            let info = Info { name, record };
            if is_it(&info) {
                return Ok(Some(info));
            }
        }
        // The name was taken, see `commit_layer`.
        let (target, parent) = (target.to_owned(), parent.map(str::to_owned));
        let others = self.metadata.list(move |info| {
            info.name.starts_with(&format!("{target}@")) && info.record.parent == parent
        })?;
        Ok(others.into_iter().find(is_it))
    }

    /// The snapshots of these layers that do not match their names, each with the reason.
    fn wrong(
        &self,
        wanted: impl Fn(&LayerKey) -> bool,
    ) -> Result<Vec<(Info, String)>, SnapshotError> {
        let uses = |info: &Info| {
            let layer = info.record.layer.as_ref();
            layer.is_some_and(|layer| wanted(&layer.layer))
        };
        let snapshots = self.metadata.list(uses)?.into_iter();
        Ok(snapshots
            .filter_map(|info| self.refusal(&info).map(|why| (info, why)))
            .collect())
    }
}

impl Snapshotter {
    /// Handles new verification results for as long as it is polled.
    pub async fn follow_verdicts(self) {
        let Some(images) = self.shared.parts.images.get().cloned() else {
            return;
        };
        self.judge(|_| true).await;
        loop {
            let news = images.new_verdicts().await;
            self.judge(move |layer| news.contains(layer)).await;
        }
    }

    /// Logs the snapshots whose layer does not match their name, and removes their target label.
    async fn judge(&self, wanted: impl Fn(&LayerKey) -> bool + Send + 'static) {
        let wrong = self
            .run(Lane::Files, move |shared| shared.wrong(wanted))
            .await;
        let wrong = wrong.unwrap_or_else(|failed| {
            let error = &failed as &dyn std::error::Error;
            warn!(
                error,
                "cannot look up the snapshots of newly verified layers"
            );
            Vec::new()
        });
        for (info, why) in wrong {
            let label = |name| labels::value(&info.record.labels, name).unwrap_or_default();
            error!(
                image = label(labels::IMAGE_REFERENCE),
                layer = label(labels::LAYER_DIGEST),
                index = label(labels::INDEX_DIGEST),
                snapshot = info.name,
                why,
                "the layer does not match its image: running containers continue, but no new container starts from it; remove the image"
            );
            // A snapshot without the label was found earlier.
            if !info.record.labels.contains_key(labels::TARGET) {
                continue;
            }
            metrics::global().quarantined.inc();
            let keys = LabelUpdate::Keys(vec![labels::TARGET.to_owned()]);
            let metadata = &self.shared.metadata;
            if let Err(failed) = metadata.update(&info.name, &[].into(), &keys).await {
                let error = &failed as &dyn std::error::Error;
                warn!(
                    error,
                    snapshot = info.name,
                    "cannot remove the target label of a wrong snapshot"
                );
            }
        }
    }

    /// Rejects a chain with a layer that does not match its image.
    pub(super) fn check_trust(&self, chain: &[Info]) -> Result<(), SnapshotError> {
        for info in chain {
            if let Some(why) = self.shared.refusal(info) {
                let image = labels::value(&info.record.labels, labels::IMAGE_REFERENCE);
                return Err(SnapshotError::Untrusted {
                    image: image.unwrap_or("(name unknown)").to_owned(),
                    why,
                });
            }
        }
        Ok(())
    }

    /// If `trust = "verified"`, waits until every layer of a chain is verified.
    pub(super) async fn wait_for_trust(&self, chain: &[Info]) -> Result<(), SnapshotError> {
        let Some(images) = self.shared.parts.images.get().cloned() else {
            return Ok(());
        };
        let used = chain.iter().filter_map(|info| info.record.layer.as_ref());
        let layers: Vec<_> = used.map(|used| used.layer).collect();
        let proven = images.proven(&layers, PATIENCE).await;
        self.check_trust(chain)?;
        for info in chain {
            let Some(used) = info.record.layer.as_ref().map(|used| used.layer) else {
                continue;
            };
            let standing = images.standing(used.layer, used.ztoc, &expected(info));
            if standing != Standing::Verified {
                let why = match proven {
                    true => "its snapshots are not named by diff-IDs",
                    false => "it is still being downloaded, try again later",
                };
                return Err(SnapshotError::Unverified {
                    layer: used.layer.to_string(),
                    why,
                });
            }
        }
        Ok(())
    }
}
