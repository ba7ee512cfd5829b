//! Scrub: compares stored bytes with their checksums and downloads damaged spans again.
//!
//! ```text
//! each durable span: its ranges of `data` and `heads`, from disk ─▶ checksum ─▶ equal to the
//! recorded one?
//! damaged spans: not complete ─▶ readers move to the device (`Repairs::before`) ─▶ absent ─▶
//! downloaded (`Repairs::after`)
//! ```
//!
//! The order matters. Spans become absent only when no reader uses `data` directly, because that
//! returns whatever is there. Only verified bytes overwrite anything. A layer that was downloaded
//! whole has no spans: it is compared with its diff-ID as a whole and cannot be repaired in place.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use soci_oci::Verifier;
use tokio::time::Instant;

use super::{Layers, OpenError};
use crate::{cpu::Lane, layer::Layer, store::LayerKey, sync::Arc};

/// How long a scrub of one layer waits for spans that are downloaded again.
const REFETCH: Duration = Duration::from_secs(120);
/// How often it checks for them, and for waiting readers.
const LOOK: Duration = Duration::from_millis(50);
/// How long readers can delay the check of one span, so that a scrub ends on a busy node too.
const YIELD: Duration = Duration::from_secs(5);
/// Bytes of a whole layer per read.
const STEP: u64 = 1 << 20;
/// Size of a block of a tar in bytes.
const BLOCK: usize = 512;
/// Most blocks of zeros after the end of an archive. Programs fill up the last record, which is
/// 10 KiB by default and may be larger.
const MAX_FILL: usize = (1 << 20) / BLOCK;

/// What the owner of the mounts does around a repair or an eviction.
#[async_trait]
pub trait Repairs: Send + Sync {
    /// Called before spans are removed from a layer. Adds sources to it, and moves the readers of a
    /// layer that was `complete` to the device. Other readers are there already. The error is a
    /// message for humans.
    async fn before(&self, layer: &Arc<Layer>, complete: bool) -> Result<(), String>;

    /// Called after damaged spans are removed from a layer that was complete. Downloads them and
    /// moves readers back when they are present.
    fn after(&self, layer: &Arc<Layer>);

    /// Called after an eviction. Readers move back once they have read the whole layer.
    fn rest(&self, layer: &Arc<Layer>);
}

fn unwritten(error: &std::io::Error) -> String {
    format!("cannot write the marks of the layer: {error}; check the disk of the state root")
}

/// The speed of a scrub.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Bytes per second. `None` means unlimited.
    pub bytes_per_second: Option<u64>,
}

