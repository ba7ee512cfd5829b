//! A service whose calls under way can be given up, each with an answer.
//!
//! Without one a client sees only that the connection broke, and cannot tell a daemon that ends from one that failed.

use std::task::{Context, Poll};

use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// The service inside, until its calls are given up.
#[derive(Clone, Debug)]
pub struct Drained<S> {
    inner: S,
    give_up: CancellationToken,
}

impl<S> Drained<S> {
    /// Calls of `inner` that are under way when `give_up` is cancelled are answered then.
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
        "the snapshotter is being stopped or replaced, and this call takes longer than it can wait: make it again",
    )
}
