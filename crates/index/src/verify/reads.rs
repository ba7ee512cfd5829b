//! Reads layers. They are queued while the image is walked and read after the walk, largest first,
//! one more concurrently than there are cores. Problems are reported in the order of the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use futures_util::{StreamExt as _, stream};
use soci_oci::{Descriptor, Digest, Manifest, media_type};
use soci_store::{ContentStore, StoreError, blocking};
use soci_ztoc::{DEFAULT_AHEAD, MAX_ZTOC_SIZE};

use super::deep::{Job, Outcome};
use super::unpacked::can_unpack;
use super::{Part, Problem, Walk, blob_problem};
use crate::builder::part;
use crate::reuse::Budget;

/// Memory for the zTOCs of the layers being read, in KiB. It covers the zTOCs of about 20 GiB of
/// layers.
const BUDGET_KIB: u32 = 256 << 10;

/// A layer to read, with its zTOC if that is usable.
pub(super) struct Queued {
    layer: Descriptor,
    ztoc: Option<Descriptor>,
    /// A diff-ID that a configuration states for the layer.
    diff_id: Option<Digest>,
}

/// The state that the reads share. Dropping it stops them.
struct Reads {
    store: Arc<dyn ContentStore>,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
    threads: NonZeroUsize,
    /// Size of all layers in bytes.
    all: u128,
    /// Memory for zTOCs.
    budget: Budget,
    stop: Arc<AtomicBool>,
}

impl Drop for Reads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Walk<'_> {
    /// Queues a layer unless it is already queued or read for this zTOC.
    pub(super) fn queue_layer(&mut self, layer: &Descriptor, ztoc: Option<&Descriptor>) {
        if self.read.insert((layer.digest, ztoc.map(|it| it.digest))) {
            self.queue.push(Queued {
                layer: layer.clone(),
                ztoc: ztoc.cloned(),
                diff_id: None,
            });
        }
    }

    /// Queues the layers without a zTOC, if all layers are to be read. Non-distributable ones may
    /// be stored elsewhere.
    pub(super) fn queue_rest(&mut self, manifest: &Manifest) {
        for layer in manifest.layers() {
            let is_here = !media_type::is_nondistributable(&layer.media_type);
            let mut read = self.read.iter();
            if self.options.deep && is_here && !read.any(|(read, _)| *read == layer.digest) {
                self.queue_layer(layer, None);
            }
        }
    }

    /// Reads the queued layers.
    pub(super) async fn read_layers(&mut self) -> Result<(), StoreError> {
        let mut queue = std::mem::take(&mut self.queue);
        let mut not_unpacked = BTreeSet::new();
        for queued in &mut queue {
            let stated = self.diff_ids.get(&queued.layer.digest);
            let (_, diff_id) = stated.and_then(BTreeSet::first).copied().unzip();
            if can_unpack(&queued.layer.media_type) {
                queued.diff_id = diff_id;
            }
        }
        let reads = Reads {
            store: Arc::clone(&self.options.store),
            progress: Arc::clone(&self.options.progress),
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            all: queue.iter().map(|it| u128::from(it.layer.size)).sum(),
            budget: Budget::of(BUDGET_KIB),
            stop: Arc::default(),
        };
        let mut order: Vec<usize> = (0..queue.len()).collect();
        order.sort_by_key(|&number| std::cmp::Reverse(queue[number].layer.size));
        let read = |number: usize| {
            let (reads, queued) = (&reads, &queue[number]);
            async move { (number, reads.read(queued).await) }
        };
        // One more than the number of cores, because one read may be waiting for its store.
        let at_once = reads.threads.get() + 1;
        let mut outcomes = stream::iter(order.into_iter().map(read)).buffer_unordered(at_once);
        let (mut waiting, mut next) = (BTreeMap::new(), 0);
        while let Some((number, outcome)) = outcomes.next().await {
            waiting.insert(number, outcome?);
            while let Some(outcome) = waiting.remove(&next) {
                let layer = &queue[next].layer;
                let is_stated = self.diff_ids.contains_key(&layer.digest);
                if is_stated && !can_unpack(&layer.media_type) && outcome.is_read {
                    not_unpacked.insert(layer.digest);
                }
                self.tell_outcome(&queue[next], outcome);
                next += 1;
            }
        }
        self.summary.not_unpacked += not_unpacked.len();
        Ok(())
    }

    fn tell_outcome(&mut self, queued: &Queued, outcome: Outcome) {
        let layer = queued.layer.digest;
        self.summary.bytes += outcome.bytes;
        for problem in outcome.layer {
            // If layers are required, a missing one has been reported already.
            if self.options.may_lack_layers || !matches!(problem, Problem::Missing) {
                self.tell(Part::Layer, layer, problem);
            }
        }
        if let Some(actual) = outcome.diff_id {
            let stated = self.diff_ids.remove(&layer).unwrap_or_default();
            for (config, diff_id) in stated {
                if diff_id != actual && diff_id.algorithm() == actual.algorithm() {
                    let problem = Problem::DiffId(layer, diff_id, actual);
                    self.tell(Part::Config, config, problem);
                }
            }
        }
        for problem in outcome.ztoc {
            if let Some(ztoc) = &queued.ztoc {
                self.tell_of(Part::Ztoc, ztoc.digest, Some(layer), problem);
            }
        }
    }
}

impl Reads {
    async fn read(&self, queued: &Queued) -> Result<Outcome, StoreError> {
        let mut outcome = Outcome::default();
        let ztoc = queued.ztoc.as_ref();
        let _memory = self.budget.take(ztoc.map_or(0, |it| it.size)).await;
        let mut bytes = None;
        if let Some(ztoc) = ztoc {
            match self.store.read(&ztoc.digest, MAX_ZTOC_SIZE).await {
                Ok(read) => bytes = Some(read),
                // The zTOC was readable before, so it changed during the verification.
                Err(error) => outcome.ztoc.push(blob_problem(error)?),
            }
        }
        let blob = match self.store.open(&queued.layer.digest).await {
            Ok(blob) => blob,
            Err(error) => {
                outcome.layer.push(blob_problem(error)?);
                return Ok(outcome);
            }
        };
        let (size, threads) = (queued.layer.size, self.threads);
        let share = part(size, self.all, threads.get(), u128::div_ceil);
        let job = Job {
            layer: queued.layer.clone(),
            blob,
            ztoc: bytes,
            diff_id: queued.diff_id,
            progress: Arc::clone(&self.progress),
            threads: NonZeroUsize::new(share).map_or(NonZeroUsize::MIN, |it| it.min(threads)),
            ahead: part(size, self.all, DEFAULT_AHEAD, |bytes, all| bytes / all),
            stop: Arc::clone(&self.stop),
        };
        let done = blocking(move || job.run()).await;
        outcome.ztoc.extend(done.ztoc);
        Ok(Outcome {
            ztoc: outcome.ztoc,
            ..done
        })
    }
}
