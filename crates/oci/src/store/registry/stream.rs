//! A layer on its way: a body that arrives, a plain thread that reads it, and perhaps an upload of the same bytes.
//!
//! The body is read ahead by a task, as far as the window allows, so that the line stays full while the reader thinks. What
//! the reader takes goes to the upload as well. An upload that breaks is given up and does not disturb the reader.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::fetch::{FetchError, Fetcher};

/// Bytes read ahead, in KiB: a line of 125 MB/s for 30 ms.
const WINDOW_KIB: usize = 4 << 10;
/// Chunks that wait at most, whatever their size.
const MAX_CHUNKS: usize = 1 << 10;

/// Where the bytes of a layer go besides.
pub(super) type Tee = mpsc::Sender<io::Result<Bytes>>;

/// A chunk and its place in the window.
struct Chunk {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Reads a blob from its start. It blocks: for plain threads.
pub(super) struct Incoming {
    chunks: mpsc::Receiver<io::Result<Chunk>>,
    current: Option<Chunk>,
    tee: Option<Tee>,
    /// Ends the request when the reader goes.
    _task: JoinSet<()>,
}

impl Incoming {
    /// Begins to read. To be called where there is a runtime.
    pub(super) fn new(
        fetcher: Arc<dyn Fetcher>,
        explain: impl Fn(FetchError) -> io::Error + Send + 'static,
        tee: Option<Tee>,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(MAX_CHUNKS);
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = pump(fetcher.as_ref(), &sender).await {
                // A reader that has gone needs no reason.
                drop(sender.send(Err(explain(error))).await);
            }
        });
        Self {
            chunks,
            current: None,
            tee,
            _task: task,
        }
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

/// Ends when the blob has ended, or nobody reads any more.
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
        // Nobody closes the window.
        let Ok(_room) = Arc::clone(&window).acquire_many_owned(kib).await else {
            return Ok(());
        };
        if chunks.send(Ok(Chunk { bytes, _room })).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
