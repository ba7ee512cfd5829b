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
use reqwest::{
    Method,
    header::{ACCEPT, HeaderMap, HeaderValue},
};

use crate::{
    credentials::Credentials,
    fetch::{FetchError, Fetcher},
    url::RedactedUrl,
};
use soci_oci::{descriptor::Descriptor, digest::Digest, media_type, reference::ImageRef};

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
mod no_proxy;
mod range;
mod referrers;
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

use answer::{descriptor_of, no_web_page, read_capped};
use auth::{Auth, Scope};
use blob::{Patience, RemoteBlob};
use endpoint::{Call, Endpoint};
pub use error::RegistryError;
use error::failed;
pub use host_files::HostFolders;
use hosts::Operation;
pub use hosts::{HostError, Hosts, Mirror};
pub use referrers::Listing;
use retry::RetryPolicy;
use rounds::{At, over_hosts};
pub use tls::{Identity, Tls, TlsError, warm_up};
pub use trace::{Trace, Traffic};
use transport::{Settings, Transport, refused};
pub use upload::{BlobSource, BlobStream, Sent, Uploaded};

/// Size limit in bytes for a manifest or index. Registries and the Go snapshotter use the same
/// limit.
pub const MAX_MANIFEST: u64 = 4 << 20;

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

/// A manifest or index, byte for byte.
#[derive(Clone, Debug)]
pub struct RawManifest {
    /// The media type that the registry returned.
    pub media_type: String,
    /// The digest, verified against the bytes.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
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

    /// Returns the media type, digest and size of the manifest or index that a reference names.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Descriptor, RegistryError> {
        let object = object_of(image)?;
        let what = format!("manifests/{object}");
        let endpoints = self.endpoints(image, operation(&object))?;
        let scope = Scope::pull(image.repository());
        let found = over_hosts(&endpoints, self.options.retry, |endpoint| {
            let (what, scope) = (what.clone(), scope.clone());
            Box::pin(async move {
                let mut call = Call::new(Method::HEAD, endpoint.url(&what));
                call.headers = accept_manifests();
                let (url, answer) = endpoint.follow(call, &scope).await?;
                match answer.status().as_u16() {
                    200 => no_web_page(&answer).map(|_| descriptor_of(&answer)),
                    // Some registries do not support HEAD; fall back to GET.
                    405 | 501 => Ok(None),
                    _ => Err(refused(RedactedUrl::from(&url), answer).await),
                }
            })
        })
        .await
        .map_err(|error| failed(image, &what, error))?;
        match (found, image.digest()) {
            (Some(found), None) => Ok(found),
            (Some(found), Some(digest)) if found.digest == *digest => Ok(found),
            _ => {
                let manifest = self.get_manifest(image, &object).await?;
                let size = manifest.bytes.len() as u64;
                Ok(Descriptor::new(manifest.media_type, manifest.digest, size))
            }
        }
    }

    /// Downloads the manifest or index that the reference names.
    pub async fn root(&self, image: &ImageRef) -> Result<RawManifest, RegistryError> {
        self.get_manifest(image, &object_of(image)?).await
    }

    /// Downloads the manifest or index with this digest from the image's repository.
    pub async fn manifest(
        &self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<RawManifest, RegistryError> {
        self.get_manifest(image, &digest.to_string()).await
    }

    /// Downloads a manifest by tag or digest. Bytes that do not match the digest count as a failure
    /// of the host.
    async fn get_manifest(
        &self,
        image: &ImageRef,
        object: &str,
    ) -> Result<RawManifest, RegistryError> {
        let at = At {
            hosts: self.endpoints(image, operation(object))?,
            retry: self.options.retry,
        };
        let scope = Scope::pull(image.repository());
        self.get_manifest_at(&at, image, object, scope).await
    }

    async fn get_manifest_at(
        &self,
        at: &At,
        image: &ImageRef,
        object: &str,
        scope: Scope,
    ) -> Result<RawManifest, RegistryError> {
        let what = format!("manifests/{object}");
        let expected = object.parse::<Digest>().ok();
        let (media_type, bytes) = over_hosts(&at.hosts, at.retry, |endpoint| {
            let (what, scope) = (what.clone(), scope.clone());
            Box::pin(async move {
                let mut call = Call::new(Method::GET, endpoint.url(&what));
                call.headers = accept_manifests();
                let (url, answer) = endpoint.follow(call, &scope).await?;
                let url = RedactedUrl::from(&url);
                if answer.status() != reqwest::StatusCode::OK {
                    return Err(refused(url, answer).await);
                }
                let media_type = no_web_page(&answer)?;
                let bytes = read_capped(url.clone(), answer, MAX_MANIFEST).await?;
                match expected {
                    Some(digest) if !digest.matches(&bytes) => Err(FetchError::WrongBytes { url }),
                    _ => Ok((media_type, bytes)),
                }
            })
        })
        .await
        .map_err(|error| failed(image, &what, error))?;
        Ok(RawManifest {
            media_type,
            digest: expected.unwrap_or_else(|| Digest::sha256(&bytes)),
            bytes,
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

/// The operation that requests a manifest by this name.
fn operation(object: &str) -> Operation {
    if object.parse::<Digest>().is_ok() {
        Operation::Pull
    } else {
        Operation::Resolve
    }
}

fn object_of(image: &ImageRef) -> Result<String, RegistryError> {
    image.object().ok_or_else(|| RegistryError::NoObject {
        image: image.to_string(),
    })
}

fn accept_manifests() -> HeaderMap {
    let types = [
        media_type::OCI_MANIFEST,
        media_type::OCI_INDEX,
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_INDEX,
        "*/*",
    ];
    let value = HeaderValue::try_from(types.join(", "));
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, value.expect("media types make a header value"));
    headers
}
