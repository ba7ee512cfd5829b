//! What `soci status` shows: the images of the snapshots, with verdicts and progress.

use std::collections::{BTreeMap, HashMap};

use soci_index::starts::{self, StartRecord};
use soci_oci::digest::Digest;
use soci_oci::platform::Platform;
use soci_status::{Image, Layer, Progress, Reads, Reason, SCHEMA_VERSION, Status, Verdict};

use super::metadata::{Info, Kind};
use super::verdicts::{ImageId, Judged, of_image};
use super::{SnapshotError, Snapshotter};
use crate::cpu::Lane;
use crate::image::{labels, layer_of};
use crate::layer::{Counts, LayerState};
use crate::store::LayerKey;

/// The deepest chain that is followed. containerd's images have at most 127 layers.
const DEEPEST: usize = 1024;

/// A layer of an image.
#[derive(Debug)]
struct Shown {
    digest: Digest,
    judged: Judged,
    key: Option<LayerKey>,
    committed: bool,
}

impl Snapshotter {
    /// Checks that the records can be read.
    pub(crate) async fn check(&self) -> Result<(), SnapshotError> {
        self.run(Lane::Files, |shared| {
            Ok(shared.metadata.find("").map(drop)?)
        })
        .await
    }

    /// Describes every image. `version` is that of the daemon.
    pub(crate) async fn status(&self, version: &str) -> Result<Status, SnapshotError> {
        let images = self.shared.parts.images.get().cloned();
        let mut shown = self.shown().await?;
        add_refused(&mut shown, self.shared.verdicts.refused());
        let keys: Vec<_> = shown.values().flatten().filter_map(|it| it.key).collect();
        let states = match &images {
            Some(images) => images.layers().states(&keys).await?,
            None => vec![None; keys.len()],
        };
        let states: HashMap<_, _> = keys.into_iter().zip(states).collect();
        let images_of = shown
            .into_iter()
            .map(|(id, layers)| image(id, layers, &states));
        Ok(Status {
            schema_version: SCHEMA_VERSION,
            daemon: version.to_owned(),
            mounts_layers: images.is_some(),
            images: images_of.collect(),
        })
    }

    /// What was read first of the image with this manifest. `None` if there is no such image.
    pub(crate) async fn start_record(
        &self,
        manifest: &str,
    ) -> Result<Option<StartRecord>, SnapshotError> {
        let shown = self.shown().await?;
        let Some((id, layers)) = shown.into_iter().find(|(id, _)| id.manifest == manifest) else {
            return Ok(None);
        };
        let keys: Vec<_> = layers.iter().filter_map(|layer| layer.key).collect();
        let layers = match self.shared.parts.images.get() {
            Some(images) => images.starts(&keys).await.map_err(Box::new)?,
            None => Vec::new(),
        };
        Ok(Some(StartRecord {
            schema_version: starts::SCHEMA_VERSION,
            image: id.image,
            manifest: id.manifest,
            platform: Platform::host().to_string(),
            layers,
        }))
    }

    /// The layers of each image, lowest first.
    async fn shown(&self) -> Result<BTreeMap<ImageId, Vec<Shown>>, SnapshotError> {
        let all = self.list(|_| true).await?;
        let by_name: HashMap<&str, &Info> =
            all.iter().map(|info| (info.name.as_str(), info)).collect();
        let mut longest: BTreeMap<ImageId, Vec<&Info>> = BTreeMap::new();
        for info in all.iter().filter(|info| is_layer(info)) {
            let Some(id) = ImageId::of(namespace(info), &info.record.labels) else {
                continue;
            };
            let chain = chain(info, &by_name);
            let known = longest.entry(id).or_default();
            if chain.len() > known.len() {
                *known = chain;
            }
        }
        let shown = longest.into_iter().map(|(id, chain)| {
            let layers = chain.into_iter().rev();
            let layers = layers.filter_map(|info| self.shown_layer(info)).collect();
            (id, layers)
        });
        Ok(shown.collect())
    }

    fn shown_layer(&self, info: &Info) -> Option<Shown> {
        let labels = &info.record.labels;
        let digest = layer_of(labels).ok()?;
        let noted = ImageId::of(namespace(info), labels)
            .and_then(|id| self.shared.verdicts.find(&id, &digest));
        Some(Shown {
            digest,
            judged: noted.unwrap_or_else(|| by_record(info)),
            key: info.record.layer.as_ref().map(|used| used.layer),
            committed: info.record.kind == Kind::Committed,
        })
    }
}

/// Adds what has no snapshot: images that were refused, and refused layers of the others.
fn add_refused(
    shown: &mut BTreeMap<ImageId, Vec<Shown>>,
    refused: Vec<(ImageId, Vec<(Digest, Judged)>)>,
) {
    for (id, judged) in refused {
        let layers = shown.entry(id).or_default();
        let is_new = layers.is_empty();
        for (digest, judged) in judged {
            let known = layers.iter().any(|layer| layer.digest == digest);
            // The other layers of a known image are gone, or are not in this chain.
            if !known && (is_new || judged.verdict == Verdict::Refused) {
                layers.push(Shown {
                    digest,
                    judged,
                    key: None,
                    committed: false,
                });
            }
        }
    }
}

/// Whether a snapshot is a layer of an image.
fn is_layer(info: &Info) -> bool {
    info.record.layer.is_some() || info.record.labels.contains_key(labels::TARGET)
}

