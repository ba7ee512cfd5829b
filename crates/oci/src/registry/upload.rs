//! Writing to a registry. Pushes go to the origin, never to a mirror.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::{
    Method, Response, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue},
};

use super::{
    Registry, RegistryError,
    auth::Scope,
    endpoint::{Call, Endpoint, redirect_target},
    failed, over_hosts,
    transport::refused,
};
use crate::{
    descriptor::Descriptor, digest::Digest, fetch::FetchError, reference::ImageRef,
    url::RedactedUrl,
};

impl Registry {
    /// Whether the repository has this blob.
    pub async fn has_blob(&self, image: &ImageRef, digest: &Digest) -> Result<bool, RegistryError> {
        self.has(image, &format!("blobs/{digest}")).await
    }

    /// Whether the repository has this manifest.
    pub async fn has_manifest(
        &self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        self.has(image, &format!("manifests/{digest}")).await
    }

    async fn has(&self, image: &ImageRef, what: &str) -> Result<bool, RegistryError> {
        let scope = Scope::push(image.repository(), None);
        let origin = [Arc::new(self.origin(image)?)];
        let found = over_hosts(&origin, self.options.retry, |endpoint| {
            let (what, scope) = (what.to_owned(), scope.clone());
            Box::pin(async move {
                let mut call = Call::new(Method::HEAD, endpoint.url(&what));
                if what.starts_with("manifests/") {
                    call.headers = super::accept_manifests();
                }
                let (url, answer) = endpoint.follow(call, &scope).await?;
                match answer.status().as_u16() {
                    200..=299 => Ok(true),
                    404 => Ok(false),
                    _ => Err(refused(RedactedUrl::from(&url), answer).await),
                }
            })
        });
        found.await.map_err(|error| failed(image, what, error))
    }

    /// Makes a blob of another repository of the same registry appear in this one. `false` if the registry would not: then
    /// the blob has to be pushed.
    pub async fn mount_blob(
        &self,
        image: &ImageRef,
        digest: &Digest,
        from: &str,
    ) -> Result<bool, RegistryError> {
        let what = format!("blobs/{digest} from {from}");
        let scope = Scope::push(image.repository(), Some(from));
        let endpoint = self.origin(image)?;
        let mut url = endpoint.url("blobs/uploads/");
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from);
        let answer = begin(&endpoint, url, &scope).await;
        let answer = answer.map_err(|error| failed(image, &what, error))?;
        // 202 is an upload that was begun instead; left alone, it is swept by the registry.
        Ok(answer.status().as_u16() == 201)
    }

    /// Uploads a blob of known size and digest in one request, as its bytes come. The source can be read only once, so a
    /// broken upload is not repeated here; whoever has the bytes begins again.
    pub async fn push_blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), RegistryError> {
        let what = format!("blobs/{}", blob.digest);
        let scope = Scope::push(image.repository(), None);
        let endpoint = self.origin(image)?;
        let begun = begin(&endpoint, endpoint.url("blobs/uploads/"), &scope).await;
        let begun = begun.map_err(|error| failed(image, &what, error))?;
        let own = begun.url().clone();
        let Ok(mut url) = redirect_target(&own, &begun) else {
            return Err(RegistryError::NoUploadLocation {
                url: RedactedUrl::from(&own),
            });
        };
        drop(begun);
        url.query_pairs_mut()
            .append_pair("digest", &blob.digest.to_string());
        let upload = Upload::new(bytes);
        let body = reqwest::Body::wrap_stream(upload.stream);
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
        let sent = endpoint.send_stream(url.clone(), headers, body, &scope);
        let answer = tokio::select! {
            answer = sent => answer,
            () = upload.progress.stalls(self.options.idle_timeout) => Err(FetchError::Silent {
                url: RedactedUrl::from(&url),
                idle: self.options.idle_timeout,
            }),
        };
        if let Some(source) = upload.progress.source_error() {
            return Err(RegistryError::Source { source });
        }
        let answer = answer.map_err(|error| failed(image, &what, error))?;
        if answer.status().as_u16() == 201 {
            return Ok(());
        }
        let error = refused(RedactedUrl::from(&url), answer).await;
        Err(RegistryError::Fetch {
            image: image.to_string(),
            what,
            source: Box::new(error),
        })
    }

    /// Writes a manifest or index under a tag or its digest; returns its digest.
    pub async fn push_manifest(
        &self,
        image: &ImageRef,
        object: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let put = self.put_manifest(image, object, media_type, bytes).await?;
        Ok(put.digest)
    }

    pub(super) async fn put_manifest(
        &self,
        image: &ImageRef,
        object: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        let what = format!("manifests/{object}");
        let digest = match object.parse::<Digest>() {
            Ok(digest) if digest.matches(&bytes) => digest,
            Ok(_) => {
                return Err(RegistryError::WrongBytes {
                    what: format!("{image}: {what}"),
                });
            }
            Err(_) => Digest::sha256(&bytes),
        };
        let scope = Scope::push(image.repository(), None);
        let origin = [Arc::new(self.origin(image)?)];
        let pushed = over_hosts(&origin, self.options.retry, |endpoint| {
            let (what, scope) = (what.clone(), scope.clone());
            let (media_type, bytes) = (media_type.to_owned(), bytes.clone());
            Box::pin(async move {
                let url = endpoint.url(&what);
                let mut call = Call {
                    body: Some(bytes),
                    ..Call::new(Method::PUT, url)
                };
                if let Ok(media_type) = HeaderValue::try_from(media_type) {
                    call.headers.insert(CONTENT_TYPE, media_type);
                }
                let answer = endpoint.send(&call, &scope).await?;
                match answer.status().as_u16() {
                    200..=299 => Ok(answer.headers().contains_key("oci-subject")),
                    _ => Err(refused(RedactedUrl::from(&call.url), answer).await),
                }
            })
        });
        let has_subject = pushed.await.map_err(|error| failed(image, &what, error))?;
        Ok(PutManifest {
            digest,
            has_subject,
        })
    }

    pub(super) fn origin(&self, image: &ImageRef) -> Result<Endpoint, RegistryError> {
        Ok(self.endpoint(self.options.hosts.origin(image)?, image)?)
    }
}

