//! Periodic work on layers: making their bytes durable, dropping page cache copies, and deleting
//! layers of older versions.

use std::time::Duration;

use tokio::time::Instant;

use super::Layers;
use crate::{
    cpu::Lane,
    metrics,
    sync::{Arc, Weak, atomic::Ordering},
};

/// How often the page cache of settled layers is dropped. If there is nothing to drop, this costs
/// two calls per layer.
const LOOK: Duration = Duration::from_secs(3);

/// How long the shutdown waits for the disk. A service manager waits longer before it kills the
/// process.
const LAST_SYNC: Duration = Duration::from_secs(10);

/// How often layers of older versions are checked, because their containers may have ended.
const SWEEP: Duration = Duration::from_secs(3600);

/// Runs until the layers are dropped.
pub(super) async fn run(layers: Weak<Layers>, every: Duration) {
    let mut next_sync = Instant::now() + every;
    let mut next_sweep = Instant::now();
    loop {
        tokio::time::sleep(LOOK.min(every)).await;
        let Some(layers) = layers.upgrade() else {
            return;
        };
        if next_sync <= Instant::now() {
            layers.sync_written().await;
            layers.write_notes().await;
            next_sync = Instant::now() + every;
        }
        let limited = layers.context.options.limits.max_bytes.is_some();
        if limited || metrics::global().is_served() {
            layers.measure().await;
        }
        if layers.context.options.drops_copies {
            layers.drop_second_copies().await;
        }
        if next_sweep <= Instant::now() {
            layers.delete_older().await;
            next_sweep = Instant::now() + SWEEP;
        }
    }
}

impl Layers {
    /// Makes everything that layers have written durable, before the process ends. Does not wait
    /// for a disk that does not respond: bytes that it did not store are downloaded again, but only
    /// if the power fails.
    pub async fn sync_all(&self) {
        let (layers, context) = (self.all(), Arc::clone(&self.context));
        let sync = move || {
            super::starts::write_new(&context);
            for layer in layers {
                // The failure has been logged, and the spans are absent again.
                drop(layer.completion.sync());
            }
        };
        if !within(LAST_SYNC, sync).await {
            tracing::warn!(
                seconds = LAST_SYNC.as_secs(),
                "the disk does not respond; shutting down without syncing the most recent downloads"
            );
        }
    }

    async fn sync_written(&self) {
        for layer in self.all() {
            if layer.data.files.present.volatile().is_empty() {
                continue;
            }
            let _quiet = self.context.calm().await;
            match self
                .context
                .cpu
                .run(Lane::FilesBehind, move || layer.completion.sync())
                .await
            {
                // A failure has been logged.
                Ok(Ok(()) | Err(_)) => {}
                Err(lost) => tracing::error!(error = %lost, "syncing a layer failed"),
            }
        }
    }

    async fn measure(&self) {
        let context = Arc::clone(&self.context);
        let measure = move || context.used.store(context.store.used(), Ordering::Relaxed);
        if let Err(lost) = self.context.cpu.run(Lane::FilesBehind, measure).await {
            tracing::error!(error = %lost, "measuring the disk usage of layers failed");
        }
    }

    async fn drop_second_copies(&self) {
        let mut settled = self.all();
        settled.retain(|layer| layer.completion.has_settled());
        let job = move || {
            settled
                .iter()
                .for_each(|layer| layer.data.drop_second_copy())
        };
        if let Err(lost) = self.context.cpu.run(Lane::FilesBehind, job).await {
            tracing::error!(error = %lost, "dropping the page cache of layers failed");
        }
    }

    /// Deletes unmounted layers of older versions, one per job, so that syncs can run in between.
    async fn delete_older(&self) {
        loop {
            let store = Arc::clone(&self.context.store);
            let deleted = self
                .context
                .cpu
                .run(Lane::FilesBehind, move || store.delete_an_older());
            match deleted.await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(error = %error, "cannot delete layers of an older version of the store");
                    return;
                }
            }
        }
    }
}

/// Runs work that may wait for the disk indefinitely on its own thread, because dropping the pool
/// waits for its jobs. Returns false if the work takes longer than `limit` or the thread cannot be
/// started.
async fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (tell, told) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("soci-last-sync".to_owned());
    let started = thread.spawn(move || {
        work();
        // A failed send means that the caller has stopped waiting.
        let _ = tell.send(());
    });
    started.is_ok() && matches!(tokio::time::timeout(limit, told).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Duration, within};

    #[tokio::test]
    async fn shutdown_does_not_wait_for_work_that_hangs() {
        assert!(within(Duration::from_secs(30), || ()).await);
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let begin = Instant::now();
        let hangs = move || assert!(gate.recv().is_err());
        assert!(!within(Duration::from_millis(50), hangs).await);
        assert!(begin.elapsed() < Duration::from_secs(20));
        drop(release);
    }
}
