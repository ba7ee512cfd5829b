//! A service that can cancel its running calls and answer each with an error.
//!
//! Without the error, a client only sees a broken connection and cannot tell a daemon that is
//! stopped from one that crashed.

use std::task::{Context, Poll};

use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// The inner service and the token that cancels its calls.
#[derive(Clone, Debug)]
pub struct Drained<S> {
    inner: S,
    give_up: CancellationToken,
}

impl<S> Drained<S> {
    /// When `give_up` is cancelled, the running calls of `inner` are answered with an error.
    pub fn new(inner: S, give_up: CancellationToken) -> Self {
        Self { inner, give_up }
    }
}

impl<S: NamedService> NamedService for Drained<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Drained<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = self.inner.call(request);
        let give_up = self.give_up.clone();
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                () = give_up.cancelled() => Ok(given_up().into_http()),
            }
        })
    }
}

fn given_up() -> Status {
    Status::unavailable(
        "the snapshotter is being stopped or replaced before this call could finish, try again",
    )
}
