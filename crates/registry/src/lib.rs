//! The registry client: resolves references, downloads documents and blobs, and pushes.
//!
//! All users of a [`Registry`] share its connections and tokens. Dropping the future of a request
//! closes its connection. Errors and log lines contain no credentials, and URLs in them are
//! [redacted](crate::url). Ranges of a blob are read through a [`fetch::Fetcher`].
//!
//! `hosts` gives the hosts of an image. An `endpoint` is one of them; it follows redirects, and
//! gets its authorization from `auth` and `exchange`. `transport` sends a request.

#![warn(missing_docs)]

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    credentials::Credentials,
    fetch::{FetchError, Fetcher},
};
use soci_oci::{descriptor::Descriptor, reference::ImageRef};

mod answer;
mod auth;
mod blob;
mod breaker;
mod challenge;
pub mod credentials;
mod endpoint;
mod error;
mod exchange;
pub mod fetch;
mod host_files;
mod hosts;
mod limit;
mod manifest;
mod no_proxy;
mod range;
mod referrers;
mod refusal;
pub mod retry;
mod rounds;
mod stamp;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod trace;
mod transport;
mod upload;
pub mod url;

use auth::{Auth, Scope};
use blob::{Patience, RemoteBlob};
use endpoint::Endpoint;
pub use error::RegistryError;
use error::failed;
pub use host_files::HostFolders;
use hosts::Operation;
pub use hosts::{HostError, Hosts, Mirror};
pub use manifest::{MAX_MANIFEST, RawManifest};
pub use referrers::Listing;
use retry::RetryPolicy;
use rounds::{At, over_hosts};
pub use tls::{Identity, Tls, TlsError, warm_up};
pub use trace::{Trace, Traffic};
use transport::{Settings, Transport};
pub use upload::{BlobSource, BlobStream, Sent, Uploaded};

/// Settings of the registry client. The defaults are those of the Go snapshotter, where it has one.
#[derive(Clone, Debug)]
pub struct Options {
    /// `User-Agent` of every request.
    pub user_agent: String,
    /// Timeout for connecting, including the TLS handshake.
    pub connect_timeout: Duration,
    /// Timeout for the response headers, in addition to `connect_timeout`.
    pub head_timeout: Duration,
    /// Longest pause within a body. The complete body has no timeout.
    pub idle_timeout: Duration,
    /// Retries of requests for documents and tokens, and of uploads.
    pub retry: RetryPolicy,
    /// Retries of requests for ranges of blobs.
    pub blob_retry: RetryPolicy,
    /// No retry of a range starts later than this after its last progress. Callers that handle
    /// failures themselves use it to learn about them early.
    pub blob_patience: Duration,
    /// Maximum number of concurrent requests per host. The client uses fewer if the host reports
    /// that it is overloaded.
    pub most_requests: usize,
    /// Mirrors, and which hosts are contacted without TLS.
    pub hosts: Hosts,
    /// Called for every request.
    pub trace: Option<Trace>,
    /// Trusted authorities and the client certificate, unless a host has its own settings.
    pub tls: Tls,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            user_agent: concat!("soci-snapshotter/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(3),
            head_timeout: Duration::from_secs(3),
            // Long enough for a stall of a storage service, short enough for a waiting reader.
            idle_timeout: Duration::from_secs(20),
            retry: RetryPolicy::default(),
            blob_retry: RetryPolicy::default(),
            blob_patience: Duration::MAX,
            most_requests: 32,
            hosts: Hosts::default(),
            trace: None,
            tls: Tls::default(),
        }
    }
}

/// The registry client. Cheap to clone; clones share all state.
#[derive(Clone)]
pub struct Registry {
    options: Arc<Options>,
    transport: Arc<Transport>,
    auth: Arc<Auth>,
    listing: Arc<referrers::Known>,
    /// Uploads in progress.
    sessions: Arc<upload::Sessions>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Creates a client. Loads the certificate authorities from `SSL_CERT_FILE` and `SSL_CERT_DIR`,
    /// or from the distribution's default locations. Uses the proxies of the environment.
    pub fn new(
        options: Options,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Registry, RegistryError> {
        let transport = Arc::new(Transport::new(&options)?);
        let auth = Arc::new(Auth::new(credentials, options.retry));
        Ok(Registry {
            options: Arc::new(options),
            transport,
            auth,
            listing: Arc::default(),
            sessions: Arc::default(),
        })
    }

    /// Returns a blob of the image's repository for reading in ranges. Sends no request.
    pub fn blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
    ) -> Result<Arc<dyn Fetcher>, RegistryError> {
        let endpoints = self.endpoints(image, Operation::Pull)?;
        Ok(Arc::new(self.blob_at(endpoints, image, blob)))
    }

