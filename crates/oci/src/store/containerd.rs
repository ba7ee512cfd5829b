//! containerd's content store, image records and leases, over its socket.
//!
//! A [`Containerd`] is one namespace of one daemon. What is put while a [`Lease`] is held (see
//! [`Containerd::lease`]) stays until the lease ends; until then labels must have made it reachable.

use std::io::{self, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::runtime::Handle;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::{Blob, Content, ContentStore, Labels, Put, StoreError, checked, ingest};
use crate::descriptor::Descriptor;
use crate::digest::Digest;

#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated from containerd's interface definitions"
)]
mod api {
    tonic::include_proto!("containerd");
}

pub(super) use api::containerd::services::content::v1 as content;
use api::containerd::services::images::v1 as images;
use api::containerd::services::leases::v1 as leases;
use api::containerd::types;
use content::content_client::ContentClient;
use images::images_client::ImagesClient;
use leases::leases_client::LeasesClient;

/// containerd's limit of a message, in both directions, in bytes.
const MAX_MESSAGE: usize = 16 << 20;
/// How much containerd may send ahead of a reader, in bytes.
const READ_WINDOW: u32 = 2 << 20;
/// How long a socket that nobody listens on is tried, when the caller sets no limit; as the reference.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before a socket is tried again.
const DIAL_PAUSE: Duration = Duration::from_millis(100);
/// How long containerd keeps what a lease holds when the process that took it died; as the reference.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// One namespace of a containerd.
#[derive(Clone)]
pub struct Containerd {
    channel: Channel,
    headers: MetadataMap,
    /// Drives a stream for a reader on a plain thread.
    runtime: Handle,
}

impl std::fmt::Debug for Containerd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Containerd")
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// The name of an image and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// The name, verbatim.
    pub name: String,
    /// The manifest or index.
    pub target: Descriptor,
    /// Labels of the record.
    pub labels: Labels,
}

/// Keeps what is put under it from being collected. It ends with [`Lease::end`]; one that is only
/// dropped ends after a day.
#[derive(Debug)]
pub struct Lease {
    id: String,
    store: Containerd,
}

impl Lease {
    /// The store whose writes belong to this lease.
    #[must_use]
    pub fn store(&self) -> Containerd {
        self.store.clone()
    }

    /// Ends the lease: what is not reachable otherwise may be collected from now on.
    pub async fn end(self) -> Result<(), StoreError> {
        let Self { id, store } = self;
        let request = store.request(leases::DeleteRequest { id, sync: false });
        store
            .leases()
            .delete(request)
            .await
            .map_err(failure("delete lease"))?;
        Ok(())
    }
}

impl Containerd {
    /// Connects to the socket at `address` (with or without `unix://`), trying for `timeout`. Must be
    /// called inside a runtime with several threads.
    pub async fn connect(
        address: &str,
        namespace: &str,
        timeout: Option<Duration>,
    ) -> Result<Self, StoreError> {
        let address = address.strip_prefix("unix://").unwrap_or(address);
        let mut headers = MetadataMap::new();
        headers.insert("containerd-namespace", header_value(namespace)?);
        let channel = dial(address, timeout).await?;
        Ok(Self {
            channel,
            headers,
            runtime: Handle::current(),
        })
    }

    /// Takes a lease.
    pub async fn lease(&self) -> Result<Lease, StoreError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let id = format!("soci-{}-{:016x}", now.as_nanos(), random());
        let expire = rfc3339((now + LEASE_LIFE).as_secs());
        let labels = [("containerd.io/gc.expire".to_owned(), expire)].into();
        let request = self.request(leases::CreateRequest {
            id: id.clone(),
            labels,
        });
        self.leases()
            .create(request)
            .await
            .map_err(failure("create lease"))?;
        let mut store = self.clone();
        store.headers.insert("containerd-lease", header_value(&id)?);
        Ok(Lease { id, store })
    }

    /// Looks an image up by its exact name.
    pub async fn image(&self, name: &str) -> Result<ImageRecord, StoreError> {
        let request = self.request(images::GetImageRequest {
            name: name.to_owned(),
        });
        let answer = match self.images().get(request).await {
            Err(status) if status.code() == Code::NotFound => {
                return Err(StoreError::NoImage(name.to_owned()));
            }
            other => other.map_err(failure("get image"))?,
        };
        record(answer.into_inner().image.unwrap_or_default())
    }

    /// Makes a name stand for a manifest or index; an existing record keeps its labels. `epoch` is the
    /// time of the record instead of now, in seconds of Unix time.
    pub async fn put_image(
        &self,
        name: &str,
        target: &Descriptor,
        epoch: Option<i64>,
    ) -> Result<(), StoreError> {
        let mut image = images::Image {
            name: name.to_owned(),
            labels: Labels::new(),
            target: Some(types::Descriptor {
                media_type: target.media_type.clone(),
                digest: target.digest.to_string(),
                size: i64::try_from(target.size).unwrap_or(i64::MAX),
                annotations: target.annotations.clone(),
            }),
            created_at: None,
            updated_at: None,
        };
        let source_date_epoch = epoch.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
        let create = images::CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch,
        };
        match self.images().create(self.request(create)).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            other => return other.map(drop).map_err(failure("create image")),
        }
        image.labels = self.image(name).await?.labels;
        let update = images::UpdateImageRequest {
            image: Some(image),
            update_mask: None,
            source_date_epoch,
        };
        self.images()
            .update(self.request(update))
            .await
            .map_err(failure("update image"))?;
        Ok(())
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        request
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    async fn stream(
        &self,
        digest: &Digest,
    ) -> Result<Streaming<content::ReadContentResponse>, StoreError> {
        let digest_text = digest.to_string();
        let read = content::ReadContentRequest {
            digest: digest_text,
            offset: 0,
            size: 0,
        };
        let answer = self.content().read(self.request(read)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(about(digest, "read content"))
    }
}

