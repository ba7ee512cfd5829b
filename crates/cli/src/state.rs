//! The resources of a command: containerd (connected on first use), the content store for new
//! blobs, and the records.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use soci_index::Artifacts;
use soci_store::ContentStore;
use soci_store::containerd::Containerd;
use soci_store::local::LocalStore;
use tokio::sync::OnceCell;

use crate::args::Global;

/// The resources of one command.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub(crate) global: &'a Global,
    started: Instant,
    containerd: OnceCell<Containerd>,
}

/// Connecting and waiting time out this much before `--timeout`, so that the error names them.
const MARGIN: Duration = Duration::from_millis(20);

impl<'a> State<'a> {
    /// Opens nothing yet.
    pub(crate) fn new(global: &'a Global) -> Self {
        Self {
            global,
            started: Instant::now(),
            containerd: OnceCell::new(),
        }
    }

    /// The remaining time of `--timeout`.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = |timeout: Duration| timeout.saturating_sub(self.started.elapsed());
        self.global.timeout.map(left)
    }

    /// The containerd client; connects on the first call.
    pub(crate) async fn containerd(&self) -> Result<&Containerd> {
        let global = self.global;
        let timeout = self.left().map(|left| left.saturating_sub(MARGIN));
        let connect = || Containerd::connect(&global.address, &global.namespace, timeout);
        Ok(self.containerd.get_or_try_init(connect).await?)
    }

    /// containerd for optional work: `None`, without delay, if it is not running or not wanted.
    pub(crate) async fn containerd_if_there(&self, wanted: bool) -> Option<&Containerd> {
        let address = &self.global.address;
        let socket = address.strip_prefix("unix://").unwrap_or(address);
        if !wanted || UnixStream::connect(socket).is_err() {
            return None;
        }
        let containerd = self.containerd().await;
        containerd
            .inspect_err(|error| tracing::debug!(%error, "containerd cannot be asked"))
            .ok()
    }

    /// Whether artifacts are stored in the state folder.
    pub(crate) fn is_local(&self) -> bool {
        self.global.content_store == "soci"
    }

    /// Rejects an unknown `--content-store`.
    pub(crate) fn check_content_store(&self) -> Result<()> {
        match self.global.content_store.as_str() {
            "containerd" | "soci" => Ok(()),
            other => bail!("unknown content store type: {other}; must be one of [soci containerd]"),
        }
    }

    /// The store selected by `--content-store`.
    pub(crate) async fn content(&self) -> Result<Arc<dyn ContentStore>> {
        self.check_content_store()?;
        if self.is_local() {
            return Ok(Arc::new(LocalStore::at(&self.global.root)));
        }
        Ok(Arc::new(self.containerd().await?.clone()))
    }

    /// The records of what was built. Operations block while other processes use the records, for a
    /// short time and never beyond `--timeout`.
    pub(crate) fn artifacts(&self) -> Artifacts {
        let artifacts = Artifacts::at(&self.global.root);
        let left = self.left().map(|left| left.saturating_sub(MARGIN));
        match left.and_then(|left| Instant::now().checked_add(left)) {
            Some(deadline) => artifacts.until(deadline),
            None => artifacts,
        }
    }
}
