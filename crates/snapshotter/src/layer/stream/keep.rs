//! Keeps the compressed bytes of a layer in containerd's content store while they arrive: no second
//! download, and no second read.
//!
//! Keeping is worth little compared with the pull. It delays the download of a layer by [`DELAY`]
//! at most, and a failure is a warning.

use std::time::Duration;

use bytes::Bytes;
use soci_oci::Descriptor;
use soci_store::{
    StoreError,
    containerd::{BlobWriter, Containerd},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

/// Steps that wait for containerd. They bound the memory.
const QUEUE: usize = 4;
/// Bytes of a message to containerd.
const MESSAGE: usize = 1 << 20;
/// How long the download of a layer waits for containerd, in total.
const DELAY: Duration = Duration::from_secs(1);

/// The keeping of one layer. Dropping it removes what was written.
pub(super) struct Keep {
    layer: Descriptor,
    left: Duration,
    /// `None` after containerd failed or was too slow.
    queue: Option<mpsc::Sender<Bytes>>,
    /// `None` after containerd was too slow.
    verified: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Keep {
    /// Begins to keep a layer.
    pub(super) fn start(tasks: &TaskTracker, store: Containerd, layer: Descriptor) -> Keep {
        let (queue, steps) = mpsc::channel(QUEUE);
        let (verified, verdict) = oneshot::channel();
        let wanted = layer.clone();
        let task = tasks.spawn(async move {
            if let Err(error) = keep(&store, &wanted, steps, verdict).await {
                tracing::warn!(
                    layer = wanted.digest.to_string(),
                    error = &error as &dyn std::error::Error,
                    "cannot keep a layer in containerd's content store; the pull goes on without it"
                );
            }
        });
        Keep {
            layer,
            left: DELAY,
            queue: Some(queue),
            verified: Some(verified),
            task,
        }
    }

    /// The next bytes of the layer.
    pub(super) async fn push(&mut self, bytes: Bytes) {
        let Some(queue) = &self.queue else { return };
        let began = Instant::now();
        let sent = timeout(self.left, queue.send(bytes)).await;
        self.left = self.left.saturating_sub(began.elapsed());
        match sent {
            Ok(Ok(())) => {}
            // The task has ended, and has said why if it failed.
            Ok(Err(_)) => self.queue = None,
            Err(_) => {
                (self.queue, self.verified) = (None, None);
                tracing::warn!(
                    layer = self.layer.digest.to_string(),
                    "containerd's content store is slower than the download; the layer is not kept there"
                );
            }
        }
    }

    /// The digest of the layer matched: commits. Goes on in the background if containerd is slow.
    pub(super) async fn commit(self) {
        drop(self.queue);
        let Some(verified) = self.verified else {
            return;
        };
        // A failed send means that the task has ended.
        let _ended = verified.send(());
        drop(timeout(DELAY, self.task).await);
    }
}

async fn keep(
    store: &Containerd,
    layer: &Descriptor,
    mut steps: mpsc::Receiver<Bytes>,
    verdict: oneshot::Receiver<()>,
) -> Result<(), StoreError> {
    let Some(mut writer) = BlobWriter::begin(store, layer).await? else {
        return Ok(());
    };
    match write(&mut writer, &mut steps).await {
        Ok(()) if verdict.await.is_ok() => writer.commit().await,
        written => {
            writer.abort().await;
            written
        }
    }
}

/// Writes the steps, except for the bytes that an earlier writer has left.
async fn write(
    writer: &mut BlobWriter,
    steps: &mut mpsc::Receiver<Bytes>,
) -> Result<(), StoreError> {
    let mut at = 0_u64;
    while let Some(mut bytes) = steps.recv().await {
        let present = writer.offset().saturating_sub(at);
        at += bytes.len() as u64;
        let present = usize::try_from(present).unwrap_or(usize::MAX);
        drop(bytes.split_to(present.min(bytes.len())));
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(MESSAGE));
            writer.write(part).await?;
        }
    }
    Ok(())
}
