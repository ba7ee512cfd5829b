//! What became of each image: the verdicts on its layers, logged and counted once for each image.
//!
//! The records of the snapshots say which images exist and how their layers are provided. Only the
//! reasons, and images that were refused, are kept here.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use soci_oci::digest::Digest;
use soci_status::{Reason, Verdict};
use tracing::{info, warn};

use crate::image::labels::{self, Labels};
use crate::image::layer_of;
use crate::metrics::global as metrics;
use crate::sync::Mutex;

/// Maximum number of images. Each takes a few kilobytes.
const MOST: usize = 512;
/// A layer that is requested again after this time belongs to a new pull.
const PULL: Duration = Duration::from_secs(30);
/// How long a refused image is remembered.
const REFUSED: Duration = Duration::from_secs(3600);

/// An image of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ImageId {
    pub(super) image: String,
    pub(super) namespace: String,
    pub(super) manifest: String,
}

impl ImageId {
    /// The image that labels name.
    pub(super) fn of(namespace: &str, labels: &Labels) -> Option<Self> {
        let text = |key| labels::value(labels, key).map(str::to_owned);
        Some(Self {
            image: text(labels::IMAGE_REFERENCE)?,
            namespace: namespace.to_owned(),
            manifest: text(labels::MANIFEST_DIGEST)?,
        })
    }
}

/// A verdict with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    /// The reason for people.
    pub(super) why: String,
}

/// The verdict on an image: that of the layer that matters most to its user.
pub(super) fn of_image<'a>(layers: impl IntoIterator<Item = &'a Judged>) -> Option<&'a Judged> {
    let weight = |judged: &Judged| match judged.verdict {
        Verdict::Refused => 4,
        Verdict::Containerd => 3,
        Verdict::Lazy => 2,
        Verdict::Parallel => 1,
        Verdict::Local => 0,
    };
    // The first of equals.
    layers
        .into_iter()
        .reduce(|worst, next| match weight(next) > weight(worst) {
            true => next,
            false => worst,
        })
}

#[derive(Debug)]
struct Entry {
    layers: BTreeMap<Digest, Judged>,
    /// When the last layer was requested.
    at: Instant,
}

/// The verdicts that this process made.
#[derive(Debug, Default)]
pub(super) struct Verdicts(Mutex<HashMap<ImageId, Entry>>);

impl Verdicts {
    /// Records the verdict on the layer of a request. Logs and counts the verdict on its image if
    /// that is new.
    pub(super) fn note(&self, namespace: &str, labels: &Labels, judged: Judged) {
        let (id, layer) = (ImageId::of(namespace, labels), layer_of(labels));
        let (Some(id), Ok(layer)) = (id, layer) else {
            // A request that names no image.
            return metrics().verdicts.inc(judged.verdict, judged.reason);
        };
        if let Some((before, now)) = self.insert(&id, layer, judged, Instant::now()) {
            metrics().verdicts.inc(now.verdict, now.reason);
            say(&id, before, &now);
        }
    }

    /// Returns the verdict on the image, and the one before, if it is new.
    fn insert(
        &self,
        id: &ImageId,
        layer: Digest,
        judged: Judged,
        now: Instant,
    ) -> Option<(Option<Verdict>, Judged)> {
        let mut images = self.0.lock();
        if images.len() >= MOST && !images.contains_key(id) {
            let oldest = images.iter().min_by_key(|(_, entry)| entry.at);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                images.remove(&oldest);
            }
        }
        let entry = images.entry(id.clone()).or_insert_with(|| Entry {
            layers: BTreeMap::new(),
            at: now,
        });
        let again = now.saturating_duration_since(entry.at) > PULL;
        if again && entry.layers.contains_key(&layer) {
            entry.layers.clear();
        }
        let before = of_image(entry.layers.values()).map(|it| (it.verdict, it.reason));
        entry.layers.insert(layer, judged);
        entry.at = now;
        let now = of_image(entry.layers.values())?;
        let is_new = before != Some((now.verdict, now.reason));
        is_new.then(|| (before.map(|(verdict, _)| verdict), now.clone()))
    }

    /// The verdict on a layer of an image.
    pub(super) fn find(&self, id: &ImageId, layer: &Digest) -> Option<Judged> {
        self.0.lock().get(id)?.layers.get(layer).cloned()
    }

    /// The images that were refused recently, with their layers.
    pub(super) fn refused(&self) -> Vec<(ImageId, Vec<(Digest, Judged)>)> {
        let images = self.0.lock();
        let recent = images.iter().filter(|(_, entry)| {
            let verdict = of_image(entry.layers.values()).map(|it| it.verdict);
            verdict == Some(Verdict::Refused) && entry.at.elapsed() < REFUSED
        });
        let layers = |entry: &Entry| {
            let layers = entry.layers.iter();
            layers
                .map(|(digest, judged)| (*digest, judged.clone()))
                .collect()
        };
        recent
            .map(|(id, entry)| (id.clone(), layers(entry)))
            .collect()
    }
}

