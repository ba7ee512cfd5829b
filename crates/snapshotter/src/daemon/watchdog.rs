//! Answers systemd's watchdog (`WatchdogSec=`) for as long as the daemon answers containerd.
//!
//! The daemon asks for its own health through its own socket, like containerd calls it, and reports
//! each answer. A daemon that hangs reports nothing, so systemd restarts it.

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::codegen::http::Uri;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower_service::Service;
use tracing::warn;

/// Calls the service at `socket` again and again, and calls `alive` after each answer.
pub(super) async fn watch(socket: PathBuf, limit: Duration, mut alive: impl FnMut()) -> Infallible {
    // A call waits for as long at most, so two reports are at most two thirds of the limit apart.
    let pause = limit / 3;
    let mut ticks = interval(pause.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let problem = match timeout(pause, answers(&socket)).await {
            Ok(Ok(())) => {
                alive();
                continue;
            }
            Ok(Err(problem)) => problem,
            Err(_) => format!("no answer within {} ms", pause.as_millis()),
        };
        warn!(
            error = problem,
            "the daemon does not answer its own call: systemd restarts it if this goes on"
        );
    }
}

/// Calls the service once, over a connection of its own. The answer needs no disk, because a
/// restart does not help a slow one.
async fn answers(socket: &Path) -> Result<(), String> {
    let connector = Connector(socket.to_owned());
    // The name is not used.
    let endpoint = Endpoint::from_static("http://daemon");
    let connected = endpoint.connect_with_connector(connector).await;
    let channel = connected.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    let request = HealthCheckRequest::default();
    match HealthClient::new(channel).check(request).await {
        // The client gives a source to its own errors only.
        Err(status) if status.source().is_some() => Err(status.to_string()),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Connects to a path, which need not be a valid URI.
struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::task::JoinSet;
    use tokio_stream::wrappers::UnixListenerStream;

    use super::super::health::Health;
    use super::*;

    #[tokio::test]
    async fn every_answer_of_the_daemon_counts_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a path#with ? %.sock");
        assert!(answers(&path).await.is_err(), "nobody listens");
        let listener = UnixListener::bind(&path).unwrap();
        let asked = answers(&path);
        let (asked, ()) = tokio::join!(asked, async { drop(listener.accept().await) });
        assert!(asked.is_err(), "the connection is closed");
        let silent = timeout(Duration::from_millis(50), answers(&path));
        assert!(silent.await.is_err(), "no answer");
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let (health, server) = Health::new().await;
        let server = tonic::transport::Server::builder().add_service(server);
        let mut tasks = JoinSet::new();
        tasks.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        assert_eq!(answers(&path).await, Ok(()));
        health.end().await;
        assert_eq!(answers(&path).await, Ok(()), "it ends");
    }
}
