//! Serves the status of images over HTTP, on a socket next to the daemon's own.

use std::path::PathBuf;

use hyper::StatusCode;
use serde::Serialize;
use tracing::error;

use super::http::{Answer, Endpoint, PLAIN, Place, Site, ending, not_found, response};
use crate::args::VERSION;
use crate::image::explain;
use crate::listen::Listener;
use crate::snapshots::{SnapshotError, Snapshotter};
use crate::sync::Weak;

const JSON: &str = "application/json";

/// The part of the daemon that is described.
#[derive(Debug)]
pub(super) struct Described(pub(super) Snapshotter);

impl Site for Described {
    const WHAT: &'static str = "status";

    async fn answer(site: Weak<Self>, path: String) -> Answer {
        let manifest = path.strip_prefix(soci_status::STARTS_PATH);
        if path != soci_status::PATH && manifest.is_none() {
            return not_found();
        }
        let Some(snapshotter) = site.upgrade().map(|site| site.0.clone()) else {
            return ending();
        };
        match manifest {
            None => document(snapshotter.status(VERSION).await.map(Some)),
            Some(manifest) => document(snapshotter.start_record(manifest).await),
        }
    }
}

/// The answer with a document, if there is one.
fn document<T: Serialize>(made: Result<Option<T>, SnapshotError>) -> Answer {
    let text = match made {
        Ok(None) => return not_found(),
        Ok(Some(made)) => serde_json::to_vec(&made).map_err(|error| explain(&error)),
        Err(error) => Err(explain(&error)),
    };
    match text {
        Ok(text) => response(StatusCode::OK, JSON, text),
        Err(error) => response(
            StatusCode::INTERNAL_SERVER_ERROR,
            PLAIN,
            format!("{error}\n"),
        ),
    }
}

/// The path of the status socket of a daemon that listens here.
fn path(listener: &Listener) -> PathBuf {
    let path = listener.path();
    let path = path.map(|path| path.with_file_name(soci_status::SOCKET));
    path.unwrap_or_else(|| soci_status::DEFAULT_SOCKET.into())
}

/// Where the status is served, if anywhere.
#[derive(Debug)]
pub(super) struct Opened(Option<Endpoint>);

impl Opened {
    pub(super) async fn serve(self, described: Described) {
        if let Some(endpoint) = self.0 {
            endpoint.serve(described).await;
        }
    }
}

/// Listens next to the socket of the daemon. A failure is logged and tried again later.
pub(super) async fn open(listener: &Listener) -> anyhow::Result<Opened> {
    let path = path(listener);
    if listener.path().as_ref() == Some(&path) {
        // Listening would replace the daemon's own socket.
        let address = path.display().to_string();
        error!(
            address,
            "status is not served: the daemon's own socket has the name of the status socket; choose another name in --address"
        );
        return Ok(Opened(None));
    }
    let place = Place {
        network: "unix".to_owned(),
        address: path.display().to_string(),
        replaces: true,
        set_by: "in the directory of --address",
    };
    let endpoint = Endpoint::open(Described::WHAT, place, false).await?;
    Ok(Opened(Some(endpoint)))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::listen::{Address, Inherited};

    #[tokio::test]
    async fn the_socket_of_the_daemon_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for (name, serves) in [(soci_status::SOCKET, false), ("daemon.sock", true)] {
            let path = folder.path().join(name);
            let address = Address::Path(path.clone());
            let listener = Listener::open(&address, &mut Inherited::default()).unwrap();
            let opened = open(&listener).await.unwrap();
            assert_eq!(opened.0.is_some(), serves, "{name}");
            let _client = UnixStream::connect(&path).await.unwrap();
            let accepting = listener.for_runtime().unwrap();
            let accepted =
                tokio::time::timeout(std::time::Duration::from_secs(5), accepting.accept());
            assert!(accepted.await.is_ok(), "{name}: the daemon is called");
        }
    }
}
