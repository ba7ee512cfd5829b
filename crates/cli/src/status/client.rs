//! Asks the daemon over its status socket.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use soci_index::starts::StartRecord;
use soci_status::{PATH, SCHEMA_VERSION, STARTS_PATH, Status};
use soci_store::errno;
use tokio::net::UnixStream;

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer: tens of thousands of layers.
const MOST: usize = 64 << 20;

/// What the daemon says now.
pub(crate) async fn ask(socket: &Path) -> Result<Status> {
    let (code, body) = in_time(socket, PATH).await?;
    if code != 200 {
        let text = String::from_utf8_lossy(&body);
        bail!("the daemon cannot say its status: {} ({code})", text.trim());
    }
    parse(&body)
}

/// What was read first of the image with this manifest.
pub(crate) async fn starts(socket: &Path, manifest: &str) -> Result<StartRecord> {
    let (code, body) = in_time(socket, &format!("{STARTS_PATH}{manifest}")).await?;
    match code {
        200 => StartRecord::read(&body).context("cannot parse the daemon's answer"),
        404 => bail!(
            "the daemon at {} keeps no records of starts: it is older than this soci, or the image was just removed",
            socket.display()
        ),
        _ => {
            let text = String::from_utf8_lossy(&body);
            bail!(
                "the daemon cannot give the record: {} ({code})",
                text.trim()
            );
        }
    }
}

async fn in_time(socket: &Path, path: &str) -> Result<(u16, Bytes)> {
    let asked = tokio::time::timeout(PATIENCE, get(socket, path)).await;
    asked.map_err(|_| {
        let seconds = PATIENCE.as_secs();
        anyhow!(
            "the daemon at {} did not answer within {seconds} s; see its log",
            socket.display()
        )
    })?
}

fn parse(body: &[u8]) -> Result<Status> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema_version: u32,
    }
    let odd = "cannot parse the daemon's answer";
    let Version { schema_version } = serde_json::from_slice(body).context(odd)?;
    if schema_version != SCHEMA_VERSION {
        bail!(
            "the daemon's status has version {schema_version}, and this soci knows version {SCHEMA_VERSION}: use the soci of the daemon's release"
        );
    }
    serde_json::from_slice(body).context(odd)
}

async fn get(socket: &Path, path: &str) -> Result<(u16, Bytes)> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        anyhow!(
            "no daemon answers at {}: {}; start soci-snapshotter-grpc, or name its status socket with --socket",
            socket.display(),
            errno(&error)
        )
    })?;
    let cut = || format!("the daemon at {} broke off", socket.display());
    let (mut client, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .with_context(cut)?;
    let request = Request::get(path)
        .header(HOST, "soci")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let answer = client.send_request(request).await.with_context(cut)?;
        let code = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MOST).collect().await;
        let body = body.map_err(|error| anyhow!("{}: {error}", cut()))?;
        Ok::<_, anyhow::Error>((code, body.to_bytes()))
    };
    // The end of the connection is not the answer, but the answer needs it to go on.
    let connected = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = answer => answer,
        () = connected => bail!(cut()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_version_is_read() {
        let text = |version: u32| {
            format!(
                r#"{{"schema_version":{version},"daemon":"v1","mounts_layers":true,"images":[],"new":1}}"#
            )
        };
        assert_eq!(parse(text(1).as_bytes()).unwrap().daemon, "v1");
        let error = parse(text(2).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
        assert!(parse(b"{}").is_err());
    }
}