/// The result of scrubbing one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// Digest of the layer.
    pub layer: String,
    /// Number of the layer in the store.
    pub number: u64,
    /// The first image that named the layer.
    pub image: String,
    /// Number of spans checked. 1 for a layer that was downloaded whole.
    pub checked: usize,
    /// Number of damaged spans among them.
    pub differing: usize,
    /// Number of damaged spans that were downloaded again.
    pub refetched: usize,
    /// Number of bytes read.
    pub bytes: u64,
    /// What went wrong, and the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Layers {
    /// Scrubs one layer. `None` if it is no longer in the store. The layer need not be open.
    ///
    /// # Errors
    /// The layer cannot be opened.
    pub async fn scrub(
        &self,
        key: &LayerKey,
        pace: Pace,
        repairs: &dyn Repairs,
    ) -> Result<Option<Scrubbed>, OpenError> {
        let Some(layer) = self.open_present(key).await? else {
            return Ok(None);
        };
        let mut found = Scrubbed {
            layer: key.layer.to_string(),
            number: layer.number().0,
            image: layer.data.image().to_string(),
            ..Scrubbed::default()
        };
        if layer.data.ztoc().is_some() {
            let differing = self.check_spans(&layer, pace, &mut found).await;
            if !differing.is_empty() && !layer.spans.is_closed() {
                self.repair(&layer, &differing, repairs, &mut found).await;
            }
        } else {
            self.check_whole(&layer, pace, &mut found).await;
        }
        self.context.store.note_scrub(layer.number());
        self.close_unused(layer);
        Ok(Some(found))
    }

    async fn check_spans(&self, layer: &Arc<Layer>, pace: Pace, found: &mut Scrubbed) -> Vec<u32> {
        let mut differing = Vec::new();
        for span in 0..layer.data.span_count() {
            let begin = Instant::now();
            if layer.spans.is_closed() {
                break;
            }
            self.give_way().await;
            let data = Arc::clone(&layer.data);
            let job = move || data.check_span(span);
            let checked = match self.context.cpu.run(Lane::ComputeLast, job).await {
                Ok(None) => continue,
                Ok(Some(checked)) => checked,
                Err(lost) => {
                    found.problem = Some(lost.to_string());
                    break;
                }
            };
            if let Some(why) = checked.damage {
                let (layer, image) = (&found.layer, &found.image);
                tracing::error!(layer, image, span, why, "a span in the store is damaged");
                differing.push(span);
            }
            found.checked += 1;
            found.bytes += checked.bytes;
            pace.hold(begin, checked.bytes).await;
        }
        found.differing = differing.len();
        differing
    }

    /// Removes damaged spans and has them downloaded again.
    async fn repair(
        &self,
        layer: &Arc<Layer>,
        differing: &[u32],
        repairs: &dyn Repairs,
        found: &mut Scrubbed,
    ) {
        let was_complete = self.take_out(layer, differing, repairs, found).await;
        if !was_complete {
            let later = "the layer is not complete yet; the damaged data is downloaded with the rest, or when it is read";
            found.problem.get_or_insert(later.to_owned());
            return;
        }
        repairs.after(layer);
        let until = Instant::now() + REFETCH;
        let present = &layer.data.files.present;
        let back = || differing.iter().filter(|span| present.has(**span)).count();
        while back() < found.differing && Instant::now() < until && !layer.spans.is_closed() {
            tokio::time::sleep(LOOK).await;
        }
        found.refetched = back();
        if found.refetched < found.differing && found.problem.is_none() {
            let error = layer.trouble.last_error().unwrap_or_default();
            found.problem = Some(format!(
                "some damaged data could not be downloaded again yet ({error}); the download continues in the background, and reads wait for it"
            ));
        }
    }

    /// Removes damaged spans. Returns true if the layer was complete, or if that is unknown.
    async fn take_out(
        &self,
        layer: &Arc<Layer>,
        differing: &[u32],
        repairs: &dyn Repairs,
        found: &mut Scrubbed,
    ) -> bool {
        // Clear the mark first, so that new mounts use the device.
        let (cpu, of) = (&self.context.cpu, Arc::clone(&layer.completion));
        let doubted = cpu.run(Lane::FilesBehind, move || of.doubt()).await;
        let was_complete = match doubted {
            Ok(Ok(was_complete)) => was_complete,
            Ok(Err(error)) => {
                found.problem = Some(unwritten(&error));
                true
            }
            Err(_) => true,
        };
        if let Err(why) = repairs.before(layer, was_complete).await {
            // The repaired bytes go to the same places, so readers of `data` see them once they are
            // stored.
            tracing::warn!(
                layer = found.layer,
                why,
                "cannot move the readers of a damaged layer off its data"
            );
        }
        let (of, spans) = (Arc::clone(&layer.spans), differing.to_vec());
        let taken = cpu.run(Lane::FilesBehind, move || of.take_out(&spans));
        if let Ok(Err(error)) = taken.await {
            found.problem = Some(unwritten(&error));
        }
        was_complete
    }

    async fn check_whole(&self, layer: &Arc<Layer>, pace: Pace, found: &mut Scrubbed) {
        let Some(diff_id) = layer.data.files.sources.diff_id else {
            return;
        };
        let mut tar = Verifier::new(diff_id);
        let size = layer.data.files.places.archive_size();
        let mut at = 0;
        found.checked = 1;
        while at < size && !layer.spans.is_closed() {
            let begin = Instant::now();
            self.give_way().await;
            let range = at..size.min(at + STEP);
            let (of, part) = (Arc::clone(&layer.data), range.clone());
            let read = self
                .context
                .cpu
                .run(Lane::ComputeLast, move || of.read_disk(part));
            match read.await {
                Ok(Ok(read)) if read.padding => tar.update(&read.tar),
                // An error counts as damage. A digest of less than the whole tar cannot match.
                _ => break,
            }
            found.bytes += range.end - range.start;
            pace.hold(begin, range.end - range.start).await;
            at = range.end;
        }
        if !layer.spans.is_closed() && (at < size || !is_verified(tar)) {
            found.differing = 1;
            found.problem = Some(
                "the layer was downloaded whole and is damaged; it cannot be repaired in part: remove the image from \
                 containerd and pull it again"
                    .to_owned(),
            );
            tracing::error!(
                layer = found.layer,
                image = found.image,
                problem = found.problem,
                "a layer in the store is damaged"
            );
        }
    }

    /// Lets readers go first.
    async fn give_way(&self) {
        let until = Instant::now() + YIELD;
        while self.context.fetch.is_urgent() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether this is the tar up to the end of the archive. The zeros that may follow are part of the
/// diff-ID, but not stored.
fn is_verified(mut tar: Verifier) -> bool {
    (0..=MAX_FILL).any(|_| {
        let is_all = tar.clone().finish().is_ok();
        tar.update(&[0; BLOCK]);
        is_all
    })
}

impl Pace {
    async fn hold(self, begin: Instant, bytes: u64) {
        if let Some(rate) = self.bytes_per_second {
            let takes = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1));
            tokio::time::sleep_until(begin + takes).await;
        }
    }
}
