//! A local file as the source of an upload.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use soci_registry::{BlobSource, BlobStream};

use crate::blocking;

/// Chunk size in bytes.
const CHUNK: u64 = 256 << 10;

/// A blob in a local file.
pub(super) struct InFile {
    pub(super) file: Arc<File>,
    pub(super) size: u64,
}

#[async_trait]
impl BlobSource for InFile {
    async fn open(&self) -> io::Result<BlobStream> {
        let (file, size) = (Arc::clone(&self.file), self.size);
        let chunks = stream::try_unfold(0, move |at| {
            let file = Arc::clone(&file);
            async move {
                let length = CHUNK.min(size - at);
                if length == 0 {
                    return Ok(None);
                }
                let chunk = blocking(move || {
                    let mut chunk = vec![0; usize::try_from(length).unwrap_or_default()];
                    file.read_exact_at(&mut chunk, at).map(|()| chunk)
                });
                Ok(Some((Bytes::from(chunk.await?), at + length)))
            }
        });
        Ok(chunks.boxed())
    }
}
