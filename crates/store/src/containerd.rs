//! containerd's content store, image records and leases, accessed through its socket.
//!
//! A [`Containerd`] is one namespace of one daemon. A [`Lease`] (see [`Containerd::lease`])
//! protects everything that is stored under it from garbage collection. Before the lease ends, the
//! caller must set labels that make the content reachable.

mod blobs;
mod images;
mod leases;
pub(crate) mod writer;

use std::time::Duration;

use tokio::runtime::Handle;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

pub use images::ImageRecord;
pub use leases::Lease;
pub use writer::BlobWriter;

use super::StoreError;

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
use content::content_client::ContentClient;

/// containerd's limit for the size of a message, in both directions, in bytes.
const MAX_MESSAGE: usize = 16 << 20;
/// How many bytes containerd may send before they are read.
const READ_WINDOW: u32 = 2 << 20;
/// How long to retry a socket that refuses connections if the caller sets no limit. Same as the
/// reference.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay between connection attempts.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// A connection to one namespace of containerd.
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

impl Containerd {
    /// Connects to the socket at `address` (with or without `unix://`) and retries until `timeout`
    /// expires. Must be called from a multi-threaded runtime.
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
        let status = Status::invalid_argument(format!("{text:?} cannot be sent"));
        failure("header")(status)
    })
}

pub(super) fn failure(action: &'static str) -> impl FnOnce(Status) -> StoreError {
    move |status| StoreError::Containerd {
        action,
        code: status.code().into(),
        message: status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
