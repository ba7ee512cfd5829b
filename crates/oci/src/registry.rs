//! The registry client: reference → descriptor → bytes, and the way back.
//!
//! ```text
//! ImageRef ── hosts ──► Endpoint (one host, one image)  ── auth, exchange ──► Authorization
//!                          │ follow redirects
//!                          ▼
//!                       transport (connections, TLS, limits, timeouts)
//! ```
//!
//! * [`Registry::resolve`] and [`Registry::manifest`] name and bring documents, checked against their digests and capped.
//! * [`Registry::blob`] is a [`Fetcher`]: ranges, resumed at the last byte, from mirrors and origin (see `blob`).
//! * [`Registry::push_blob`] and [`Registry::push_manifest`] write.
//! * [`Registry::referrers`] finds what refers to a manifest, [`Registry::push_referrer`] writes it to be found.
//!
//! One value serves a whole program: connections, tokens and what is known of hosts are shared by all its users.
//! Dropping the future of a request closes its connection. Nothing printed or returned holds a credential or a signed
//! address: URLs are [redacted](crate::url), credentials have no text form.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::{
    Method,
    header::{ACCEPT, HeaderMap, HeaderValue},
};

use crate::{
    credentials::Credentials,
    descriptor::Descriptor,
    digest::Digest,
    fetch::{FetchError, Fetcher},
    media_type,
    reference::ImageRef,
    url::RedactedUrl,
};

mod answer;
mod auth;
mod blob;
mod challenge;
mod endpoint;
mod error;
mod exchange;
mod host_files;
mod hosts;
mod limit;
mod range;
mod referrers;
pub mod retry;
mod rounds;
mod tls;
mod trace;
mod transport;
mod upload;

use answer::{descriptor_of, no_web_page, read_capped};
use auth::{Auth, Scope};
use blob::{Patience, RemoteBlob};
use endpoint::{Call, Endpoint};
pub use error::RegistryError;
use error::failed;
use hosts::Doing;
pub use hosts::{Configured, HostError, Hosts, Mirror};
pub use referrers::Listing;
use retry::{Attempts, RetryPolicy};
use rounds::Rounds;
pub use tls::{Identity, Tls, TlsError};
pub use trace::{Trace, Traffic};
use transport::{Transport, refused};
pub use upload::{BlobSource, BlobStream, FromStore, Sent, Uploaded};

/// Largest manifest or index that is read (what registries accept, and the reference's limit).
pub const MAX_MANIFEST: u64 = 4 << 20;

/// How to speak to registries. The defaults are the reference's, where it has one.
#[derive(Clone, Debug)]
pub struct Options {
    /// `User-Agent` of every request.
    pub user_agent: String,
    /// Longest wait for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest wait for the head of an answer, after connecting.
    pub head_timeout: Duration,
    /// Longest pause in a body. There is no limit to the whole of it.
    pub idle_timeout: Duration,
    /// Attempts at documents, tokens and uploads.
    pub retry: RetryPolicy,
    /// Attempts at ranges of blobs.
    pub blob_retry: RetryPolicy,
    /// How long after the last bytes of a range another attempt may begin: a caller with a plan of its own for failures
    /// wants to hear of them.
    pub blob_patience: Duration,
    /// Most requests under way at one host, before it says that this is too many.
    pub most_requests: usize,
    /// Mirrors, and who is spoken to without TLS.
    pub hosts: Hosts,
    /// Is told of every request.
    pub trace: Option<Trace>,
    /// What to trust and to show, where a host's own settings do not say otherwise.
    pub tls: Tls,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            user_agent: concat!("soci-snapshotter/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(3),
            head_timeout: Duration::from_secs(3),
            // Long enough for a storage service to change its mind, short enough for a reader to be alive.
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
    /// What the registry says it is.
    pub media_type: String,
    /// Its digest; checked.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
}

/// The client. Cheap to clone; clones are the same client.
#[derive(Clone)]
pub struct Registry {
    options: Arc<Options>,
    transport: Arc<Transport>,
    auth: Arc<Auth>,
    listing: Arc<referrers::Known>,
    /// Uploads under way.
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
    /// A client. Certificate authorities are read now, from `SSL_CERT_FILE` and `SSL_CERT_DIR` or where the distribution
    /// keeps them; proxies are those of the environment.
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

