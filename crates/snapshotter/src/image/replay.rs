//! Replays the recorded start of an image: reads the artifacts of its index that a record made, and
//! has their spans downloaded in the order of the start, across layers.
//!
//! A record affects nothing but the order. One that mostly names spans that no container reads is
//! ignored for the next start on this node.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use soci_index::SociIndex;
use soci_index::prefetch::{MAX_ARTIFACT_BYTES, SpanRange};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use tracing::{debug, info, warn};

use super::discover::Index;
use super::{Arc, Image, ImageName, Images, explain};
use crate::layer::{Layer, Replayed, StartUse};
use crate::metrics::{self, ReplayResult};
use crate::store::LayerKey;
use crate::sync::Mutex;

/// Maximum total size of the artifacts of an image in bytes.
const MOST_BYTES: u64 = 16 << 20;
/// Maximum total number of ranges of an image.
const MOST_RANGES: usize = 1 << 16;
/// Artifacts read at the same time.
const AT_ONCE: usize = 4;
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
    /// When the image was requested. What was read before is no part of its start.
    began: Instant,
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

    pub(super) fn has(&self, index: &Digest) -> bool {
        self.0.lock().contains(index)
    }
}

impl Images {
    /// Starts to read the records of an index, once for an image.
    pub(super) fn plan_replay(&self, image: &Arc<Image>, name: &ImageName, index: &Index) {
        let Some(manifest) = image.manifest.get() else {
            return;
        };
        let recorded = recorded(manifest.layers(), index);
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
        let (index, began) = (index.digest, Instant::now());
        self.0.tasks.spawn(async move {
            let mut keys: Vec<_> = recorded.iter().map(|(key, _)| *key).collect();
            let layers = images.plan(&name, recorded).await;
            keys.retain(|key| layers.contains_key(&key.layer));
            let plan = Plan {
                index,
                began,
                layers,
            };
            let plan = Arc::clone(image.plan.get_or_init(|| Arc::new(plan)));
            for key in &keys {
                if let Some(layer) = images.0.parts.layers.get(key) {
                    images.replay(&image, &layer);
                }
            }
            images.judge_later(name, plan, keys);
        });
    }

