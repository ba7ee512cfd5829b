//! CRI's image service on the daemon's socket, for the kubelet.
//!
//! Every call goes on to the image service of containerd as it came, with its metadata, so that
//! methods and fields of later versions work too. Only two calls are read: a pull brings its
//! credentials to the [`PullKeychain`], and a removal drops them.

mod backend;
mod message;

use std::convert::Infallible;
use std::path::Path;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use soci_oci::reference::ImageRef;
use soci_registry::credentials::{Pull, PullKeychain};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tracing::debug;

use self::backend::Backend;

/// Largest request and largest answer to a pull in bytes, as in the reference.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Length of the flag and the size in front of a gRPC message.
const PREFIX: usize = 5;

/// The image service.
#[derive(Clone, Debug)]
pub struct ImageService {
    backend: Backend,
    keychain: PullKeychain,
}

impl ImageService {
    /// Forwards to the service on this socket. Nothing connects before the first call.
    pub fn new(socket: &Path, keychain: PullKeychain) -> Self {
        Self {
            backend: Backend::new(socket),
            keychain,
        }
    }

    async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MESSAGE_LIMIT + PREFIX).collect().await;
        let body = body.map_err(unreadable)?.to_bytes();
        match head.uri.path().rsplit('/').next() {
            Some("PullImage") => {
                let pull = self.begin(&body);
                let answer = self.backend.send(head, body).await?;
                finish(pull, answer).await
            }
            Some("RemoveImage") => {
                let image = message_of::<message::RemoveImageRequest>(&body);
                let answer = self.backend.send(head, body).await?;
                let (answer, is_done) = whole(answer).await?;
                if let Some(image) = image.and_then(|request| request.image)
                    && is_done.is_some()
                {
                    self.keychain.forget(&image.image);
                }
                Ok(answer)
            }
            _ => self.backend.send(head, body).await,
        }
    }

    /// Remembers the credentials of a pull.
    fn begin(&self, body: &Bytes) -> Option<Pull> {
        let request = message_of::<message::PullImageRequest>(body)?;
        let name = request.image.unwrap_or_default().image;
        let image = match ImageRef::parse(&name) {
            Ok(image) => image,
            Err(error) => {
                debug!(%error, "a pull names no image");
                return None;
            }
        };
        let login = request.auth.map(message::AuthConfig::into_login);
        Some(self.keychain.begin(&image, &login.unwrap_or_default()))
    }
}

/// Says how a pull ended, and passes its answer on.
async fn finish(
    pull: Option<Pull>,
    answer: http::Response<Body>,
) -> Result<http::Response<Body>, Status> {
    let (answer, message) = whole(answer).await?;
    if let (Some(pull), Some(message)) = (pull, message) {
        let response = message_of::<message::PullImageResponse>(&message).unwrap_or_default();
        pull.succeed(&response.image_ref);
    }
    Ok(answer)
}

/// Reads an answer to its end. Returns it, and its body if the call succeeded.
async fn whole(
    answer: http::Response<Body>,
) -> Result<(http::Response<Body>, Option<Bytes>), Status> {
    let (head, body) = answer.into_parts();
    let read = Limited::new(body, MESSAGE_LIMIT + PREFIX).collect().await;
    let read = read.map_err(unreadable)?;
    let trailers = read.trailers().cloned();
    let bytes = read.to_bytes();
    let headers = trailers.as_ref().unwrap_or(&head.headers);
    let is_ok = (headers.get("grpc-status")).is_some_and(|status| status.as_bytes() == b"0");
    let done = is_ok.then(|| bytes.clone());
    let body = Full::new(bytes).with_trailers(async move { trailers.map(Ok) });
    Ok((http::Response::from_parts(head, Body::new(body)), done))
}

/// The message of a unary call. `None` if it is compressed or damaged, which the backend judges.
fn message_of<M: prost::Message + Default>(body: &Bytes) -> Option<M> {
    let message = body.get(PREFIX..)?;
    let is_compressed = body.first() != Some(&0);
    if is_compressed {
        return None;
    }
    M::decode(message).ok()
}

fn unreadable(error: Box<dyn std::error::Error + Send + Sync>) -> Status {
    if error.is::<LengthLimitError>() {
        let limit = MESSAGE_LIMIT;
        return Status::resource_exhausted(format!("a message has more than {limit} bytes"));
    }
    match error.downcast::<Status>() {
        Ok(status) => *status,
        Err(error) => Status::unavailable(format!("the call broke off: {error}")),
    }
}

impl NamedService for ImageService {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for ImageService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(async move { Ok(answer.await.unwrap_or_else(|status| status.into_http())) })
    }
}

#[cfg(test)]
mod tests;
