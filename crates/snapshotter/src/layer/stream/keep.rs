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
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{layer::Context, sync::Arc};

/// Steps of one layer that wait for containerd.
const QUEUE: usize = 4;
/// Bytes of a message to containerd.
const MESSAGE: usize = 1 << 20;
/// How long the download of a layer waits for containerd, in total.
const DELAY: Duration = Duration::from_secs(1);
/// A containerd that does not answer for this long has failed.
const ANSWER: Duration = Duration::from_secs(10);
/// The same for a commit, which makes a whole layer durable. No bytes are held meanwhile.
const COMMIT: Duration = Duration::from_secs(60);

/// The bytes of a step, and its part of the memory of all layers.
type Kept = (Bytes, OwnedSemaphorePermit);

/// Why a layer is not kept.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    /// containerd's error.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No answer.
    #[error("containerd does not answer for {} seconds", .0.as_secs())]
    Slow(Duration),
}

/// An answer of containerd in time.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, KeepError> {
    match timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(KeepError::Slow(limit)),
    }
}

/// The keeping of one layer. Dropping it removes what was written, if containerd answers.
pub(super) struct Keep {
    layer: Descriptor,
    left: Duration,
    memory: Arc<Semaphore>,
    /// `None` after containerd failed or was too slow.
    queue: Option<mpsc::Sender<Kept>>,
    /// `None` after containerd was too slow.
    verified: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Keep {
    /// Begins to keep a layer.
    pub(super) fn start(context: &Context, store: Containerd, layer: Descriptor) -> Keep {
        let (queue, steps) = mpsc::channel(QUEUE);
        let (verified, verdict) = oneshot::channel();
        let wanted = layer.clone();
        let task = context.tasks.spawn(async move {
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
            memory: Arc::clone(&context.passes.kept),
            queue: Some(queue),
            verified: Some(verified),
            task,
        }
    }

    /// The next bytes of the layer.
    pub(super) async fn push(&mut self, bytes: Bytes) {
        let Some(queue) = &self.queue else { return };
        let began = Instant::now();
        let memory = Arc::clone(&self.memory);
        let sending = async {
            // The semaphore is never closed.
            let Ok(part) = memory.acquire_owned().await else {
                return false;
            };
            queue.send((bytes, part)).await.is_ok()
        };
        let sent = timeout(self.left, sending).await;
        self.left = self.left.saturating_sub(began.elapsed());
        match sent {
            Ok(true) => {}
            // The task has ended, and has said why if it failed.
            Ok(false) => self.queue = None,
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
    mut steps: mpsc::Receiver<Kept>,
    verdict: oneshot::Receiver<()>,
) -> Result<(), KeepError> {
    let Some(mut writer) = within(ANSWER, BlobWriter::begin(store, layer)).await? else {
        return Ok(());
    };
    let written = write(&mut writer, &mut steps).await;
    // The memory is free, whatever follows.
    drop(steps);
    match written {
        Ok(()) if verdict.await.is_ok() => within(COMMIT, writer.commit()).await,
        written => {
            // What is left is for the next writer, or for containerd's garbage collection.
            drop(timeout(ANSWER, writer.abort()).await);
            written
        }
    }
}

/// Writes the steps, except for the bytes that an earlier writer has left.
async fn write(writer: &mut BlobWriter, steps: &mut mpsc::Receiver<Kept>) -> Result<(), KeepError> {
    let mut at = 0_u64;
    while let Some((mut bytes, _part)) = steps.recv().await {
        let present = writer.offset().saturating_sub(at);
        at += bytes.len() as u64;
        let present = usize::try_from(present).unwrap_or(usize::MAX);
        drop(bytes.split_to(present.min(bytes.len())));
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(MESSAGE));
            within(ANSWER, writer.write(part)).await?;
        }
    }
    Ok(())
}
