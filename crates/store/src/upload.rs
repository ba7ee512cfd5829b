//! A blob of a store as the source of an upload.

use std::io::{self, Read};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use soci_oci::Descriptor;
use soci_registry::{BlobSource, BlobStream};
use tokio::sync::mpsc;

use crate::ContentStore;

/// Bytes per chunk read from a store.
const CHUNK: usize = 256 << 10;
/// Chunks read ahead.
const AHEAD: usize = 2;

/// A blob in a store. Its bytes are verified against the descriptor while they are read.
#[derive(Clone, Debug)]
pub struct FromStore {
    /// The store that has the blob.
    pub store: Arc<dyn ContentStore>,
    /// The blob.
    pub blob: Descriptor,
}

#[async_trait]
impl BlobSource for FromStore {
    async fn open(&self) -> io::Result<BlobStream> {
        let blob = self.store.open(&self.blob.digest).await;
        let reader = blob.and_then(|blob| blob.verified(&self.blob));
        let reader = reader.map_err(io::Error::other)?;
        let (chunks, mut received) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || read(reader, &chunks));
        let received = stream::poll_fn(move |cx| received.poll_recv(cx));
        Ok(Box::pin(received))
    }
}

/// Reads to the end, or until the receiver is dropped.
fn read(mut reader: impl Read, chunks: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let taken = reader.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        let chunk = match taken {
            Ok(0) => return,
            Ok(_) => Ok(Bytes::from(chunk)),
            Err(error) => Err(error),
        };
        let broken = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || broken {
            return;
        }
    }
}