    /// Like [`Registry::blob`], but reads only from the registry itself: for a blob that is wrong
    /// on a mirror.
    pub fn blob_of_origin(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
    ) -> Result<Arc<dyn Fetcher>, RegistryError> {
        let origin = self.endpoints(image, Operation::Pull)?.pop();
        Ok(Arc::new(self.blob_at(
            origin.into_iter().collect(),
            image,
            blob,
        )))
    }

    /// Whether blobs of the image may come from hosts other than the registry itself.
    pub fn has_mirrors(&self, image: &ImageRef) -> bool {
        let hosts = self.options.hosts.of(image, Operation::Pull);
        hosts.is_ok_and(|hosts| hosts.len() > 1)
    }

    fn blob_at(
        &self,
        endpoints: Vec<Arc<Endpoint>>,
        image: &ImageRef,
        blob: &Descriptor,
    ) -> RemoteBlob {
        RemoteBlob::new(
            blob.digest,
            blob.size,
            Scope::pull(image.repository()),
            endpoints,
            Patience {
                retry: self.options.blob_retry,
                attempts: self.options.blob_patience,
                idle: self.options.idle_timeout,
            },
        )
    }

    /// Downloads and verifies a complete blob of at most `limit` bytes. If the digest does not
    /// match, each host is tried separately, starting with the origin.
    pub async fn blob_bytes(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let what = format!("blobs/{}", blob.digest);
        if blob.size > limit {
            return Err(RegistryError::TooLarge {
                what: format!("{image}: {what}"),
                limit,
            });
        }
        let endpoints = self.endpoints(image, Operation::Pull)?;
        let first = self.blob_at(endpoints.clone(), image, blob);
        let read = whole(&first).await;
        let bytes = read.map_err(|error| failed(image, &what, error))?;
        if blob.digest.matches(&bytes) {
            return Ok(bytes);
        }
        first.distrust();
        let others = match endpoints.len() {
            1 => &[],
            _ => endpoints.as_slice(),
        };
        for endpoint in others.iter().rev() {
            let one = self.blob_at(vec![Arc::clone(endpoint)], image, blob);
            match whole(&one).await {
                Ok(bytes) if blob.digest.matches(&bytes) => return Ok(bytes),
                Ok(_) => tracing::debug!(%image, what, "wrong bytes"),
                Err(error) => tracing::debug!(%image, what, %error, "host passed over"),
            }
        }
        Err(RegistryError::WrongBytes {
            what: format!("{image}: {what}"),
        })
    }

    /// The hosts for an operation in order of preference. A mirror whose certificates cannot be read
    /// is logged and skipped, because it must not make the registry unreachable.
    fn endpoints(
        &self,
        image: &ImageRef,
        operation: Operation,
    ) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let mut hosts = self.options.hosts.of(image, operation)?;
        let Some(last) = hosts.pop() else {
            return Ok(Vec::new());
        };
        let mut endpoints = Vec::with_capacity(hosts.len() + 1);
        for host in hosts {
            let mirror = host.authority.clone();
            match self.endpoint(host, image) {
                Ok(endpoint) => endpoints.push(Arc::new(endpoint.into_mirror())),
                Err(error) => tracing::warn!(
                    mirror,
                    error = &error as &dyn std::error::Error,
                    "mirror left out"
                ),
            }
        }
        endpoints.push(Arc::new(self.endpoint(last, image)?));
        Ok(endpoints)
    }

    fn endpoint(&self, host: hosts::Host, image: &ImageRef) -> Result<Endpoint, RegistryError> {
        let tls = host.tls.of(&self.options.tls);
        let transport = if tls.is_none() && host.dial_timeout.is_none() {
            Arc::clone(&self.transport)
        } else {
            let tls = tls.unwrap_or_else(|| self.options.tls.clone());
            let dial_timeout = host.dial_timeout;
            Arc::new(self.transport.with(&Settings { tls, dial_timeout })?)
        };
        let auth = Arc::clone(&self.auth);
        Ok(Endpoint::new(host, image.clone(), transport, auth)?)
    }
}

/// Downloads a complete blob, without verifying it.
async fn whole(blob: &RemoteBlob) -> Result<Bytes, FetchError> {
    if blob.size() == 0 {
        return Ok(Bytes::new());
    }
    blob.fetch(0..blob.size()).await?.collect().await
}
