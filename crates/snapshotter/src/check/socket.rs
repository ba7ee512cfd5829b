//! The daemon's socket: whether the daemon answers a call.

use std::path::Path;
use std::time::{Duration, Instant};

use tonic::transport::Endpoint;
use tonic::{Code, Request};

use super::row::Row;
use crate::args::Part;
use crate::grpc::proto::containerd::services::snapshots::v1 as api;

const NAME: &str = "socket";
/// Longer than the start of a daemon on a busy node: systemd starts it with the first call.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn row(socket: &Path) -> Row {
    let start = Instant::now();
    let answer = tokio::time::timeout(LIMIT, called(socket)).await;
    let shown = socket.display();
    let problem = |why: String| {
        Row::problem(
            Part::Socket,
            NAME,
            format!("{shown}: {why}"),
            "see `systemctl status soci-snapshotter.socket soci-snapshotter.service` and the daemon's log",
        )
    };
    match answer {
        Ok(Ok(())) => Row::ok(
            Part::Socket,
            NAME,
            format!("{shown} answers after {} ms", start.elapsed().as_millis()),
        ),
        Ok(Err(why)) => problem(why),
        Err(_elapsed) => problem(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

/// Asks for a snapshot that does not exist.
async fn called(socket: &Path) -> Result<(), String> {
    if !socket.exists() {
        return Err("does not exist".to_owned());
    }
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let endpoint = endpoint.map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| {
        let error = anyhow::Error::new(error);
        format!("{error:#}")
    })?;
    let mut client = api::snapshots_client::SnapshotsClient::new(channel);
    let request = api::StatSnapshotRequest {
        snapshotter: String::new(),
        key: "check".to_owned(),
    };
    match client.stat(Request::new(request)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(format!("the call failed: {}", status.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Level;
    use super::*;

    #[tokio::test]
    async fn a_socket_that_does_not_exist_or_answer_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let missing = row(&path).await;
        assert_eq!(missing.level, Level::Problem);
        assert!(missing.found.ends_with("does not exist"), "{missing:?}");
        // The file stays when its socket is closed, as after a crash.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let closed = row(&path).await;
        assert_eq!(closed.level, Level::Problem);
        assert!(closed.found.contains("refused"), "{closed:?}");
    }
}