/// A manifest that was written.
pub(super) struct PutManifest {
    pub(super) digest: Digest,
    /// The registry has seen that it names a subject, and lists it there.
    pub(super) has_subject: bool,
}

/// Begins an upload; the answer is a 201 or a 202.
async fn begin(endpoint: &Endpoint, url: Url, scope: &Scope) -> Result<Response, FetchError> {
    let call = Call {
        body: Some(Bytes::new()),
        ..Call::new(Method::POST, url)
    };
    let answer = endpoint.send(&call, scope).await?;
    match answer.status().as_u16() {
        201 | 202 => Ok(answer),
        _ => Err(refused(RedactedUrl::from(&call.url), answer).await),
    }
}

/// What an upload's body has come to; shared by the body and who waits for the answer.
#[derive(Clone)]
struct Progress(Arc<Mutex<State>>);

struct State {
    last: Instant,
    error: Option<Arc<io::Error>>,
}

struct Upload<S> {
    stream: S,
    progress: Progress,
}

impl Upload<()> {
    fn new(
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Upload<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
        let progress = Progress(Arc::new(Mutex::new(State {
            last: Instant::now(),
            error: None,
        })));
        let seen = progress.clone();
        Upload {
            stream: bytes.map(move |chunk| seen.note(chunk)),
            progress,
        }
    }
}

impl Progress {
    fn note(&self, chunk: io::Result<Bytes>) -> io::Result<Bytes> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.last = Instant::now();
        chunk.map_err(|error| {
            let kind = error.kind();
            state.error = Some(Arc::new(error));
            kind.into()
        })
    }

    fn source_error(&self) -> Option<Arc<io::Error>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .error
            .clone()
    }

    /// Ends when no chunk was taken for `idle`.
    async fn stalls(&self, idle: Duration) {
        loop {
            let quiet = {
                let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.last.elapsed()
            };
            match idle.checked_sub(quiet) {
                Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
                _ => return,
            }
        }
    }
}
