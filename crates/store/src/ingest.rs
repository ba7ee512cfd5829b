//! Writes a blob to containerd: a stream of messages that ends with a commit.
//!
//! The write is named after the blob's digest. If two clients write the same blob, the second waits
//! for the first. An interrupted write is resumed at its offset.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::containerd::{Containerd, content, failure};
use super::{Content, Labels, Put, StoreError};
use soci_oci::descriptor::Descriptor;

/// Size of one write message in bytes. It is small because every layer may hold one in memory.
const WRITE_CHUNK: usize = 1 << 20;
/// How long to wait for another writer of the same blob.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// Stores a blob; see [`super::ContentStore::put`].
pub(super) async fn put(
    store: &Containerd,
    descriptor: &Descriptor,
    content: Content,
) -> Result<Put, StoreError> {
    let mut source = Source::new(content);
    let deadline = Instant::now() + LOCK_TIMEOUT;
    let mut pause = Duration::from_millis(20);
    loop {
        match write(store, descriptor, &mut source).await {
            Ok(Some(put)) => return Ok(put),
            Ok(None) if Instant::now() < deadline => {}
            Ok(None) => {
                let locked = Status::unavailable("another write of this blob does not end");
                return Err(failure("write content")(locked));
            }
            Err(error) => {
                // Discard the ingest if it cannot be committed, so that a retry does not resume it.
                let abort = content::AbortRequest {
                    r#ref: descriptor.digest.to_string(),
                };
                if let Err(status) = store.content().abort(store.request(abort)).await {
                    tracing::debug!(digest = %descriptor.digest, %status, "no ingest to abort");
                }
                return Err(error);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Makes one attempt to write a blob. Returns `None` if another writer holds its name.
async fn write(
    store: &Containerd,
    descriptor: &Descriptor,
    source: &mut Source,
) -> Result<Option<Put>, StoreError> {
    match write_stream(store, descriptor, source).await {
        Ok(()) => Ok(Some(Put::Stored)),
        Err(WriteFailure::Status(status)) => match status.code() {
            Code::AlreadyExists => Ok(Some(Put::AlreadyThere)),
            // "ref ... locked": another client is writing this blob.
            Code::Unavailable if status.message().contains("locked") => Ok(None),
            _ => Err(failure("write content")(*status)),
        },
        Err(WriteFailure::Source(error)) => Err(StoreError::io(
            "read",
            Path::new(&descriptor.digest.to_string()),
        )(error)),
    }
}

async fn write_stream(
    store: &Containerd,
    descriptor: &Descriptor,
    source: &mut Source,
) -> Result<(), WriteFailure> {
    let (sender, receiver) = mpsc::channel(1);
    let total = i64::try_from(descriptor.size).unwrap_or(i64::MAX);
    let message =
        |action: content::WriteAction, offset: u64, data: Bytes| content::WriteContentRequest {
            action: action.into(),
            r#ref: descriptor.digest.to_string(),
            total,
            expected: descriptor.digest.to_string(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            data,
            labels: Labels::new(),
        };
    // The call returns with the first response, so the first message must be queued before it.
    let gone = |_| WriteFailure::from(Status::unavailable("the write stream is closed"));
    let first = message(content::WriteAction::Stat, 0, Bytes::new());
    sender.send(first).await.map_err(gone)?;
    let request = store.request(ReceiverStream::new(receiver));
    let mut answers = store.content().write(request).await?.into_inner();
    let started = answers.message().await?.unwrap_or_default();
    // Resume an interrupted write at its offset. The commit verifies the digest.
    let mut offset = u64::try_from(started.offset).unwrap_or(0);
    source.seek(offset).await?;
    loop {
        let data = source.next().await?;
        let length = data.len() as u64;
        let action = if data.is_empty() {
            content::WriteAction::Commit
        } else {
            content::WriteAction::Write
        };
        sender
            .send(message(action, offset, data))
            .await
            .map_err(gone)?;
        let Some(answer) = answers.message().await? else {
            return Err(Status::unavailable("the write stream ended early").into());
        };
        if action == content::WriteAction::Commit {
            return Ok(());
        }
        offset += length;
        if u64::try_from(answer.offset) != Ok(offset) {
            let text = format!("write is at {} instead of {offset}", answer.offset);
            return Err(Status::data_loss(text).into());
        }
    }
}

enum WriteFailure {
    Status(Box<Status>),
    Source(io::Error),
}

impl From<Status> for WriteFailure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl From<io::Error> for WriteFailure {
    fn from(error: io::Error) -> Self {
        Self::Source(error)
    }
}

/// The bytes of a write, which may have to be restarted.
enum Source {
    Bytes { all: Bytes, left: Bytes },
    File(tokio::fs::File),
}

impl Source {
    fn new(content: Content) -> Self {
        match content {
            Content::Bytes(all) => Self::Bytes {
                left: all.clone(),
                all,
            },
            Content::File(file) => Self::File(tokio::fs::File::from_std(file)),
        }
    }

    async fn seek(&mut self, offset: u64) -> io::Result<()> {
        match self {
            Self::Bytes { all, left } => {
                let at = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
                *left = all.slice(at..);
            }
            Self::File(file) => {
                tokio::io::AsyncSeekExt::seek(file, io::SeekFrom::Start(offset)).await?;
            }
        }
        Ok(())
    }

    /// Returns the next chunk; empty at the end.
    async fn next(&mut self) -> io::Result<Bytes> {
        match self {
            Self::Bytes { left, .. } => Ok(left.split_to(left.len().min(WRITE_CHUNK))),
            Self::File(file) => {
                let mut chunk = BytesMut::with_capacity(WRITE_CHUNK);
                while chunk.len() < WRITE_CHUNK {
                    let room = WRITE_CHUNK - chunk.len();
                    let mut part = tokio::io::AsyncReadExt::take(&mut *file, room as u64);
                    if tokio::io::AsyncReadExt::read_buf(&mut part, &mut chunk).await? == 0 {
                        break;
                    }
                }
                Ok(chunk.freeze())
            }
        }
    }
}