/// Logs the verdict on an image. A warning, unless it is what the image and the configuration ask
/// for.
fn say(id: &ImageId, before: Option<Verdict>, judged: &Judged) {
    let ImageId {
        image,
        namespace,
        manifest,
    } = id;
    let Judged { why, .. } = judged;
    let (verdict, reason) = (judged.verdict.name(), judged.reason.name());
    let before = before.map_or("", Verdict::name);
    let as_asked = match judged.verdict {
        Verdict::Lazy => true,
        Verdict::Parallel => matches!(judged.reason, Reason::NoIndex | Reason::Configured),
        Verdict::Local => judged.reason != Reason::BadZtoc,
        Verdict::Containerd => judged.reason == Reason::NoIndex,
        Verdict::Refused => false,
    };
    if as_asked {
        info!(
            image,
            namespace, manifest, verdict, reason, before, why, "verdict on an image"
        );
    } else {
        warn!(
            image,
            namespace, manifest, verdict, reason, before, why, "verdict on an image"
        );
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

    fn id(image: &str) -> ImageId {
        ImageId {
            image: image.to_owned(),
            ..ImageId::default()
        }
    }

    #[test]
    fn the_verdict_on_an_image_is_reported_when_it_is_new() {
        let verdicts = Verdicts::default();
        let mut now = Instant::now();
        let [one, two, three] = [b"1", b"2", b"3"].map(|bytes| Digest::sha256(bytes));
        let lazy = || judged(Verdict::Lazy, Reason::Index);
        let local = || judged(Verdict::Local, Reason::NoZtoc);
        let left = || judged(Verdict::Containerd, Reason::Failed);
        let mut note = |layer, judged, later| {
            now += Duration::from_secs(later);
            let noted = verdicts.insert(&id("app"), layer, judged, now);
            noted.map(|(before, now)| (before, now.verdict))
        };
        assert_eq!(note(one, local(), 0), Some((None, Verdict::Local)));
        assert_eq!(
            note(two, lazy(), 0),
            Some((Some(Verdict::Local), Verdict::Lazy))
        );
        assert_eq!(note(three, local(), 0), None, "the image stays lazy");
        assert_eq!(note(two, lazy(), 1), None, "a layer that occurs twice");
        assert_eq!(
            note(three, left(), 0),
            Some((Some(Verdict::Lazy), Verdict::Containerd))
        );
        assert_eq!(
            note(one, lazy(), 31),
            Some((None, Verdict::Lazy)),
            "pulled again"
        );
        assert_eq!(verdicts.find(&id("app"), &one), Some(lazy()));
        assert_eq!(verdicts.find(&id("app"), &two), None);
    }

    #[test]
    fn only_so_many_images_are_remembered_and_only_refused_ones_are_listed() {
        let verdicts = Verdicts::default();
        let layer = Digest::sha256(b"layer");
        let begin = Instant::now();
        for number in 0..MOST as u64 + 1 {
            let judged = match number {
                3 => judged(Verdict::Refused, Reason::BadZtoc),
                _ => judged(Verdict::Lazy, Reason::Index),
            };
            let at = begin + Duration::from_millis(number);
            verdicts.insert(&id(&number.to_string()), layer, judged, at);
        }
        assert_eq!(verdicts.0.lock().len(), MOST);
        assert!(verdicts.find(&id("0"), &layer).is_none());
        let refused = verdicts.refused();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].0, id("3"));
    }
}
