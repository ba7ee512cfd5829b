//! Compares the proven content of a layer with what its snapshots expect.
//!
//! A *claimed* layer matches its index, span by span. It is *verified* when its complete tar has
//! been hashed and matches the image's configuration. Until then, it is shown only to images whose
//! index names the same zTOC.

use std::fmt;
use std::time::Duration;

use soci_oci::Digest;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Images, Shared, explain};
use crate::layer::{Expected, Layer};
use crate::store::LayerKey;
use crate::store::proofs::Proof;
use crate::sync::{Arc, Weak};

/// First and longest pause between attempts to prove a layer.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// The longest wait for the start of programs, and how often to look.
const LONGEST_START: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// What is known about a layer, for one place in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The complete tar matches the image's configuration.
    Verified,
    /// The layer matches its index. Its tar is not proven, or the expected one is not known.
    Claimed,
    /// The tar is not the one in the image's configuration.
    Foreign(String),
    /// The index describes a different tar.
    False(String),
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified => f.write_str("verified"),
            Self::Claimed => f.write_str("claimed by the index until the whole layer is here"),
            Self::Foreign(why) | Self::False(why) => f.write_str(why),
        }
    }
}

impl Standing {
    /// Why no container may start from the layer.
    pub(crate) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Verified | Self::Claimed => None,
            Self::Foreign(why) | Self::False(why) => Some(why),
        }
    }
}

fn standing(layer: Digest, proof: Option<Proof>, expected: &Expected) -> Standing {
    match proof {
        None => Standing::Claimed,
        Some(Proof::False(why)) => Standing::False(format!(
            "layer {layer} is not what its SOCI index says: {why}"
        )),
        Some(Proof::Tar(tar)) => match expected.is(&tar) {
            Some(true) => Standing::Verified,
            Some(false) => Standing::Foreign(format!(
                "layer {layer} is not the one that the image's configuration names: its diff-ID is {tar}"
            )),
            None => Standing::Claimed,
        },
    }
}

impl Images {
    /// What is known about one form of a layer, compared with `expected`.
    pub(crate) fn standing(
        &self,
        layer: Digest,
        ztoc: Option<Digest>,
        expected: &Expected,
    ) -> Standing {
        let key = LayerKey { layer, ztoc };
        let proof = self.0.parts.layers.store().proofs().get(&key);
        standing(layer, proof, expected)
    }

    /// Waits until these layers are proven. Returns false after a timeout of `patience`.
    pub(crate) async fn proven(&self, layers: &[LayerKey], patience: Duration) -> bool {
        let proofs = self.0.parts.layers.store().proofs();
        let mut added = proofs.added();
        let until = Instant::now() + patience;
        while layers.iter().any(|key| proofs.get(key).is_none()) {
            if !matches!(
                tokio::time::timeout_at(until, added.changed()).await,
                Ok(Ok(()))
            ) {
                return false;
            }
        }
        true
    }

    /// Returns the layers proven since the last call. Waits for at least one.
    pub(crate) async fn new_verdicts(&self) -> Vec<LayerKey> {
        let proofs = self.0.parts.layers.store().proofs();
        let mut added = proofs.added();
        loop {
            let news = proofs.take_news();
            if !news.is_empty() {
                return news;
            }
            // The sender lives as long as the store.
            drop(added.changed().await);
        }
    }
}

impl Shared {
    /// Proves a complete layer in the background, and retries after failures.
    pub(super) fn prove_behind(self: &Arc<Self>, layer: &Arc<Layer>) {
        if self
            .parts
            .layers
            .store()
            .proofs()
            .get(&layer.key())
            .is_some()
        {
            return;
        }
        let (images, layer) = (Arc::downgrade(self), Arc::downgrade(layer));
        self.tasks.spawn(prove(images, layer));
    }
}

/// Waits while programs start, but not indefinitely. Keeps nothing open meanwhile.
async fn wait_for_starts(images: &Weak<Shared>) {
    let until = Instant::now() + LONGEST_START;
    let waits =
        |images: Arc<Shared>| !images.options.proves_at_once && images.parts.layers.sees_a_start();
    while Instant::now() < until && images.upgrade().is_some_and(waits) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn prove(images: Weak<Shared>, layer: Weak<Layer>) {
    let mut pause = PAUSE;
    loop {
        wait_for_starts(&images).await;
        {
            let (Some(images), Some(layer)) = (images.upgrade(), layer.upgrade()) else {
                return;
            };
            // A layer that is taken apart for repair is completed and proven again later.
            if !layer.is_complete() {
                return;
            }
            match images.parts.layers.prove(&layer).await {
                Ok(proof) => {
                    let digest = layer.digest().to_string();
                    debug!(layer = digest, ?proof, "the whole layer was hashed");
                    return images.close(layer).await;
                }
                Err(error) => {
                    let (layer, error) = (layer.digest().to_string(), explain(&error));
                    warn!(
                        layer,
                        error,
                        seconds = pause.as_secs(),
                        "a complete layer cannot be verified now; trying again"
                    );
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_stands_as_its_tar_was_found_and_is_expected() {
        let [layer, tar, other] = [b"1", b"2", b"3"].map(|bytes| Digest::sha256(bytes));
        let right = Expected::DiffId(tar);
        let found = Some(Proof::Tar(tar));
        assert_eq!(standing(layer, None, &right), Standing::Claimed);
        assert_eq!(standing(layer, found.clone(), &right), Standing::Verified);
        let unknown = standing(layer, found.clone(), &Expected::Unknown);
        assert_eq!(unknown, Standing::Claimed);
        let foreign = standing(layer, found, &Expected::DiffId(other));
        assert!(
            foreign
                .refusal()
                .is_some_and(|why| why.contains(&tar.to_string()))
        );
        let lie = standing(layer, Some(Proof::False("no".into())), &Expected::Unknown);
        assert!(lie.refusal().is_some_and(|why| why.ends_with("says: no")));
    }
}