    /// Reads the artifacts, a few at the same time, and puts their ranges into one order.
    async fn plan(
        &self,
        name: &ImageName,
        recorded: Vec<(LayerKey, Descriptor)>,
    ) -> HashMap<Digest, Vec<Replayed>> {
        let reading = recorded.into_iter().map(|(key, artifact)| async move {
            let ranges = self.read_recorded(name, &key.layer, &artifact).await;
            (key.layer, ranges)
        });
        let mut reading = stream::iter(reading).buffered(AT_ONCE);
        let mut uses = Vec::new();
        while let Some((layer, ranges)) = reading.next().await {
            for range in ranges.into_iter().take(MOST_RANGES - uses.len()) {
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
        layers
    }

    /// The ranges of an artifact. None if it cannot be read.
    async fn read_recorded(
        &self,
        name: &ImageName,
        layer: &Digest,
        artifact: &Descriptor,
    ) -> Vec<SpanRange> {
        let read = self.read_artifact(name, artifact).await;
        read.unwrap_or_else(|error| {
            let (layer, error) = (layer.to_string(), explain(&error));
            warn!(
                layer,
                error, "the recorded start of a layer cannot be used; the layer is downloaded in the usual order"
            );
            Vec::new()
        })
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
                let opened = uses.len();
                let uses = of_this_start(uses, plan.began.elapsed());
                if uses.is_empty() && opened == keys.len() {
                    return;
                }
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

/// The layers that nothing had read when the start began, this long ago. A layer that was read
/// before says nothing about the record: its readers need not ask for their bytes again.
fn of_this_start(mut uses: Vec<StartUse>, began: Duration) -> Vec<StartUse> {
    uses.retain(|it| it.since_first_read.is_none_or(|first| first <= began));
    uses
}

/// The recorded artifacts of the layers of an image that have a zTOC, lowest first, up to
/// [`MOST_BYTES`]. The index comes from outside.
fn recorded(layers: &[Descriptor], index: &Index) -> Vec<(LayerKey, Descriptor)> {
    let (mut left, mut seen) = (MOST_BYTES, HashSet::new());
    let mut recorded = Vec::new();
    for Descriptor { digest: layer, .. } in layers {
        let Some((ztoc, artifact)) = index.ztocs.get(layer).zip(index.prefetch.get(layer)) else {
            continue;
        };
        if !SociIndex::is_recorded(artifact) || !seen.insert(*layer) {
            continue;
        }
        // Size 0 means that it is not known.
        let size = match artifact.size {
            0 => MAX_ARTIFACT_BYTES,
            size => size,
        };
        let Some(rest) = left.checked_sub(size) else {
            debug!(
                layer = layer.to_string(),
                size, "a recorded start is not read: those of the image are too large"
            );
            continue;
        };
        left = rest;
        let key = LayerKey {
            layer: *layer,
            ztoc: Some(ztoc.digest),
        };
        recorded.push((key, artifact.clone()));
    }
    recorded
}

#[cfg(test)]
mod tests {
    use soci_index::RECORDED_START;

    use super::*;

    fn descriptor(number: usize, size: u64) -> Descriptor {
        Descriptor::new("", Digest::sha256(number.to_string().as_bytes()), size)
    }

    fn artifact(size: u64) -> Descriptor {
        let mut artifact = descriptor(usize::MAX, size);
        let yes = "true".to_owned();
        artifact.annotations.insert(RECORDED_START.to_owned(), yes);
        artifact
    }

    #[test]
    fn only_artifacts_of_layers_with_a_ztoc_are_read_and_not_too_many_bytes() {
        let layers: Vec<_> = (0..100).map(|number| descriptor(number, 1)).collect();
        let digests = || layers.iter().map(|layer| layer.digest);
        let index = |size| Index {
            digest: Digest::sha256(b""),
            found: "",
            ztocs: digests().skip(1).map(|it| (it, artifact(1))).collect(),
            prefetch: digests().map(|it| (it, artifact(size))).collect(),
        };
        let found = recorded(&[&layers[..3], &layers[..3]].concat(), &index(9));
        let found: Vec<_> = found.iter().map(|(key, _)| key.layer).collect();
        assert_eq!(found, [layers[1].digest, layers[2].digest]);
        for (size, most) in [(0, 16), (1 << 20, 16), (8 << 20, 2), (u64::MAX, 0), (1, 99)] {
            assert_eq!(recorded(&layers, &index(size)).len(), most, "{size}");
        }
        let mut other = index(9);
        for artifact in other.prefetch.values_mut() {
            artifact.annotations.clear();
        }
        assert!(recorded(&layers, &other).is_empty());
    }

    #[test]
    fn layers_that_were_read_before_are_not_compared() {
        let of = |unread, first: Option<u64>| StartUse {
            unread,
            since_first_read: first.map(Duration::from_secs),
            ..StartUse::default()
        };
        let began = Duration::from_secs(100);
        let uses = vec![of(1, Some(101)), of(2, None), of(3, Some(70))];
        assert_eq!(of_this_start(uses, began), [of(2, None), of(3, Some(70))]);
        assert!(of_this_start(vec![of(9, Some(3600))], began).is_empty());
    }

    #[test]
    fn a_record_is_wrong_if_most_of_it_was_not_read_or_most_reads_are_not_in_it() {
        assert!(!is_wrong(10, 9, 0) && is_wrong(10, 11, 0));
        assert!(!is_wrong(10, 0, 9) && is_wrong(10, 0, 11));
        assert!(!is_wrong(0, 3, 3), "too little to say");
    }
}
