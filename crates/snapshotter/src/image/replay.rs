//! Replays the recorded start of an image: reads the artifacts of its index that a record made, and
//! has their spans downloaded in the order of the start, across layers.
//!
//! A record affects nothing but the order. One that mostly names spans that no container reads is
//! ignored for the next start on this node.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use soci_index::SociIndex;
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use tracing::{debug, info, warn};

use super::discover::Index;
use super::{Arc, Image, ImageName, Images, explain};
use crate::layer::{Layer, Replayed, StartUse};
use crate::metrics::{self, ReplayResult};
use crate::store::LayerKey;
use crate::sync::Mutex;

/// How long after the first read a start is over.
const START: Duration = Duration::from_secs(60);
/// How often a start is looked at, and how many times at most. A container may start long after the
/// pull.
const LOOK: Duration = Duration::from_secs(10);
const LOOKS: usize = 360;
/// With fewer wrong spans than this, a record is not judged.
const FEW: u64 = 4;
/// Maximum number of indexes whose records are ignored.
const MOST_IGNORED: usize = 256;

/// What a recorded start reads of each layer, by layer digest.
#[derive(Debug)]
pub(super) struct Plan {
    index: Digest,
    layers: HashMap<Digest, Vec<Replayed>>,
}

/// The indexes whose records were of no use.
#[derive(Debug, Default)]
pub(super) struct Ignored(Mutex<HashSet<Digest>>);

impl Ignored {
    fn add(&self, index: Digest) {
        let mut all = self.0.lock();
        if all.len() < MOST_IGNORED {
            all.insert(index);
        }
    }

    fn has(&self, index: &Digest) -> bool {
        self.0.lock().contains(index)
    }
}

impl Images {
    /// Starts to read the records of an index, once for an image.
    pub(super) fn plan_replay(&self, image: &Arc<Image>, name: &ImageName, index: &Index) {
        let artifacts = index.prefetch.iter();
        let recorded: Vec<_> = artifacts
            .filter(|(_, artifact)| SociIndex::is_recorded(artifact))
            .map(|(layer, artifact)| (*layer, artifact.clone()))
            .collect();
        if recorded.is_empty() || !self.0.options.replay || image.plan_begins() {
            return;
        }
        if self.0.ignored.has(&index.digest) {
            info!(
                image = name.text,
                index = index.digest.to_string(),
                "the recorded start of the index is ignored: the last start on this machine read other files"
            );
            return;
        }
        let (images, image, name) = (self.clone(), Arc::clone(image), name.clone());
        let index = index.clone();
        self.0.tasks.spawn(async move {
            let plan = images.plan(&name, index.digest, recorded).await;
            let keys: Vec<_> = plan
                .layers
                .keys()
                .filter_map(|layer| key(&index, layer))
                .collect();
            let plan = Arc::clone(image.plan.get_or_init(|| Arc::new(plan)));
            for key in &keys {
                if let Some(layer) = images.0.parts.layers.get(key) {
                    images.replay(&image, &layer);
                }
            }
            images.judge_later(name, plan, keys);
        });
    }

    /// Reads the artifacts, at the same time, and puts their ranges into one order.
    async fn plan(
        &self,
        name: &ImageName,
        index: Digest,
        recorded: Vec<(Digest, Descriptor)>,
    ) -> Plan {
        let reading = recorded.into_iter().map(|(layer, artifact)| async move {
            match self.read_artifact(name, &artifact).await {
                Ok(ranges) => Some((layer, ranges)),
                Err(error) => {
                    let (layer, error) = (layer.to_string(), explain(&error));
                    warn!(
                        layer,
                        error, "the recorded start of a layer cannot be used; the layer is downloaded in the usual order"
                    );
                    None
                }
            }
        });
        let read = futures_util::future::join_all(reading).await;
        let mut uses = Vec::new();
        for (layer, ranges) in read.into_iter().flatten() {
            for range in ranges {
                // What was not recorded comes last.
                let ms = range.first_use_ms.unwrap_or(u64::MAX);
                uses.push((ms, layer, range.start..range.end.saturating_add(1)));
            }
        }
        uses.sort_by_key(|(ms, _, _)| *ms);
        let mut layers: HashMap<Digest, Vec<Replayed>> = HashMap::new();
        for (order, (_, layer, spans)) in (0..).zip(uses) {
            let ranges = layers.entry(layer).or_default();
            ranges.push(Replayed { spans, order });
        }
        Plan { index, layers }
    }

