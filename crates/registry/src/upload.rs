//! Pushes to a registry. A push goes to the origin, or to a host that the administrator configured
//! for pushes, never to a mirror. Credentials are sent only there: if the registry redirects an
//! upload elsewhere, it is sent without them.
//!
//! A blob is sent in one request, as its bytes arrive. [`Registry::upload_blob`] first checks
//! whether the blob must be sent, and retries broken uploads. [`Registry::push_blob`] sends a
//! source that can be read only once.

use std::{io, ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use reqwest::{
    Method, Response, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue},
};

use super::{
    Registry, RegistryError,
    answer::{no_web_page, stated_digest},
    auth::Scope,
    endpoint::{Call, Endpoint, MAX_REDIRECTS, redirect_target},
    failed, over_hosts,
    refusal::refused,
    retry::{Attempts, RetryPolicy},
};
use crate::{fetch::FetchError, url::RedactedUrl};
use soci_oci::{descriptor::Descriptor, digest::Digest, reference::ImageRef};

mod body;
mod manifest;
mod sessions;
mod start;

pub use body::{BlobSource, BlobStream, Sent};
use body::{Progress, Tally, watched};
pub(super) use sessions::Sessions;
use start::{begin, filed, mount, upload_url};

/// Maximum number of repositories to mount a blob from before it is sent.
const MAX_MOUNTS: usize = 2;

/// The result of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// The repository already had the blob.
    AlreadyThere,
    /// The blob was mounted from another repository of the registry.
    Mounted,
    /// The blob was sent.
    Sent,
}

impl Registry {
    /// Whether the repository has this blob.
    pub async fn has_blob(&self, image: &ImageRef, digest: &Digest) -> Result<bool, RegistryError> {
        self.has(image, "blobs", digest, self.options.retry).await
    }

    /// Whether the repository has this manifest.
    pub async fn has_manifest(
        &self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        self.has(image, "manifests", digest, self.options.retry)
            .await
    }

    async fn has(
        &self,
        image: &ImageRef,
        kind: &str,
        digest: &Digest,
        retry: RetryPolicy,
    ) -> Result<bool, RegistryError> {
        let what = format!("{kind}/{digest}");
        let scope = Scope::push(image.repository(), None);
        let origin = [Arc::new(self.origin(image)?)];
        let found = over_hosts(&origin, retry, |endpoint| {
            let (what, scope) = (what.clone(), scope.clone());
            Box::pin(async move {
                let ask = async |method| {
                    let mut call = Call::new(method, endpoint.url(&what));
                    if what.starts_with("manifests/") {
                        call.headers = super::manifest::accept_manifests();
                    }
                    endpoint.follow(call, &scope).await
                };
                let (mut url, mut answer) = ask(Method::HEAD).await?;
                // Some registries do not support HEAD. The body of the response is not read.
                if matches!(answer.status().as_u16(), 405 | 501) {
                    (url, answer) = ask(Method::GET).await?;
                }
                match answer.status().as_u16() {
                    200..=299 => no_web_page(&answer).map(|_| Some(stated_digest(&answer))),
                    404 => Ok(None),
                    _ => Err(refused(RedactedUrl::from(&url), answer).await),
                }
            })
        });
        match found.await.map_err(|error| failed(image, &what, error))? {
            Some(Some(stated)) if stated != *digest => Err(RegistryError::WrongBytes {
                what: format!("{image}: {what}"),
            }),
            found => Ok(found.is_some()),
        }
    }

    /// Mounts a blob from another repository of the same registry. Returns `false` if the registry
    /// does not mount it; the blob must then be pushed.
    pub async fn mount_blob(
        &self,
        image: &ImageRef,
        digest: &Digest,
        from: &str,
    ) -> Result<bool, RegistryError> {
        let what = format!("blobs/{digest} from {from}");
        let endpoint = self.origin(image)?;
        let round = self.sessions.round();
        let answer = mount(&endpoint, image, digest, from).await;
        let answer = answer.map_err(|error| failed(image, &what, error))?;
        let is_there = answer.status().as_u16() == 201;
        // 202 means that the registry started an upload instead.
        if !is_there && let Ok(url) = redirect_target(answer.url(), &answer) {
            self.began(round, image, &url)?;
        }
        Ok(is_there)
    }

