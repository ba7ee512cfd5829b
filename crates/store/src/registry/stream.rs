//! Streams a layer: a response body, a plain thread that reads it, and optionally an upload of the
//! same bytes.
//!
//! A task reads the body ahead, up to the window, so that the connection stays busy while the
//! reader works. Bytes that the reader consumes are also sent to the upload. A failed upload is
//! abandoned and does not affect the reader.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use soci_registry::fetch::{FetchError, Fetcher};

/// Size of the read-ahead window in KiB. It covers 125 MB/s for 30 ms.
const WINDOW_KIB: usize = 4 << 10;
/// Maximum number of queued chunks, regardless of their size.
const MAX_CHUNKS: usize = 1 << 10;

/// The sender for the bytes of the concurrent upload.
pub(super) type Tee = mpsc::Sender<io::Result<Bytes>>;

/// A chunk and its permit in the window.
struct Chunk {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Reads a blob from its start. Reads block, so use it on plain threads.
pub(super) struct Incoming {
    chunks: mpsc::Receiver<io::Result<Chunk>>,
    current: Option<Chunk>,
    tee: Option<Tee>,
    /// Aborts the request when the reader is dropped.
    _task: JoinSet<()>,
}

impl Incoming {
    /// Starts reading. Must be called within a runtime.
    pub(super) fn new(
        fetcher: Arc<dyn Fetcher>,
        explain: impl Fn(FetchError) -> io::Error + Send + 'static,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(MAX_CHUNKS);
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = pump(fetcher.as_ref(), &sender).await {
                // If the reader was dropped, no one needs the error.
                drop(sender.send(Err(explain(error))).await);
            }
        });
        Self {
            chunks,
            current: None,
            tee: None,
            _task: task,
        }
    }

    /// Also sends the bytes to an upload. Must be called before the first read.
    pub(super) fn send_to(&mut self, tee: Option<Tee>) {
        self.tee = tee;
    }

    fn advance(&mut self) -> io::Result<bool> {
        self.current = None;
        let Some(chunk) = self.chunks.blocking_recv() else {
            self.tee = None;
            return Ok(false);
        };
        let chunk = chunk?;
        if let Some(tee) = &self.tee
            && tee.blocking_send(Ok(chunk.bytes.clone())).is_err()
        {
            self.tee = None;
        }
        self.current = Some(chunk);
        Ok(true)
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(chunk) = self.current.as_mut().filter(|it| !it.bytes.is_empty()) {
                let taken = chunk.bytes.len().min(buffer.len());
                chunk.bytes.copy_to_slice(&mut buffer[..taken]);
                return Ok(taken);
            }
            if !self.advance()? {
                return Ok(0);
            }
        }
    }
}

/// Runs until the blob ends or the reader is dropped.
async fn pump(
    fetcher: &dyn Fetcher,
    chunks: &mpsc::Sender<io::Result<Chunk>>,
) -> Result<(), FetchError> {
    if fetcher.size() == 0 {
        return Ok(());
    }
    let window = Arc::new(Semaphore::new(WINDOW_KIB));
    let mut body = fetcher.fetch(0..fetcher.size()).await?;
    while let Some(bytes) = body.next().await? {
        let kib = (bytes.len() >> 10).clamp(1, WINDOW_KIB);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        // The window is never closed.
        let Ok(_room) = Arc::clone(&window).acquire_many_owned(kib).await else {
            return Ok(());
        };
        if chunks.send(Ok(Chunk { bytes, _room })).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
