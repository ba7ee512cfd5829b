//! Blobs in containerd's content store.

use std::io::{self, Read};
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::runtime::Handle;
use tonic::{Code, Status, Streaming};

use super::{Containerd, content, failure};
use crate::{Blob, Content, ContentStore, Labels, Put, StoreError, checked, ingest};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;

/// Label that lists the repositories that a blob was pulled from or pushed to, by registry host
/// without port.
const SOURCE_LABEL: &str = "containerd.io/distribution.source";

impl Containerd {
    /// Returns containerd's information about a blob, or `None` if it is missing.
    async fn info(&self, digest: &Digest) -> Result<Option<content::Info>, StoreError> {
        let request = self.request(content::InfoRequest {
            digest: digest.to_string(),
        });
        match self.content().info(request).await {
            Ok(answer) => Ok(Some(answer.into_inner().info.unwrap_or_default())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failure("stat content")(status)),
        }
    }

    async fn stream(
        &self,
        digest: &Digest,
        range: Option<&Range<u64>>,
    ) -> Result<Streaming<content::ReadContentResponse>, StoreError> {
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let read = content::ReadContentRequest {
            digest: digest.to_string(),
            offset: range.map_or(0, |range| number(range.start)),
            // 0 means to the end.
            size: range.map_or(0, |range| number(range.end - range.start)),
        };
        let answer = self.content().read(self.request(read)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(about(digest, "read content"))
    }

    /// Reads a range of a blob into memory. Fails if the number of bytes is wrong.
    async fn bytes(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        let expected = range.end - range.start;
        let mut bytes = BytesMut::new();
        if expected == 0 {
            return Ok(bytes.freeze());
        }
        let mut stream = self.stream(digest, Some(&range)).await?;
        while let Some(message) = stream
            .message()
            .await
            .map_err(about(digest, "read content"))?
        {
            bytes.extend_from_slice(&message.data);
            if bytes.len() as u64 > expected {
                break;
            }
        }
        let actual = bytes.len() as u64;
        if actual != expected {
            let digest = *digest;
            return Err(StoreError::Size {
                digest,
                expected,
                actual,
            });
        }
        Ok(bytes.freeze())
    }
}

/// Maximum time between two messages of a stream, so that a hung containerd does not block the
/// reading thread indefinitely.
const SILENCE: Duration = Duration::from_secs(20);

/// A blob streamed by containerd, for a plain thread.
struct StreamReader {
    runtime: Handle,
    stream: Streaming<content::ReadContentResponse>,
    current: Bytes,
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let next = async { tokio::time::timeout(SILENCE, self.stream.message()).await };
            match self.runtime.block_on(next) {
                Ok(Ok(Some(message))) => self.current = message.data,
                Ok(Ok(None)) => return Ok(0),
                Ok(Err(status)) => return Err(io::Error::other(status.message().to_owned())),
                Err(_) => {
                    let seconds = SILENCE.as_secs();
                    let silent = format!("containerd has sent nothing for {seconds} s");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, silent));
                }
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[async_trait]
impl ContentStore for Containerd {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let info = self.info(digest).await?;
        Ok(info.map(|info| u64::try_from(info.size).unwrap_or(0)))
    }

    async fn repositories(&self, digest: &Digest, host: &str) -> Result<Vec<String>, StoreError> {
        // The label omits the port, so a repository may belong to another registry on the same
        // host.
        let host = match host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => host,
        };
        let label = format!("{SOURCE_LABEL}.{host}");
        let info = self.info(digest).await?.unwrap_or_default();
        let known = info.labels.get(&label).map_or("", |known| known);
        let known = known.split(',').filter(|repository| !repository.is_empty());
        Ok(known.map(str::to_owned).collect())
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let size = self
            .size(digest)
            .await?
            .ok_or(StoreError::NotFound(*digest))?;
        let (stream, runtime) = (self.stream(digest, None).await?, self.runtime.clone());
        Ok(Blob {
            size,
            reader: Box::new(StreamReader {
                runtime,
                stream,
                current: Bytes::new(),
            }),
        })
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        ingest::put(self, descriptor, content).await
    }

    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = content::Info {
            digest: digest.to_string(),
            labels: labels.clone(),
            ..content::Info::default()
        };
        let update = content::UpdateRequest {
            info: Some(info),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let answer = self.content().update(self.request(update)).await;
        answer.map(drop).map_err(about(digest, "label content"))
    }

    async fn read(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let size = self
            .size(digest)
            .await?
            .ok_or(StoreError::NotFound(*digest))?;
        if size > limit {
            return Err(StoreError::TooLarge {
                digest: *digest,
                size,
                limit,
            });
        }
        let bytes = self.bytes(digest, 0..size).await?;
        checked(bytes, *digest, size)
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.bytes(digest, range).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        let request = self.request(content::DeleteContentRequest {
            digest: digest.to_string(),
        });
        match self.content().delete(request).await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            other => other.map(drop).map_err(failure("delete content")),
        }
    }

    async fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let request = self.request(content::ListContentRequest::default());
        let answer = self.content().list(request).await;
        let mut stream = answer.map_err(failure("list content"))?.into_inner();
        let mut found = Vec::new();
        while let Some(message) = stream.message().await.map_err(failure("list content"))? {
            found.extend(message.info.iter().filter_map(|info| {
                // Skip blobs whose digest cannot be parsed: this program did not write them.
                let digest = info.digest.parse().ok()?;
                Some((digest, u64::try_from(info.size).unwrap_or(0)))
            }));
        }
        Ok(found)
    }
}

fn about(digest: &Digest, action: &'static str) -> impl FnOnce(Status) -> StoreError {
    let digest = *digest;
    move |status| match status.code() {
        Code::NotFound => StoreError::NotFound(digest),
        _ => failure(action)(status),
    }
}