    /// Ensures that the repository has a blob. Sends nothing if the blob is present or can be
    /// mounted from a repository in `mount_from`. Broken uploads are restarted.
    pub async fn upload_blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        mount_from: &[String],
        source: &dyn BlobSource,
        sent: Sent,
    ) -> Result<Uploaded, RegistryError> {
        if self.has_blob(image, &blob.digest).await? {
            return Ok(Uploaded::AlreadyThere);
        }
        self.send_blob(image, blob, mount_from, source, sent).await
    }

    /// Like [`Registry::upload_blob`], for a blob that is known to be missing from the repository.
    pub async fn send_blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        mount_from: &[String],
        source: &dyn BlobSource,
        sent: Sent,
    ) -> Result<Uploaded, RegistryError> {
        let what = format!("blobs/{}", blob.digest);
        let endpoint = self.origin(image)?;
        let round = self.sessions.round();
        let mounted = self.mount_any(&endpoint, image, &blob.digest, mount_from);
        let ControlFlow::Continue(mut begun) = mounted.await else {
            return Ok(Uploaded::Mounted);
        };
        let tally = Arc::new(Tally::new(sent));
        let scope = Scope::push(image.repository(), None);
        let mut attempts = Attempts::new(self.options.retry);
        let mut renewed = false;
        loop {
            let attempt = Attempt {
                registry: self,
                round,
                image,
                endpoint: &endpoint,
                scope: &scope,
                blob,
                tally: &tally,
            };
            let error = match attempt.run(begun.take(), source).await {
                Ok(()) => return Ok(Uploaded::Sent),
                Err(Broken::Registry(error)) => return Err(error),
                Err(Broken::Fetch(error)) => error,
            };
            // The token may have expired during the upload. Restarting obtains a new one; do this
            // once.
            let was_refused = matches!(&error, FetchError::Status { status: 401, .. });
            if was_refused && !renewed {
                renewed = true;
                continue;
            }
            if !error.is_worth_repeating() {
                return Err(failed(image, &what, error));
            }
            let waited = attempts.wait(error).await;
            waited.map_err(|error| failed(image, &what, error))?;
            // Perhaps only the response was lost. If this check fails, it is repeated after the
            // next attempt.
            let found = self.has(image, "blobs", &blob.digest, RetryPolicy::ONCE);
            if matches!(found.await, Ok(true)) {
                return Ok(Uploaded::Sent);
            }
        }
    }

    /// Tries to mount a blob. Breaks if it is mounted. Otherwise returns the response with the
    /// upload that the registry has started instead, if any.
    async fn mount_any(
        &self,
        endpoint: &Endpoint,
        image: &ImageRef,
        digest: &Digest,
        mount_from: &[String],
    ) -> ControlFlow<(), Option<Response>> {
        let mut begun = None;
        let others = mount_from.iter().filter(|from| *from != image.repository());
        for from in others.take(MAX_MOUNTS) {
            match mount(endpoint, image, digest, from).await {
                Ok(answer) if answer.status().as_u16() == 201 => return ControlFlow::Break(()),
                // Only one upload is needed.
                Ok(answer) => {
                    if let Some(before) = begun.replace(answer)
                        && let Ok(url) = redirect_target(before.url(), &before)
                    {
                        self.take_back(image, url).await;
                    }
                }
                Err(error) => tracing::debug!(%error, from, "blob not mounted"),
            }
        }
        ControlFlow::Continue(begun)
    }

    /// Uploads a blob of known size and digest in one request, as its bytes arrive. The source can
    /// be read only once, so a broken upload is not retried here; the caller can restart it.
    pub async fn push_blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), RegistryError> {
        let what = format!("blobs/{}", blob.digest);
        let scope = Scope::push(image.repository(), None);
        let endpoint = self.origin(image)?;
        let round = self.sessions.round();
        let begun = begin(&endpoint, endpoint.url("blobs/uploads/"), &scope).await;
        let begun = begun.map_err(|error| failed(image, &what, error))?;
        let url = upload_url(&begun, &blob.digest)?;
        let session = self.began(round, image, &url)?;
        let (body, progress) = watched(bytes, blob.size, None);
        let answer = self
            .put(&endpoint, &scope, url, blob.size, (body, progress))
            .await;
        let answer = answer.map_err(|error| error.of(image, &what))?;
        filed(answer)
            .await
            .map_err(|error| failed(image, &what, error))?;
        self.sessions.ended(session);
        Ok(())
    }

    /// Sends a body and returns the response, whatever its status.
    async fn put(
        &self,
        endpoint: &Endpoint,
        scope: &Scope,
        url: Url,
        size: u64,
        (body, progress): (reqwest::Body, Progress),
    ) -> Result<Response, Broken> {
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
        let idle = self.options.idle_timeout;
        let (begins, silence) = (progress.begins(), progress.stalls(idle));
        let sent = endpoint.send_stream(url, headers, body, scope, begins, silence);
        let answer = sent.await;
        if let Some(source) = progress.source_error() {
            return Err(Broken::Registry(RegistryError::Source { source }));
        }
        answer.map_err(Broken::Fetch)
    }

    pub(super) fn origin(&self, image: &ImageRef) -> Result<Endpoint, RegistryError> {
        self.endpoint(self.options.hosts.origin(image)?, image)
    }
}

