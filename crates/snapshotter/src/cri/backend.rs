//! The connection to the image service that calls are forwarded to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{ConnectError, Status};

/// How long a call waits for a service that does not accept connections, as while containerd
/// restarts.
const PATIENCE: Duration = Duration::from_secs(3);
/// First pause between attempts to connect. Each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(50);

/// The service behind a socket.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    socket: PathBuf,
    channel: Option<Channel>,
}

impl Backend {
    pub(super) fn new(socket: &Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        Self {
            socket: socket.to_owned(),
            channel: endpoint.ok().map(|endpoint| endpoint.connect_lazy()),
        }
    }

    /// Sends a request, also if the service has to be connected again.
    pub(super) async fn send(
        &self,
        head: http::request::Parts,
        body: Bytes,
    ) -> Result<http::Response<Body>, Status> {
        let socket = self.socket.display();
        let Some(mut channel) = self.channel.clone() else {
            let text = format!("image_service_path {socket} is no path of a socket");
            return Err(Status::failed_precondition(text));
        };
        let (deadline, mut pause) = (Instant::now() + PATIENCE, PAUSE);
        loop {
            let body = Body::new(Full::new(body.clone()));
            let request = http::Request::from_parts(head.clone(), body);
            let sent = async {
                std::future::poll_fn(|context| channel.poll_ready(context)).await?;
                channel.call(request).await
            };
            let error = match sent.await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !is_unconnected(&error) {
                return Err(Status::from_error(Box::new(error)));
            }
            if Instant::now() + pause > deadline {
                return Err(Status::unavailable(format!(
                    "server is not initialized yet: {socket} accepts no connections; is containerd running, and is image_service_path right?"
                )));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

/// Whether the request was not sent.
fn is_unconnected(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| cause.is::<ConnectError>())
}
