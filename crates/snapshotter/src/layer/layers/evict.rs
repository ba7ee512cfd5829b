//! Eviction: removes spans of unused layers to release disk space.
//!
//! ```text
//! a complete layer: not complete ─▶ its readers move to the device (`Repairs::before`)
//! spans: absent, durably ─▶ no reader is left that saw them present ─▶ holes
//! ```
//!
//! A later read downloads them again. The result of verifying the tar is kept. A layer without a
//! zTOC, not even one of our own, has no spans and is not evicted.

use std::time::Duration;

use tokio::time::Instant;

use super::{Layers, OpenError, Repairs, UseOrder};
use crate::{
    cpu::Lane,
    layer::Layer,
    metrics::{self, CacheFigures},
    store::LayerKey,
    sync::{Arc, atomic::Ordering},
};

/// Spans removed at a time.
const BATCH: usize = 16;
/// How long to wait for readers. An unused layer has none except a scrub.
const READERS: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

impl Layers {
    /// Bytes to release, because the free space is below its floor or the layers exceed their
    /// limit.
    pub fn wanted(&self) -> u64 {
        let limits = &self.context.options.limits;
        let Ok(disk) = self.context.store.disk() else {
            return 0;
        };
        let used = self.context.used.load(Ordering::Relaxed);
        limits.excess(disk, used)
    }

    /// Bytes that downloads may use for layers that nobody waits for. Does no I/O.
    pub(crate) fn room(&self) -> u64 {
        let limits = &self.context.options.limits;
        let Ok(disk) = self.context.store.disk() else {
            return u64::MAX;
        };
        limits.room(disk, self.context.used.load(Ordering::Relaxed))
    }

    /// The disk space of layers and its limits. Does no I/O. `None` if the system does not tell.
    pub(crate) fn cache_figures(&self) -> Option<CacheFigures> {
        let limits = &self.context.options.limits;
        let disk = self.context.store.disk().ok()?;
        Some(CacheFigures {
            used: self.context.used.load(Ordering::Relaxed),
            max: limits.max_bytes,
            free: disk.free,
            min_free: limits.floor(disk),
        })
    }

    /// Removes spans of a layer until `most` bytes are released. Returns the number of bytes
    /// released. The layer need not be open. A use at or after `unused_since` ends the eviction.
    ///
    /// # Errors
    /// The layer cannot be opened.
    pub async fn evict(
        &self,
        key: &LayerKey,
        most: u64,
        unused_since: UseOrder,
        repairs: &dyn Repairs,
    ) -> Result<u64, OpenError> {
        let Some(layer) = self.open_present(key).await? else {
            return Ok(0);
        };
        let freed = if layer.data.ztoc().is_some() && self.may_leave(&layer, repairs).await {
            self.drop_spans(&layer, most, unused_since).await
        } else {
            0
        };
        if self.is_used_since(&layer, unused_since) {
            layer.completion.wake();
        }
        // Becomes complete again when everything is present: at once if nothing was removed.
        repairs.rest(&layer);
        if freed > 0 {
            metrics::global().evicted_layers.inc();
            metrics::global().evicted_bytes.inc_by(freed);
            let (number, image) = (layer.number().0, layer.data.image());
            tracing::info!(layer = %key.layer, number, image = &*image, bytes = freed, "gave back the space of a layer that nothing uses; it is downloaded again when it is read");
            self.context.used.fetch_sub(
                freed.min(self.context.used.load(Ordering::Relaxed)),
                Ordering::Relaxed,
            );
        }
        self.close_unused(layer);
        Ok(freed)
    }

    /// Moves the readers of a complete layer off `data`. Returns false if that fails or if the tar
    /// is not verified yet.
    async fn may_leave(&self, layer: &Arc<Layer>, repairs: &dyn Repairs) -> bool {
        layer.completion.rest();
        if !layer.is_complete() {
            return repairs.before(layer, false).await.is_ok();
        }
        if self.context.store.proofs().get(&layer.key()).is_none() {
            return false;
        }
        let (cpu, of) = (&self.context.cpu, Arc::clone(&layer.completion));
        let doubted = cpu.run(Lane::FilesBehind, move || of.doubt()).await;
        let left = match doubted {
            Ok(Ok(was_complete)) => repairs.before(layer, was_complete).await,
            Ok(Err(error)) => Err(error.to_string()),
            Err(lost) => Err(lost.to_string()),
        };
        if let Err(why) = &left {
            tracing::warn!(layer = %layer.digest(), why, "cannot release the space of a layer: its readers cannot be moved off its data");
        }
        left.is_ok()
    }

    fn is_used_since(&self, layer: &Layer, order: UseOrder) -> bool {
        self.last_use(layer.number()) >= Some(order)
    }

    async fn drop_spans(&self, layer: &Arc<Layer>, most: u64, unused_since: UseOrder) -> u64 {
        let present = &layer.data.files.present;
        let durable = (0..layer.data.span_count()).filter(|span| present.is_durable(*span));
        let durable: Vec<u32> = durable.collect();
        let mut freed = 0;
        // From the end, because a container start reads the beginning first.
        for batch in durable.rchunks(BATCH) {
            let used = self.is_used_since(layer, unused_since);
            if used || freed >= most || layer.spans.is_closed() {
                break;
            }
            match self.drop_batch(layer, batch.to_vec()).await {
                Some(bytes) => freed += bytes,
                None => break,
            }
        }
        freed
    }

    /// Removes a batch of spans. `None` if no more can be removed now.
    async fn drop_batch(&self, layer: &Arc<Layer>, batch: Vec<u32>) -> Option<u64> {
        let (cpu, of) = (&self.context.cpu, Arc::clone(layer));
        // This lane runs one job at a time, so completion cannot finish and move readers to `data`
        // meanwhile.
        let job = move || (!of.is_complete()).then(|| of.spans.leave(&batch));
        let leaving = match cpu.run(Lane::FilesBehind, job).await.ok()?? {
            Ok(leaving) => leaving,
            Err(error) => {
                tracing::error!(layer = %layer.digest(), error = %error, "cannot write the marks of a layer; check the disk of the state root");
                return None;
            }
        };
        let until = Instant::now() + READERS;
        while !layer.data.has_no_readers() {
            if Instant::now() > until {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
        let data = Arc::clone(&layer.data);
        let punched = cpu.run(Lane::FilesBehind, move || {
            let punched = data.punch(&leaving.spans);
            if punched.is_ok() {
                let spans = leaving.spans.len() as u64;
                metrics::global().evicted_spans.inc_by(spans);
            }
            // The spans may be stored again only from here on.
            drop(leaving);
            punched
        });
        match punched.await.ok()? {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::warn!(layer = %layer.digest(), error = %error, "cannot release the space of a layer: its file system does not support holes");
                None
            }
        }
    }
}