/// A blob as containerd streams it, for a plain thread.
struct StreamReader {
    runtime: Handle,
    stream: Streaming<content::ReadContentResponse>,
    current: Bytes,
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.runtime.block_on(self.stream.message()) {
                Ok(Some(message)) => self.current = message.data,
                Ok(None) => return Ok(0),
                Err(status) => return Err(io::Error::other(status.message().to_owned())),
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
        let request = self.request(content::InfoRequest {
            digest: digest.to_string(),
        });
        match self.content().info(request).await {
            Ok(answer) => {
                let info = answer.into_inner().info.unwrap_or_default();
                Ok(Some(u64::try_from(info.size).unwrap_or(0)))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failure("stat content")(status)),
        }
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let size = self
            .size(digest)
            .await?
            .ok_or(StoreError::NotFound(*digest))?;
        let (stream, runtime) = (self.stream(digest).await?, self.runtime.clone());
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
        let mut stream = self.stream(digest).await?;
        let mut bytes = BytesMut::new();
        while let Some(message) = stream
            .message()
            .await
            .map_err(about(digest, "read content"))?
        {
            bytes.extend_from_slice(&message.data);
            if bytes.len() as u64 > size {
                break;
            }
        }
        checked(bytes.freeze(), *digest, size)
    }
}

async fn dial(address: &str, timeout: Option<Duration>) -> Result<Channel, StoreError> {
    let unreachable = |cause: &str| StoreError::Unreachable {
        address: address.to_owned(),
        cause: cause.to_owned(),
    };
    let endpoint = Endpoint::from_shared(format!("unix://{address}"))
        .map_err(|error| unreachable(&error.to_string()))?
        .initial_stream_window_size(READ_WINDOW)
        .initial_connection_window_size(4 * READ_WINDOW);
    let keep_trying = async {
        loop {
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(error) => tracing::debug!(address, ?error, "containerd cannot be reached yet"),
            }
            tokio::time::sleep(DIAL_PAUSE).await;
        }
    };
    match tokio::time::timeout(timeout.unwrap_or(DIAL_TIMEOUT), keep_trying).await {
        Ok(channel) => Ok(channel),
        Err(_) if timeout.is_some() => Err(StoreError::Deadline),
        Err(_) => Err(unreachable("timeout")),
    }
}

fn header_value(text: &str) -> Result<AsciiMetadataValue, StoreError> {
    AsciiMetadataValue::try_from(text).map_err(|_| {
        let status = Box::new(Status::invalid_argument(format!("{text:?} cannot be sent")));
        StoreError::Containerd {
            action: "header",
            status,
        }
    })
}

pub(super) fn failure(action: &'static str) -> impl FnOnce(Status) -> StoreError {
    move |status| StoreError::Containerd {
        action,
        status: Box::new(status),
    }
}

fn about(digest: &Digest, action: &'static str) -> impl FnOnce(Status) -> StoreError {
    let digest = *digest;
    move |status| match status.code() {
        Code::NotFound => StoreError::NotFound(digest),
        _ => failure(action)(status),
    }
}

fn record(image: images::Image) -> Result<ImageRecord, StoreError> {
    let images::Image {
        name,
        labels,
        target,
        created_at: _,
        updated_at: _,
    } = image;
    let types::Descriptor {
        media_type,
        digest,
        size,
        annotations,
    } = target.unwrap_or_default();
    let invalid =
        |cause: String| failure("get image")(Status::internal(format!("{name}: {cause}")));
    let digest = digest
        .parse()
        .map_err(|error| invalid(format!("{digest}: {error}")))?;
    let size = u64::try_from(size).map_err(|error| invalid(error.to_string()))?;
    let target = Descriptor {
        annotations,
        ..Descriptor::new(media_type, digest, size)
    };
    Ok(ImageRecord {
        name,
        target,
        labels,
    })
}

/// A number that nobody else has. It keeps no secret.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Seconds of Unix time as RFC 3339 in UTC.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years; a year here ends with February.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[tokio::test]
    async fn a_dead_socket_is_reported_after_the_callers_timeout() {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/none.sock", folder.path().display());
        let timeout = Some(Duration::from_millis(50));
        let error = Containerd::connect(&address, "default", timeout)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "context deadline exceeded while waiting for connections to become ready: context deadline exceeded"
        );
    }
}