    /// Media type, digest and size of what a reference names.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Descriptor, RegistryError> {
        let object = object_of(image)?;
        let what = format!("manifests/{object}");
        let endpoints = self.endpoints(image, doing(&object))?;
        let scope = Scope::pull(image.repository());
        let found = over_hosts(&endpoints, self.options.retry, |endpoint| {
            let (what, scope) = (what.clone(), scope.clone());
            Box::pin(async move {
                let mut call = Call::new(Method::HEAD, endpoint.url(&what));
                call.headers = accept_manifests();
                let (url, answer) = endpoint.follow(call, &scope).await?;
                match answer.status().as_u16() {
                    200 => no_web_page(&answer).map(|_| descriptor_of(&answer)),
                    // Some do not answer HEAD; GET tells.
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

    /// What the image's name stands for, itself.
    pub async fn root(&self, image: &ImageRef) -> Result<RawManifest, RegistryError> {
        self.get_manifest(image, &object_of(image)?).await
    }

    /// The manifest or index of this digest in the image's repository.
    pub async fn manifest(
        &self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<RawManifest, RegistryError> {
        self.get_manifest(image, &digest.to_string()).await
    }

    /// A manifest by tag or digest; a digest is checked, at every host.
    async fn get_manifest(
        &self,
        image: &ImageRef,
        object: &str,
    ) -> Result<RawManifest, RegistryError> {
        let endpoints = self.endpoints(image, doing(object))?;
        let scope = Scope::pull(image.repository());
        self.get_manifest_at(&endpoints, image, object, scope).await
    }

    async fn get_manifest_at(
        &self,
        endpoints: &[Arc<Endpoint>],
        image: &ImageRef,
        object: &str,
        scope: Scope,
    ) -> Result<RawManifest, RegistryError> {
        let what = format!("manifests/{object}");
        let expected = object.parse::<Digest>().ok();
        let (media_type, bytes) = over_hosts(endpoints, self.options.retry, |endpoint| {
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

    /// A blob of the image's repository, to be read in ranges. Asks nobody yet.
    pub fn blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
    ) -> Result<Arc<dyn Fetcher>, RegistryError> {
        let endpoints = self.endpoints(image, Doing::Pull)?;
        Ok(Arc::new(self.blob_at(endpoints, image, blob)))
    }

    /// The same, from the registry itself: for a blob that a mirror has wrong.
    pub(crate) fn blob_of_origin(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
    ) -> Result<Arc<dyn Fetcher>, RegistryError> {
        let origin = self.endpoints(image, Doing::Pull)?.pop();
        Ok(Arc::new(self.blob_at(
            origin.into_iter().collect(),
            image,
            blob,
        )))
    }

    /// Whether blobs of the image may come from other hosts than the registry itself.
    pub(crate) fn has_mirrors(&self, image: &ImageRef) -> bool {
        let hosts = self.options.hosts.of(image, Doing::Pull);
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

    /// A whole blob of at most `limit` bytes, checked. Where a mirror has wrong bytes, each host is asked alone, the origin
    /// first.
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
        let endpoints = self.endpoints(image, Doing::Pull)?;
        let read = self.whole(endpoints.clone(), image, blob).await;
        let bytes = read.map_err(|error| failed(image, &what, error))?;
        if blob.digest.matches(&bytes) {
            return Ok(bytes);
        }
        let others = match endpoints.len() {
            1 => &[],
            _ => endpoints.as_slice(),
        };
        for endpoint in others.iter().rev() {
            let read = self.whole(vec![Arc::clone(endpoint)], image, blob).await;
            match read {
                Ok(bytes) if blob.digest.matches(&bytes) => return Ok(bytes),
                Ok(_) => tracing::debug!(%image, what, "wrong bytes"),
                Err(error) => tracing::debug!(%image, what, %error, "host passed over"),
            }
        }
        Err(RegistryError::WrongBytes {
            what: format!("{image}: {what}"),
        })
    }

    /// All bytes of a blob as these hosts have it, not checked.
    async fn whole(
        &self,
        endpoints: Vec<Arc<Endpoint>>,
        image: &ImageRef,
        blob: &Descriptor,
    ) -> Result<Bytes, FetchError> {
        if blob.size == 0 {
            return Ok(Bytes::new());
        }
        let blob = self.blob_at(endpoints, image, blob);
        blob.fetch(0..blob.size()).await?.collect().await
    }

    fn endpoints(
        &self,
        image: &ImageRef,
        doing: Doing,
    ) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let hosts = self.options.hosts.of(image, doing)?.into_iter();
        hosts
            .map(|host| Ok(Arc::new(self.endpoint(host, image)?)))
            .collect()
    }

    fn endpoint(&self, host: hosts::Host, image: &ImageRef) -> Result<Endpoint, RegistryError> {
        let transport = match host.tls.of(&self.options.tls) {
            None => Arc::clone(&self.transport),
            Some(tls) => Arc::new(self.transport.with_tls(&tls)?),
        };
        let auth = Arc::clone(&self.auth);
        Ok(Endpoint::new(host, image.clone(), transport, auth)?)
    }
}

/// What asking for a manifest by this name is.
fn doing(object: &str) -> Doing {
    if object.parse::<Digest>().is_ok() {
        Doing::Pull
    } else {
        Doing::Resolve
    }
}

/// Does something at the first host that can, in rounds, as long as one of them may do better later.
async fn over_hosts<T>(
    endpoints: &[Arc<Endpoint>],
    retry: RetryPolicy,
    attempt: impl Fn(Arc<Endpoint>) -> BoxFuture<'static, Result<T, FetchError>> + Send,
) -> Result<T, FetchError> {
    let mut attempts = Attempts::new(retry);
    let mut rounds = Rounds::over(endpoints.len());
    loop {
        for host in rounds.order(|host| endpoints[host].is_shunned()) {
            match attempt(Arc::clone(&endpoints[host])).await {
                Ok(done) => return Ok(done),
                Err(error) => rounds.failed(host, error),
            }
        }
        let error = rounds.end();
        if !error.is_worth_repeating() {
            return Err(error);
        }
        attempts.wait(error).await?;
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