    /// Has a layer replay what the recorded start of its image reads of it, if that is known.
    pub(super) fn replay(&self, image: &Image, layer: &Arc<Layer>) {
        let Some(plan) = image.plan.get() else { return };
        let Some(ranges) = plan.layers.get(layer.digest()) else {
            return;
        };
        if layer.is_complete() || self.0.ignored.has(&plan.index) {
            return;
        }
        debug!(layer = layer.digest().to_string(), "replaying a start");
        self.0.parts.layers.replay(layer, ranges);
    }

    /// Compares a record with the next start of the image, when that is over.
    fn judge_later(&self, name: ImageName, plan: Arc<Plan>, keys: Vec<LayerKey>) {
        let images = Arc::downgrade(&self.0);
        self.0.tasks.spawn(async move {
            for _ in 0..LOOKS {
                tokio::time::sleep(LOOK).await;
                let Some(images) = images.upgrade().map(Images) else {
                    return;
                };
                let layers = &images.0.parts.layers;
                let uses: Vec<_> = keys
                    .iter()
                    .filter_map(|key| layers.start_use(key, plan.layers.get(&key.layer)?))
                    .collect();
                let first = uses.iter().filter_map(|it| it.since_first_read).max();
                if first.is_some_and(|first| first >= START) {
                    images.judge(&name, &plan.index, &uses);
                    return;
                }
            }
        });
    }

    fn judge(&self, name: &ImageName, index: &Digest, uses: &[StartUse]) {
        let StartUse {
            read,
            unread,
            unknown,
            missed,
            ..
        } = sum(uses);
        let results = &metrics::global().replayed;
        results.add(ReplayResult::Read, read);
        results.add(ReplayResult::Unread, unread);
        results.add(ReplayResult::Unknown, unknown);
        results.add(ReplayResult::Missed, missed);
        let (image, index_text) = (&name.text, index.to_string());
        debug!(image, read, unread, unknown, missed, "a start was replayed");
        if is_wrong(read, unread, missed) {
            self.0.ignored.add(*index);
            warn!(
                image,
                index = index_text,
                read,
                unread,
                missed,
                "the recorded start of an index mostly names what the container did not read; the next start on this machine ignores it; record a start of this image and convert it again"
            );
        }
    }
}

fn sum(uses: &[StartUse]) -> StartUse {
    uses.iter().fold(StartUse::default(), |sum, use_| StartUse {
        read: sum.read + use_.read,
        unread: sum.unread + use_.unread,
        unknown: sum.unknown + use_.unknown,
        missed: sum.missed + use_.missed,
        since_first_read: None,
    })
}

/// Whether a record named more that was not read, or less that was read, than not.
fn is_wrong(read: u64, unread: u64, missed: u64) -> bool {
    let wrong = unread.max(missed);
    wrong >= FEW && wrong > read
}

/// The key of a layer in the store.
fn key(index: &Index, layer: &Digest) -> Option<LayerKey> {
    let ztoc = index.ztocs.get(layer)?;
    Some(LayerKey {
        layer: *layer,
        ztoc: Some(ztoc.digest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_wrong_if_most_of_it_was_not_read_or_most_reads_are_not_in_it() {
        assert!(!is_wrong(10, 9, 0) && is_wrong(10, 11, 0));
        assert!(!is_wrong(10, 0, 9) && is_wrong(10, 0, 11));
        assert!(!is_wrong(0, 3, 3), "too little to say");
    }
}