/// One attempt at an upload that can be retried.
struct Attempt<'a> {
    registry: &'a Registry,
    /// The round of uploads that the first attempt belongs to.
    round: u64,
    image: &'a ImageRef,
    endpoint: &'a Endpoint,
    scope: &'a Scope,
    blob: &'a Descriptor,
    tally: &'a Arc<Tally>,
}

/// Why an attempt failed.
enum Broken {
    /// The request failed; a retry may succeed.
    Fetch(FetchError),
    /// A failure that a retry does not fix.
    Registry(RegistryError),
}

impl Broken {
    fn of(self, image: &ImageRef, what: &str) -> RegistryError {
        match self {
            Broken::Fetch(error) => failed(image, what, error),
            Broken::Registry(error) => error,
        }
    }
}

impl Attempt<'_> {
    async fn run(&self, begun: Option<Response>, source: &dyn BlobSource) -> Result<(), Broken> {
        let begun = match begun {
            Some(begun) => begun,
            None => begin(
                self.endpoint,
                self.endpoint.url("blobs/uploads/"),
                self.scope,
            )
            .await
            .map_err(Broken::Fetch)?,
        };
        let mut url = upload_url(&begun, &self.blob.digest).map_err(Broken::Registry)?;
        drop(begun);
        let session = self.registry.began(self.round, self.image, &url);
        let session = session.map_err(Broken::Registry)?;
        for _ in 0..=MAX_REDIRECTS {
            let bytes = source.open().await.map_err(|error| {
                let source = Arc::new(error);
                Broken::Registry(RegistryError::Source { source })
            })?;
            let body = watched(bytes, self.blob.size, Some(Arc::clone(self.tally)));
            let sent =
                self.registry
                    .put(self.endpoint, self.scope, url.clone(), self.blob.size, body);
            let answer = sent.await?;
            if !matches!(answer.status().as_u16(), 307 | 308) {
                filed(answer).await.map_err(Broken::Fetch)?;
                self.registry.sessions.ended(session);
                return Ok(());
            }
            url = redirect_target(&url, &answer).map_err(Broken::Fetch)?;
        }
        Err(Broken::Fetch(FetchError::Redirects {
            url: RedactedUrl::from(&url),
            limit: MAX_REDIRECTS,
        }))
    }
}
