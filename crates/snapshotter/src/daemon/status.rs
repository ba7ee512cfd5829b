//! Serves the status of images over HTTP, on a socket next to the daemon's own.

use std::path::PathBuf;

use hyper::StatusCode;

use super::http::{Answer, Endpoint, PLAIN, Place, Site, ending, not_found, response};
use crate::args::VERSION;
use crate::image::explain;
use crate::listen::Listener;
use crate::snapshots::Snapshotter;
use crate::sync::Weak;

const JSON: &str = "application/json";

/// The part of the daemon that is described.
#[derive(Debug)]
pub(super) struct Described(pub(super) Snapshotter);

impl Site for Described {
    const WHAT: &'static str = "status";

    async fn answer(site: Weak<Self>, path: String) -> Answer {
        if path != soci_status::PATH {
            return not_found();
        }
        let Some(snapshotter) = site.upgrade().map(|site| site.0.clone()) else {
            return ending();
        };
        let text = match snapshotter.status(VERSION).await {
            Ok(status) => serde_json::to_vec(&status).map_err(|error| explain(&error)),
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
}

/// The path of the status socket of a daemon that listens here.
fn path(listener: &Listener) -> PathBuf {
    let path = listener.path();
    let path = path.map(|path| path.with_file_name(soci_status::SOCKET));
    path.unwrap_or_else(|| soci_status::DEFAULT_SOCKET.into())
}

/// Listens next to the socket of the daemon. A failure is logged and tried again later.
pub(super) async fn open(listener: &Listener) -> anyhow::Result<Endpoint> {
    let place = Place {
        network: "unix".to_owned(),
        address: path(listener).display().to_string(),
        replaces: true,
        set_by: "in the directory of --address",
    };
    Endpoint::open(Described::WHAT, place, false).await
}