/// The namespace of containerd that owns a snapshot. containerd begins its names with it.
fn namespace(info: &Info) -> &str {
    let labelled = labels::value(&info.record.labels, labels::NAMESPACE);
    labelled.unwrap_or_else(|| {
        let namespace = info.name.split_once('/').map(|(first, _)| first);
        namespace.unwrap_or_default()
    })
}

/// A snapshot and those below it.
fn chain<'a>(top: &'a Info, by_name: &HashMap<&str, &'a Info>) -> Vec<&'a Info> {
    let below = |info: &&'a Info| {
        let parent = info.record.parent.as_deref()?;
        by_name.get(parent).copied()
    };
    std::iter::successors(Some(top), below)
        .take(DEEPEST)
        .collect()
}

/// The verdict of an earlier process, from what it stored.
fn by_record(info: &Info) -> Judged {
    let has = |label| info.record.labels.contains_key(label);
    let (verdict, reason) = match info.record.layer {
        Some(_) if has(labels::REMOTE) => (Verdict::Lazy, Reason::Index),
        Some(_) if !has(labels::HAS_INDEX) => (Verdict::Parallel, Reason::Earlier),
        Some(_) => (Verdict::Local, Reason::Earlier),
        None => (Verdict::Containerd, Reason::Earlier),
    };
    Judged {
        verdict,
        reason,
        why: "decided before the daemon was last started; its earlier log says why".to_owned(),
    }
}

fn image(id: ImageId, shown: Vec<Shown>, states: &HashMap<LayerKey, Option<LayerState>>) -> Image {
    let judged = of_image(shown.iter().map(|layer| &layer.judged)).cloned();
    let mut progress = Progress {
        complete: true,
        ..Progress::default()
    };
    let mut reads = Reads::default();
    let mut layers = Vec::with_capacity(shown.len());
    for shown in shown {
        let state = shown.key.and_then(|key| states.get(&key)?.as_ref());
        let layer = layer(shown, state);
        progress.add(&layer.progress);
        reads.add(&layer.reads);
        layers.push(layer);
    }
    let (verdict, reason, why) = judged
        .map(|it| (it.verdict.name(), it.reason.name(), it.why))
        .unwrap_or_default();
    Image {
        image: id.image,
        namespace: id.namespace,
        manifest: id.manifest,
        verdict: verdict.to_owned(),
        reason: reason.to_owned(),
        why,
        progress,
        reads,
        layers,
    }
}

fn layer(shown: Shown, state: Option<&LayerState>) -> Layer {
    let Judged {
        verdict,
        reason,
        why,
    } = shown.judged;
    // What containerd has unpacked is complete.
    let unpacked = Progress {
        complete: shown.key.is_none() && shown.committed,
        ..Progress::default()
    };
    Layer {
        digest: shown.digest.to_string(),
        verdict: verdict.name().to_owned(),
        reason: reason.name().to_owned(),
        why,
        progress: state.map_or(unpacked, progress),
        reads: state.map(|state| reads(&state.counts)).unwrap_or_default(),
        last_error: state.and_then(|state| state.last_error.clone()),
    }
}

fn progress(state: &LayerState) -> Progress {
    let Counts {
        on_demand,
        background,
        ..
    } = state.counts;
    Progress {
        complete: state.complete,
        spans: state.spans as u64,
        spans_present: state.spans_present as u64,
        bytes: state.bytes,
        bytes_present: state.bytes_present(),
        spans_on_demand: on_demand.spans,
        spans_background: background.spans,
        bytes_on_demand: on_demand.bytes,
        bytes_background: background.bytes,
    }
}

fn reads(counts: &Counts) -> Reads {
    Reads {
        reads_waited: counts.waits,
        waited_seconds: counts.waited.as_secs_f64(),
        longest_wait_seconds: counts.longest.as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(verdict: Verdict, reason: Reason) -> Judged {
        Judged {
            verdict,
            reason,
            why: String::new(),
        }
    }

    #[test]
    fn a_refused_layer_counts_even_if_the_layers_below_it_are_there() {
        let [one, two, three] = [b"1", b"2", b"3"].map(|bytes| Digest::sha256(bytes));
        let lazy = || judged(Verdict::Lazy, Reason::Index);
        let no = || judged(Verdict::Refused, Reason::BadZtoc);
        let id = |image: &str| ImageId {
            image: image.to_owned(),
            ..ImageId::default()
        };
        let there = [one, two].map(|digest| Shown {
            digest,
            judged: lazy(),
            key: None,
            committed: true,
        });
        let mut shown = BTreeMap::from([(id("part"), Vec::from(there))]);
        let layers = vec![(one, lazy()), (two, lazy()), (three, no())];
        let gone = vec![(one, lazy()), (three, no())];
        add_refused(&mut shown, vec![(id("part"), layers), (id("gone"), gone)]);
        for (name, count) in [("part", 3), ("gone", 2)] {
            let layers = shown.remove(&id(name)).unwrap();
            let image = image(id(name), layers, &HashMap::new());
            assert_eq!(image.verdict, Verdict::Refused.name(), "{name}");
            assert_eq!(image.layers.len(), count, "{name}");
            assert!(!image.progress.complete, "{name}");
        }
        assert!(shown.is_empty());
    }
}
