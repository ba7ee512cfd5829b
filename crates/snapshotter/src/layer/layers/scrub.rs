//! A scrub: what lies in the store is held against what was put there, and what differs is fetched again.
//!
//! ```text
//! each durable span:  its ranges of `data` and `heads`, from the disk ─▶ digest ─▶ equal to its sum?
//! what differs:       not complete ─▶ readers on the device (`Repairs::before`) ─▶ absent ─▶ fetched (`Repairs::after`)
//! ```
//!
//! The order matters. Spans are absent only when no reader is on `data` itself, which answers whatever is there; and
//! nothing is overwritten by anything but verified bytes. A layer that was pulled whole has no spans: all of it is
//! held against its diff-ID, and what differs cannot be repaired in place.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use soci_oci::Verifier;
use tokio::time::Instant;

use super::{Layers, OpenError};
use crate::{cpu::Lane, layer::Layer, store::LayerKey, sync::Arc};

/// How long a scrub of one layer waits for what it has asked for again.
const REFETCH: Duration = Duration::from_secs(120);
/// How often it looks for it, and whether readers still wait.
const LOOK: Duration = Duration::from_millis(50);
/// How long readers hold up one span of it at most, so that it ends on a busy node too.
const YIELD: Duration = Duration::from_secs(5);
/// Bytes of a whole layer that are read at once.
const STEP: u64 = 1 << 20;

/// What is to be done around a repair by who mounts layers.
#[async_trait]
pub trait Repairs: Send + Sync {
    /// Bytes are taken out of a layer: it gets sources, and the readers of one that was `complete` move to the device (the
    /// others are there). The error is for people.
    async fn before(&self, layer: &Arc<Layer>, complete: bool) -> Result<(), String>;

    /// They are out of a layer that was complete: they are fetched, and readers move back when they are there.
    fn after(&self, layer: &Arc<Layer>);

    /// They are out of a layer that nothing uses: readers move back when they have read all of it.
    fn rest(&self, layer: &Arc<Layer>);
}

fn unwritten(error: &std::io::Error) -> String {
    format!("the layer's marks cannot be written: {error}; check the disk of the state root")
}

/// How fast a scrub goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Bytes a second; no limit if there is none.
    pub bytes_per_second: Option<u64>,
}

/// What a scrub found in one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// Digest of the layer.
    pub layer: String,
    /// Its number in the store.
    pub number: u64,
    /// The first image that named it.
    pub image: String,
    /// Spans that were looked at; 1 for a layer that was pulled whole.
    pub checked: usize,
    /// Of them, those that were not as they had been stored.
    pub differing: usize,
    /// Of these, those that were fetched again.
    pub refetched: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// What went wrong, and the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Layers {
    /// Scrubs one layer; none if it is not in the store any more. Nobody needs to have it open.
    ///
    /// # Errors
    /// A layer that cannot be opened.
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

    /// Takes damaged spans out and has them fetched again.
    async fn repair(
        &self,
        layer: &Arc<Layer>,
        differing: &[u32],
        repairs: &dyn Repairs,
        found: &mut Scrubbed,
    ) {
        let was_complete = self.take_out(layer, differing, repairs, found).await;
        if !was_complete {
            let later = "the layer is not complete yet: what was damaged is fetched with the rest, or when it is read";
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
                "not all of it could be fetched again yet ({error}); it goes on in the background, and reads wait for it"
            ));
        }
    }

    /// Takes damaged spans out. True if the layer was complete, or nobody knows.
    async fn take_out(
        &self,
        layer: &Arc<Layer>,
        differing: &[u32],
        repairs: &dyn Repairs,
        found: &mut Scrubbed,
    ) -> bool {
        // First, so that whoever mounts it from now on mounts the device.
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
            // What is fetched goes to the same places: readers of `data` get it when it is there.
            tracing::warn!(
                layer = found.layer,
                why,
                "readers of a damaged layer stay on its data"
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
                // An error is damage too; a digest of less than all of it cannot be right.
                _ => break,
            }
            found.bytes += range.end - range.start;
            pace.hold(begin, range.end - range.start).await;
            at = range.end;
        }
        if !layer.spans.is_closed() && (at < size || tar.finish().is_err()) {
            found.differing = 1;
            found.problem = Some(
                "the layer was pulled whole and is damaged; it cannot be fetched in parts: remove the image from \
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

    /// Readers first.
    async fn give_way(&self) {
        let until = Instant::now() + YIELD;
        while self.context.fetch.is_urgent() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Pace {
    async fn hold(self, begin: Instant, bytes: u64) {
        if let Some(rate) = self.bytes_per_second {
            let takes = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1));
            tokio::time::sleep_until(begin + takes).await;
        }
    }
}
