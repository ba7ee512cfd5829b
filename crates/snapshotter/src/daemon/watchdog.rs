//! Answers systemd's watchdog (`WatchdogSec=`) for as long as the daemon answers containerd.
//!
//! The daemon calls its own service through its own socket, like containerd does, and reports each
//! answer. A daemon that hangs reports nothing, so systemd restarts it.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Code;
use tonic::transport::Endpoint;
use tracing::warn;

use crate::grpc::proto::containerd::services::snapshots::v1 as api;
use api::snapshots_client::SnapshotsClient;

/// The name of a snapshot that does not exist.
const NOBODY: &str = "soci-snapshotter-grpc/watchdog";

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

/// Calls the service once, over a connection of its own.
async fn answers(socket: &Path) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let connected = match endpoint {
        Ok(endpoint) => endpoint.connect().await,
        Err(error) => Err(error),
    };
    let channel = connected.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    let request = api::StatSnapshotRequest {
        key: NOBODY.to_owned(),
        ..Default::default()
    };
    match SnapshotsClient::new(channel).stat(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status.to_string()),
    }
}
