//! Writes a blob that is at hand to containerd.
//!
//! The write is named after the blob's digest. If two clients write the same blob, the second waits
//! for the first. An interrupted write is resumed at its offset.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tonic::Status;

use super::containerd::writer::{BlobWriter, Refused, abort};
use super::containerd::{Containerd, failure};
use super::{Content, Put, StoreError};
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
                abort(store, descriptor.digest.to_string()).await;
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
        Err(WriteFailure::Store(Refused::Present)) => Ok(Some(Put::AlreadyThere)),
        Err(WriteFailure::Store(Refused::Busy)) => Ok(None),
        Err(WriteFailure::Store(refused)) => Err(refused.into()),
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
    let mut writer = BlobWriter::try_begin(store, descriptor).await?;
    source.seek(writer.offset()).await?;
    loop {
        let data = source.next().await?;
        if data.is_empty() {
            return Ok(writer.try_commit().await?);
        }
        writer.try_write(data).await?;
    }
}

enum WriteFailure {
    Store(Refused),
    Source(io::Error),
}

impl From<Refused> for WriteFailure {
    fn from(refused: Refused) -> Self {
        Self::Store(refused)
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
